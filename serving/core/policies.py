"""What the policies say of a request: that of the model, and those of its adapters, as they were when it came in.

It touches, of `vllm/v1/request.py`: `Request` (`lora_request`, `mm_features`, `sampling_params`); of
`vllm/lora/request.py`: `lora_name`, `lora_path`.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from vllm.logger import init_logger
from vllm.v1.request import Request

from guard.decide import BoundPolicy
from guard.policy import Policy, Steering
from guard.policy_file import parse_policies
from guard.policy_set import PolicySet
from guard.rollout import Rollout
from guard.verdict import Action, Beside, Unscored, Verdict
from probes.artifact import Artifact
from serving.config import GuardConfig
from serving.core.case import Case
from serving.core.constraints import constraint_of
from serving.wire import EXTRA, POLICY, POLICY_TEXT, PROMPT

logger = init_logger("vllm.foreguard.gate")

_MOST_KNOWN = 256
"""Policies, of files that have 17 at most. A request names the one that was in force when it came in: no dozen files
follow on each other before it is here."""


class Policies:
    """The policies of requests in the engine, each bound to the artifacts. A subject is the model itself (0) or one of
    its adapters.

    An API process hands over each policy before it answers by it, and names it in every request.
    """

    def __init__(self, config: GuardConfig, artifacts: Sequence[Artifact]) -> None:
        """`artifacts` are those of `config`. Raises `PolicyError` for a policy that does not fit them."""
        self._config = config
        self._artifacts = artifacts
        self._adapters = {(each.name, each.path): number for number, each in enumerate(config.adapters, 1)}
        self._known: dict[str, PolicySet] = {}
        self.current = self._keep(config.bind_policies(artifacts))
        """The last that was handed over: what requests go by that name none, or one that is not known."""

    @property
    def known(self) -> list[Policy]:
        """All policies that requests may name."""
        return [each.policy for each in self._known.values()]

    def open(self, request: Request, before: Case | None = None) -> Case:
        """Return a request's case, under the policy that it names, or of one that goes on: as it was `before`."""
        if before is not None:
            return Case(request, before.subject, policy=before.policy, beside=before.beside, strengths=before.strengths)
        asked, subject = asked_of(request), self._subject_of(request)
        if POLICY_TEXT in asked:
            self._take(asked[POLICY], asked[POLICY_TEXT])
        policies = self._known.get(asked.get(POLICY, ""), self.current)
        policy = policies.subjects[subject or 0]
        beside = policies.beside.subjects[subject or 0] if policies.beside else None
        strengths = _strengths(subject or 0, policy.policy.steering, self._artifacts)
        return Case(request, subject, policy=policy, beside=beside, strengths=strengths)

    def _take(self, digest: str, text: str) -> None:
        """Take in the policy file whose own policy has this digest."""
        try:
            if digest in self._known:
                self.current = self._known[digest]
            else:
                self.current = self._keep(self._config.bind(parse_policies(text), self._artifacts))
        except Exception:
            # The canary that brings it comes back under another policy, and the API process goes on by its own.
            logger.exception("a policy could not be taken in; requests go by %s", self.current.policy.label)

    def _keep(self, rollout: Rollout) -> PolicySet:
        """Keep all policies of a file at hand; return its own."""
        self._known |= {each.digest: each for each in rollout.sets}
        for digest in list(self._known)[:-_MOST_KNOWN]:
            del self._known[digest]
        return rollout.base

    def _subject_of(self, request: Request) -> int | None:
        """Return whose probes score the request, as `Case.subject` has it."""
        adapter = request.lora_request
        # Another folder under a known name is another adapter: vLLM may be told to load one while it runs.
        return 0 if adapter is None else self._adapters.get((adapter.lora_name, Path(adapter.lora_path)))

    def on_prompt(self, case: Case, scores: list[list[float]] | str) -> Verdict:
        """Return the verdict on a prompt by its turns' `scores` `[turns][K]`, or by the reason why it has none."""
        policy, asked = _policy_of(case), asked_of(case.request)
        tighten = bool(asked.get("tighten"))
        try:
            reading = Unscored(scores) if isinstance(scores, str) else scores
            verdict = policy.judge_turns(
                reading,
                case.ending,
                has_media=bool(case.request.mm_features),
                tighten=tighten,
                shadow=_may_shadow(policy.policy, asked),
            )
        except Exception:
            # Whatever failed, the request is unscored, counted and treated as the policy says, and the engine lives on.
            logger.exception("the policy failed on a request; it is treated as unscored")
            verdict = policy.judge(Unscored.POLICY_ERROR, tighten=tighten)
        if self._config.behind_middleware and PROMPT not in asked:
            verdict = _bypassing(verdict, policy)
        return replace(_held_to(case, policy.policy, verdict), beside=_beside(case, scores, tighten=tighten))

    def on_answer(self, case: Case, reading: npt.NDArray[np.float64] | Unscored) -> Verdict:
        """Return the verdict on an answer by its watches' scores so far `[W]`, or by the reason why it has none."""
        asked, rules = asked_of(case.request), case.answer_rules
        assert rules is not None  # noqa: S101 - or the answer would not be watched
        shadow = _may_shadow(rules.policy, asked)
        verdict = rules.judge(reading, tighten=bool(asked.get("tighten")), shadow=shadow)
        return _held_to(case, rules.policy, verdict)


def asked_of(request: Request) -> dict[str, Any]:
    """Return what the API process says and asks about the request; nothing of one that did not come through it."""
    given = (request.sampling_params.extra_args or {}).get(EXTRA) if request.sampling_params else None
    # No client can give a mapping here: it is the verdict reader's, or it is none.
    return given if isinstance(given, dict) else {}


def _bypassing(verdict: Verdict, policy: BoundPolicy) -> Verdict:
    """Return the verdict on a request that came past the verdict reader, where nothing will hide or count it.

    It is unscored, but where its scores call for more than the policy does of those; and it tells no scores.
    """
    logger.error("a request came past the guard's part of the API server; it is unscored")
    unscored = policy.judge(Unscored.BYPASSED)
    severest = verdict if verdict.action.severity > unscored.action.severity else unscored
    return replace(severest, scores={}, unscored=Unscored.BYPASSED)


def _held_to(case: Case, policy: Policy, verdict: Verdict) -> Verdict:
    """Return the policy's verdict, or a block in place of a steer that the request's own constraints may undo.

    The policy may have such a request steered all the same.
    """
    steering = policy.steering
    if verdict.decision is not Action.STEER or steering is None or steering.constrained is Action.STEER:
        return verdict
    constraint = constraint_of(case.request.sampling_params)
    return verdict.blocked_for(constraint) if constraint else verdict


def _beside(case: Case, scores: list[list[float]] | str, *, tighten: bool) -> Beside | None:
    """Return what the policy that is only recorded would have decided, if there is one, and the prompt has scores."""
    if case.beside is None or isinstance(scores, str):
        return None
    try:
        has_media = bool(case.request.mm_features)
        verdict = case.beside.judge_turns(scores, case.ending, has_media=has_media, tighten=tighten)
        verdict = _held_to(case, case.beside.policy, verdict)
    except Exception:
        # It decides nothing: what fails here costs a record.
        logger.exception("the policy beside failed on a request")
        return None
    return Beside(verdict.decision, verdict.policy, verdict.rule, verdict.category)


def _policy_of(case: Case) -> BoundPolicy:
    assert case.policy is not None  # noqa: S101 - `Policies.open` gave it one
    return case.policy


def _may_shadow(policy: Policy, asked: dict[str, Any]) -> bool:
    # Loosening needs the digest of a key that the policy names: not even a hole in the API server could forge it.
    return bool(asked.get("shadow")) and any(
        caller.may_shadow and caller.is_known_by(asked.get("caller")) for caller in policy.callers
    )


def _strengths(subject: int, steering: Steering | None, artifacts: Sequence[Artifact]) -> list[float]:
    """Return how strongly every artifact's vectors act on the subject's answer where it is steered, `[S]`."""
    return [
        steering.strength if steering and (owner, vector.name) == (subject, steering.vector) else 0.0
        for owner, artifact in enumerate(artifacts)
        for vector in artifact.manifest.steering
    ]
