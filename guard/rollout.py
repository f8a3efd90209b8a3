"""Rollouts: which of a policy file's policies a request comes under.

A policy file has one policy and, under `variants`, changes to it, each of which makes another one. The operator has a
variant judged beside the policy (`shadow`), gives it to a share of all callers (`canary`), or to some tenants, routes
or models (`overrides`). Format: `docs/policy.md`.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any, Self

from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, StringConstraints, model_validator

from guard.policy import Digest, Label, Number, Policy
from guard.policy_set import PolicySet

if TYPE_CHECKING:  # an artifact brings torch, and deciding needs none
    from probes.artifact import Artifact

FIXED = ("name", "version", "artifact", "adapters", "callers", "special_tokens")
"""Keys of a policy that no variant changes: they are the file's. Special tokens are refused before it is known which
model is to answer."""

_Header = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9-]{1,64}$", to_lower=True)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Canary(_Strict):
    """A variant for a share of all callers: always the same ones, and as it grows, those and others."""

    variant: Label
    percent: Number = Field(gt=0, le=100)


class Override(_Strict):
    """A variant for requests that fit every one of the lists that are given."""

    variant: Label
    tenants: tuple[Label, ...] = ()
    routes: tuple[str, ...] = ()
    models: tuple[str, ...] = ()
    """Adapters by name, and the model itself by the name that it is served as."""

    @model_validator(mode="after")
    def _says_whom(self) -> Self:
        if not (self.tenants or self.routes or self.models):
            raise ValueError("an override needs 'tenants', 'routes' or 'models'")
        return self

    def fits(self, asking: "Asking") -> bool:
        """Return whether the request is one of these."""
        given = (self.tenants, asking.tenant), (self.routes, asking.route), (self.models, asking.model)
        return all(not wanted or own in wanted for wanted, own in given)


class Tenant(_Strict):
    """Callers who belong together, by their bearer tokens."""

    name: Label
    keys_sha256: tuple[Digest, ...] = ()
    """SHA-256 of each token, in hexadecimal."""


class Gateway(_Strict):
    """A gateway in front that says in a header which tenant asks. Nobody else is believed."""

    tenant_header: _Header
    key_header: _Header
    """The header by which the gateway proves that it is the gateway."""
    key_sha256: Digest
    """SHA-256 of that header's value, in hexadecimal."""


class RolloutSettings(_Strict):
    """The part of a policy file that says who comes under which policy."""

    variants: dict[Label, dict[str, Any]] = Field({}, max_length=16)
    """What each changes: the keys of the policy that it has otherwise."""
    shadow: Label | None = None
    """The variant that is judged beside whatever decides, on the same scores; what it would do is recorded."""
    canary: Canary | None = None
    overrides: tuple[Override, ...] = ()
    """The first that fits a request decides; where none does, the canary's share is next."""
    tenants: tuple[Tenant, ...] = ()
    gateway: Gateway | None = None
    _tenants: dict[str, str] = PrivateAttr({})
    _names: frozenset[str] = PrivateAttr(frozenset())

    def model_post_init(self, _context: Any, /) -> None:
        """Note whose each key is: there may be thousands, and every request is looked up."""
        self._tenants = {key: tenant.name for tenant in self.tenants for key in tenant.keys_sha256}
        self._names = frozenset(tenant.name for tenant in self.tenants)

    def has_tenant(self, name: str | None) -> bool:
        """Return whether a tenant is called so."""
        return name in self._names

    def tenant_of_key(self, digest: str) -> str | None:
        """Return whose token has this SHA-256. How long it takes tells of the digest, and not of the token."""
        return self._tenants.get(digest)

    @model_validator(mode="after")
    def _names_what_there_is(self) -> Self:
        named = [("shadow", self.shadow), ("canary", self.canary and self.canary.variant)]
        named += [("overrides", override.variant) for override in self.overrides]
        for where, variant in named:
            if variant is not None and variant not in self.variants:
                raise ValueError(f"{where}: no variant is named {variant!r}")
        for name, changes in self.variants.items():
            if fixed := sorted(set(FIXED) & set(changes)):
                raise ValueError(f"variants: {name} may not change {', '.join(fixed)}: one file has one of these")
        return self

    @model_validator(mode="after")
    def _knows_its_tenants(self) -> Self:
        names = [tenant.name for tenant in self.tenants]
        if len(names) != len(set(names)):
            raise ValueError("tenants: names must be unique")
        keys = [key for tenant in self.tenants for key in tenant.keys_sha256]
        if len(keys) != len(set(keys)):
            raise ValueError("tenants: a key belongs to one tenant")
        if unknown := sorted({name for each in self.overrides for name in each.tenants} - set(names)):
            raise ValueError(f"overrides: no tenant is named {unknown[0]!r}")
        return self


@dataclass(frozen=True, slots=True)
class PolicyFile:
    """All that a policy file says."""

    policy: Policy
    variants: Mapping[str, Policy] = field(default_factory=dict)
    settings: RolloutSettings = field(default_factory=RolloutSettings)


@dataclass(frozen=True, slots=True)
class Asking:
    """What is known of a request before it is decided by which policy."""

    route: str | None = None
    model: str = ""
    """The adapter that answers, or the name of the model itself."""
    tenant: str | None = None
    caller: str = ""
    """What tells callers apart: the tenant, a digest of the token, or an address."""
    variant: str | None = None
    """What the caller asks for, and may have."""


@dataclass(frozen=True, slots=True)
class Rollout:
    """A policy file's policies, each bound to the artifacts."""

    base: PolicySet
    variants: Mapping[str, PolicySet] = field(default_factory=dict)
    settings: RolloutSettings = field(default_factory=RolloutSettings)

    @classmethod
    def bind(cls, file: PolicyFile, artifact: "Artifact", adapters: "Mapping[str, Artifact]") -> Self:
        """Bind all policies to the model's `artifact` and to each adapter's.

        Raises `PolicyError` where one does not fit.
        """
        shadow = file.variants[file.settings.shadow] if file.settings.shadow else None
        beside = PolicySet.bind(shadow, artifact, adapters) if shadow else None
        base = PolicySet.bind(file.policy, artifact, adapters, beside)
        variants = {
            name: PolicySet.bind(policy, artifact, adapters, None if policy is shadow else beside)
            for name, policy in file.variants.items()
        }
        return cls(base, variants, file.settings)

    @property
    def digest(self) -> str:
        """`Policy.digest` of the file's own policy, which that of all that the file says goes into."""
        return self.base.digest

    @property
    def sets(self) -> tuple[PolicySet, ...]:
        """The file's own policy, and then its variants."""
        return (self.base, *self.variants.values())

    def choose(self, asking: Asking) -> PolicySet:
        """Return the policies that a request comes under."""
        settings = self.settings
        variant = asking.variant or next((each.variant for each in settings.overrides if each.fits(asking)), None)
        if variant is None and settings.canary and self._place(asking.caller) < settings.canary.percent:
            variant = settings.canary.variant
        return self.variants[variant] if variant else self.base

    def _place(self, caller: str) -> float:
        """Return a caller's place among all, in percent: the same in every process, whatever the policy's version."""
        digest = hashlib.sha256(f"{self.base.policy.name}:{caller}".encode()).digest()
        return 100 * int.from_bytes(digest[:8]) / 2**64


@dataclass(slots=True)
class InForce:
    """Which policies a process goes by now. A request keeps those that it came in under."""

    current: Rollout
