"""Guessable keys: bearer tokens that anyone would try, or has read in an example."""

import hashlib

_WORDS = """
0 1234 12345678 abc123 admin api-key apikey caller changeme default demo dummy EMPTY example foo foreguard guard hello
key none None not-needed null observer pass password placeholder red-team root secret sk-no-key-required sk-test test
test-key token TOKEN token-abc123 user xxx your-api-key
"""

GUESSABLE = {hashlib.sha256(word.encode()).hexdigest(): word for word in ("", *_WORDS.split())}
"""Such words, by their SHA-256 digest in hexadecimal."""
