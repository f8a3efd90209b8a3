"""Whose request it is: the tenant, as the operator's policy file knows its tenants, and what tells callers apart.

A client's own word counts for nothing. A tenant is known by a bearer token, or named by a gateway that proves itself.
"""

import hashlib
import hmac
from collections.abc import Iterable

from guard.rollout import RolloutSettings
from serving.api.keys import bearer


def tenant_of(headers: Iterable[tuple[bytes, bytes]], settings: RolloutSettings) -> str | None:
    """Return the name of the request's tenant, if it has one that the policy file knows."""
    named = _named_by_gateway(headers, settings)
    return named if settings.has_tenant(named) else settings.tenant_of_key(token_digest(headers))


def token_digest(headers: Iterable[tuple[bytes, bytes]]) -> str:
    """Return the SHA-256 of the request's bearer token, in hexadecimal, or nothing where it has none."""
    token = bearer(headers)
    return hashlib.sha256(token).hexdigest() if token else ""


def _named_by_gateway(headers: Iterable[tuple[bytes, bytes]], settings: RolloutSettings) -> str | None:
    if (gateway := settings.gateway) is None:
        return None
    given = {name.lower().decode("latin-1"): value for name, value in headers}
    proof = hashlib.sha256(given.get(gateway.key_header, b"")).hexdigest()
    if not hmac.compare_digest(proof, gateway.key_sha256):
        return None
    return given.get(gateway.tenant_header, b"").decode("latin-1")
