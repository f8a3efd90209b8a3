"""Private blocks: keeps what is computed under steering out of the prefix cache.

Blocks are shared by the hash of their tokens; keys and values computed under steering must not be. Each hash chains to
the one before, so salting them makes all that follow unique as well. It touches, of `vllm/v1/request.py`:
`block_hashes`, `_block_hasher`, `update_block_hashes`.
"""

import hashlib
import secrets
from collections.abc import Callable

from vllm.v1.request import Request


def keep_private(request: Request, begin: int, block_size: int) -> None:
    """Give every block of the request from position `begin` on a name that no other request can ask for."""
    hasher = request._block_hasher
    if hasher is None:
        return
    del request.block_hashes[begin // block_size :]
    request._block_hasher = _salted(hasher, secrets.token_bytes(16))
    request.update_block_hashes()


def _salted(hasher: Callable[[Request], list[bytes]], salt: bytes) -> Callable[[Request], list[bytes]]:
    def salted(request: Request) -> list[bytes]:
        return [hashlib.sha256(salt + digest).digest() for digest in hasher(request)]

    return salted
