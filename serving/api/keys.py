"""Keys: who may ask, and who may read scores on `/metrics`. Both are bearer tokens, compared in constant time.

vLLM's own authentication closes paths that begin with `/v1`, `/v2`, `/inference` and `/cohere`, and leaves the others
open. With the same keys the guard closes every route but those of `serving.api.routes.OPEN`.

It touches, of vLLM's arguments: `api_key`; and the environment variable `VLLM_API_KEY`, which stands in for it.
"""

import hashlib
import hmac
import os
from argparse import Namespace
from collections.abc import Iterable

from probes.errors import ServingError
from serving.settings import METRICS_KEY, metrics_key

Headers = Iterable[tuple[bytes, bytes]]


class Keys:
    """The server's keys, as digests. Without keys of vLLM's anybody may ask."""

    def __init__(self, api: Iterable[str], metrics: str | None) -> None:
        self._api = [_digest(key.encode()) for key in api]
        self._metrics = [_digest(metrics.encode())] if metrics else []
        if any(key in self._api for key in self._metrics):
            raise ServingError(
                "is also a key of vLLM's (--api-key): whoever may ask would read scores",
                field=METRICS_KEY,
                remedy="give another key",
            )

    @classmethod
    def of(cls, args: Namespace) -> "Keys":
        """Return the keys of a server with vLLM's arguments. Raises `ServingError` for a metrics key that is none."""
        given = args.api_key or [os.environ.get("VLLM_API_KEY")]
        return cls([key for key in given if key], metrics_key())

    def may_ask(self, headers: Headers) -> bool:
        """Return whether a request has a key of vLLM's, or needs none."""
        return not self._api or _has(self._api, headers)

    def may_read_metrics(self, headers: Headers) -> bool:
        """Return whether a request may read metrics: either key will do."""
        return self.may_ask(headers) or self.may_read_scores(headers)

    def may_read_scores(self, headers: Headers) -> bool:
        """Return whether a request may read the metrics that tell scores and thresholds."""
        return _has(self._metrics, headers)


def bearer(headers: Headers) -> bytes | None:
    """Return the bearer token of a request, or None where it has none."""
    text = next((value for name, value in headers if name.lower() == b"authorization"), b"")
    scheme, _, token = text.partition(b" ")
    return token.strip() if scheme.lower() == b"bearer" else None


def _has(digests: list[bytes], headers: Headers) -> bool:
    token = bearer(headers)
    if token is None:
        return False
    asked = _digest(token)
    # All are compared, whichever fits: the time tells nothing.
    fits = [hmac.compare_digest(asked, digest) for digest in digests]
    return any(fits)


def _digest(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()
