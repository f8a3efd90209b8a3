"""Asking: what a caller may ask of the guard in a request, and who the caller is.

A client may tighten what happens to its own request, never loosen it, unless the operator's policy names it.
"""

import hashlib
from collections.abc import Iterable, Mapping
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from guard.policy import Caller, Policy
from guard.rollout import Rollout
from serving.api.keys import bearer

_Mode = Literal["score", "block"]

NO_BEAMS = "Beam search is not available here: leave use_beam_search out, or sample with n."


class _Side(BaseModel):
    model_config = ConfigDict(extra="ignore")
    mode: _Mode | None = None


class _ModerationPolicy(BaseModel):
    model_config = ConfigDict(extra="ignore")
    input: _Side | None = None


class Moderation(BaseModel):
    """A request's `moderation` object, as OpenAI's specification has it; `mode` may also stand at the top."""

    model_config = ConfigDict(extra="ignore")
    model: str | None = None
    mode: _Mode | None = None
    policy: _ModerationPolicy | None = None
    variant: str | None = None
    """The variant of the operator's policy that the caller asks for."""

    @property
    def input_mode(self) -> _Mode:
        """The mode asked for the prompt."""
        return self._stated_mode or "score"

    @property
    def wants_no_action(self) -> bool:
        """Whether it asks for scores alone. One that asks for a variant, and for no mode, wants that variant's
        actions.
        """
        return self.input_mode == "score" and (self._stated_mode is not None or self.variant is None)

    @property
    def _stated_mode(self) -> _Mode | None:
        side = self.policy.input if self.policy else None
        return (side.mode if side else None) or self.mode


class BadModeration(ValueError):
    """The request's `moderation` object is malformed; the text is fit for the client."""


class UnguardedRequest(ValueError):
    """The request asks for a way of generating that is not guarded; the text is fit for the client."""


def require_guarded(content: Mapping[str, Any]) -> None:
    """Raise `UnguardedRequest` for beam search: vLLM runs each beam's every token as a prompt of its own."""
    if content.get("use_beam_search"):
        raise UnguardedRequest(NO_BEAMS)


def read_moderation(content: Mapping[str, Any]) -> Moderation | None:
    """Return the request's `moderation` object, if it has one. Raises `BadModeration`."""
    if content.get("moderation") is None:
        return None
    try:
        return Moderation.model_validate(content["moderation"])
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in ("moderation", *first["loc"]))
        raise BadModeration(f"{where}: {first['msg']}") from error


def granted_variant(moderation: Moderation | None, caller: Caller | None, rollout: Rollout) -> str | None:
    """Return the variant that the caller asks for, if any. Raises `BadModeration` for one that it may not have."""
    wanted = moderation.variant if moderation else None
    if wanted is None:
        return None
    # One that is not there and one that is not granted look alike from outside.
    if caller is None or wanted not in caller.may_choose or wanted not in rollout.variants:
        raise BadModeration("moderation.variant: this caller may not ask for it")
    return wanted


def wants_usage(content: Mapping[str, Any]) -> bool:
    """Return whether the request asks for the token counts of its stream."""
    options = content.get("stream_options")
    # Where a route does not know the key, vLLM accepts any value.
    return isinstance(options, dict) and bool(options.get("include_usage"))


def identify(headers: Iterable[tuple[bytes, bytes]], policy: Policy) -> Caller | None:
    """Return the policy's entry for the bearer of the request's token, if it has one."""
    token = bearer(headers) if policy.callers else None
    if token is None:
        return None
    digest = hashlib.sha256(token).hexdigest()
    return next((caller for caller in policy.callers if caller.is_known_by(digest)), None)


def asked(moderation: Moderation | None, caller: Caller | None) -> dict[str, Any]:
    """Return what goes to the gate with the request; empty for the request that asks nothing."""
    if moderation is None:
        return {}
    if moderation.input_mode == "block":
        return {"tighten": True}
    if caller is not None and caller.may_shadow and moderation.wants_no_action:
        return {"shadow": True, "caller": caller.key_sha256}
    return {}
