"""Guessable keys: bearer tokens that anyone would try, or has read in an example."""

import hashlib

_WORDS = (
    *(
        "",
        "0",
        "1234",
        "12345678",
        "abc123",
        "admin",
        "api-key",
        "apikey",
        "caller",
        "changeme",
        "default",
        "demo",
        "dummy",
    ),
    *("EMPTY", "example", "foo", "foreguard", "guard", "hello", "key", "none", "None", "null", "observer", "pass"),
    *(
        "password",
        "placeholder",
        "red-team",
        "root",
        "secret",
        "sk-test",
        "test",
        "test-key",
        "token",
        "TOKEN",
        "user",
        "your-api-key",
    ),
    *("xxx", "sk-no-key-required", "token-abc123", "not-needed"),  # what examples of OpenAI's clients and of vLLM have
)

GUESSABLE = {hashlib.sha256(word.encode()).hexdigest(): word for word in _WORDS}
"""Such words, by their SHA-256 digest in hexadecimal."""
