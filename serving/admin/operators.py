"""Operators: who may change the policy, by bearer tokens that are compared in constant time."""

import hashlib
import hmac
from collections.abc import Mapping

from probes.errors import ServingError
from serving.settings import ADMIN_TOKENS

_SHORTEST = 16


class Operators:
    """Names of operators, by the digests of their tokens."""

    def __init__(self, tokens: Mapping[str, str]) -> None:
        """`tokens` are by name."""
        self._digests = {name: _digest(token.encode()) for name, token in tokens.items()}

    @classmethod
    def parse(cls, text: str) -> "Operators":
        """Read `NAME=TOKEN` pairs with commas between them. Raises `ServingError` for none, or for a weak token.

        A token alone is that of `admin`.
        """
        pairs = [pair.strip().partition("=") for pair in text.split(",") if pair.strip()]
        tokens = {name if mark else "admin": token if mark else name for name, mark, token in pairs}
        if not tokens or len(tokens) < len(pairs):
            raise _refused("names no operator, or one twice", "give NAME=TOKEN, with commas between several")
        for name, token in tokens.items():
            # Their values stay out of the message, which goes to a log.
            if len(token) < _SHORTEST or not (token.isascii() and token.isprintable()) or " " in token:
                raise _refused(
                    f"the token of {name!r} needs {_SHORTEST} printable ASCII characters or more, and no space",
                    "make one with `openssl rand -hex 32`",
                )
        return cls(tokens)

    def name_of(self, authorization: str | None) -> str | None:
        """Return the operator's name, by the value of an `Authorization` header; None for nobody's."""
        scheme, _, token = (authorization or "").partition(" ")
        asked = _digest(token.strip().encode())
        # All are compared, whichever fits: the time tells nothing.
        fits = [name for name, digest in self._digests.items() if hmac.compare_digest(asked, digest)]
        return fits[0] if fits and scheme.lower() == "bearer" else None


def _refused(problem: str, remedy: str) -> ServingError:
    return ServingError(problem, field=ADMIN_TOKENS, remedy=remedy)


def _digest(token: bytes) -> bytes:
    return hashlib.sha256(token).digest()
