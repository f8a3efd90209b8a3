"""A tenant is known by its token or by a gateway that proves itself, and never by a client's word."""

import hashlib

import pytest

from guard.rollout import RolloutSettings
from serving.api.tenants import tenant_of, token_digest


def digest(word):
    """Its SHA-256, in hexadecimal."""
    return hashlib.sha256(word.encode()).hexdigest()


SETTINGS = RolloutSettings.model_validate(
    {
        "tenants": [{"name": "acme", "keys_sha256": [digest("acme one"), digest("acme two")]}, {"name": "other"}],
        "gateway": {"tenant_header": "X-Tenant", "key_header": "X-Gateway", "key_sha256": digest("the gateway")},
    }
)
GATEWAY = (b"x-gateway", b"the gateway")


@pytest.mark.parametrize(
    ("headers", "tenant"),
    [
        ([], None),
        ([(b"authorization", b"Bearer acme two")], "acme"),
        ([(b"Authorization", b"bearer acme one")], "acme"),
        ([(b"authorization", b"Bearer acme three")], None),
        ([(b"x-tenant", b"acme")], None),
        ([(b"x-tenant", b"acme"), (b"x-gateway", b"a guess")], None),
        ([(b"X-Tenant", b"other"), GATEWAY], "other"),
        ([(b"x-tenant", b"nobody"), GATEWAY], None),
        ([GATEWAY], None),
        ([(b"x-tenant", b"\xff"), GATEWAY], None),
    ],
)
def test_a_tenant_is_who_can_prove_it(headers, tenant):
    """By a token of its own, or by the gateway's word beside the gateway's key."""
    assert tenant_of(headers, SETTINGS) == tenant


def test_without_a_gateway_no_header_counts():
    """Whatever it says."""
    settings = RolloutSettings.model_validate({"tenants": [{"name": "acme"}]})
    assert tenant_of([(b"x-tenant", b"acme"), GATEWAY], settings) is None


def test_callers_are_told_apart_by_their_tokens():
    """By digests: a token stands nowhere else."""
    assert token_digest([(b"authorization", b"Bearer one")]) == digest("one")
    assert token_digest([(b"authorization", b"Basic one")]) == token_digest([]) == ""
