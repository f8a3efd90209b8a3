"""Seals prompts that are kept: AES-256-GCM, with keys from the environment, each text bound to its event id.

A sealed text is one byte of version, four that name the key, twelve of nonce, and the ciphertext with its tag.
"""

import base64
import binascii
import hashlib
import os
from collections.abc import Mapping

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from guard.store.errors import StoreError

VARIABLE = "FOREGUARD_STORE_KEY"
_VERSION = b"\x01"
_NAME, _NONCE, _KEY = 4, 12, 32
_REMEDY = f"give keys of 32 bytes in URL-safe base64 in {VARIABLE}, divided by commas; the first one seals"


class Cipher:
    """Seals with the first of its keys, and opens what any of them sealed: a new key is put before the old ones."""

    def __init__(self, keys: str) -> None:
        """`keys` is as in the environment variable. Raises `StoreError`, which shows none of it, for anything else."""
        found = [_key(number, each.strip()) for number, each in enumerate(keys.split(","), 1)]
        self._keys = {_name(key): AESGCM(key) for key in found}
        self._first = _name(found[0])

    def seal(self, text: str, event_id: str) -> bytes:
        """Return the text as the store may hold it. Broken characters are replaced."""
        nonce = os.urandom(_NONCE)
        head = _VERSION + self._first + nonce
        return head + self._keys[self._first].encrypt(nonce, text.encode("utf-8", "replace"), _bound(event_id))

    def unseal(self, sealed: bytes, event_id: str) -> str:
        """Return the text. Raises `StoreError` where the key is not among these, or the bytes are not what was sealed
        for this event id.
        """
        name, rest = sealed[1 : 1 + _NAME], sealed[1 + _NAME :]
        if sealed[:1] != _VERSION or name not in self._keys:
            raise StoreError("the text was sealed with another key", field=VARIABLE, remedy="list that key there, too")
        try:
            return self._keys[name].decrypt(rest[:_NONCE], rest[_NONCE:], _bound(event_id)).decode()
        except InvalidTag:
            raise StoreError(
                "the text was changed since it was sealed", field=event_id, remedy="delete it, or restore a backup"
            ) from None

    def is_newest(self, sealed: bytes) -> bool:
        """Return whether a text was sealed with the first key."""
        return sealed[: 1 + _NAME] == _VERSION + self._first


def cipher_from(environment: Mapping[str, str] = os.environ) -> Cipher | None:
    """Return the cipher of the keys in the environment, None if there are none. Raises `StoreError` for bad ones."""
    keys = environment.get(VARIABLE, "")
    return Cipher(keys) if keys.strip() else None


def new_key() -> str:
    """Return a new key, as the environment variable takes it."""
    return base64.urlsafe_b64encode(os.urandom(_KEY)).decode()


def _key(number: int, written: str) -> bytes:
    try:
        key = base64.b64decode(written, altchars=b"-_", validate=True)
    except (binascii.Error, ValueError):
        raise StoreError(f"key {number} is not base64", field=VARIABLE, remedy=_REMEDY) from None
    if len(key) != _KEY:
        raise StoreError(f"key {number} has {len(key)} bytes", field=VARIABLE, remedy=_REMEDY)
    return key


def _name(key: bytes) -> bytes:
    return hashlib.sha256(b"foreguard store key" + key).digest()[:_NAME]


def _bound(event_id: str) -> bytes:
    return event_id.encode("utf-8", "replace")
