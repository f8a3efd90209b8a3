"""What the policies say of a request: that of the model, and those of its adapters.

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
from guard.verdict import Action, Unscored, Verdict
from probes.artifact import Artifact
from serving.config import GuardConfig
from serving.core.case import Case
from serving.core.constraints import constraint_of
from serving.wire import EXTRA, PROMPT

logger = init_logger("vllm.foreguard.gate")


class Policies:
    """The policies in force, each bound to its artifact. A subject is the model itself (0) or one of its adapters."""

    def __init__(self, config: GuardConfig, artifacts: Sequence[Artifact]) -> None:
        """`artifacts` are those of `config`. Raises `PolicyError` for a policy that does not fit them."""
        self.bound = config.bind_policies(artifacts).subjects
        self._strengths = _strengths(self.bound, artifacts)
        self._adapters = {(each.name, each.path): number for number, each in enumerate(config.adapters, 1)}
        self._behind_middleware = config.behind_middleware

    def subject_of(self, request: Request) -> int | None:
        """Return whose probes score the request, as `Case.subject` has it."""
        adapter = request.lora_request
        # Another folder under a known name is another adapter: vLLM may be told to load one while it runs.
        return 0 if adapter is None else self._adapters.get((adapter.lora_name, Path(adapter.lora_path)))

    def strengths(self, case: Case) -> list[float]:
        """Return how strongly each steering vector of all artifacts acts on the case's answer, `[S]`."""
        return self._strengths[case.subject or 0]

    def on_prompt(self, case: Case, scores: list[list[float]] | str) -> Verdict:
        """Return the verdict on a prompt by its turns' `scores` `[turns][K]`, or by the reason why it has none."""
        policy, asked = self.bound[case.subject or 0], asked_of(case.request)
        tighten = bool(asked.get("tighten"))
        try:
            reading = Unscored(scores) if isinstance(scores, str) else scores
            verdict = policy.judge_turns(
                reading,
                case.ending,
                has_media=bool(case.request.mm_features),
                tighten=tighten,
                shadow=self._may_shadow(asked),
            )
        except Exception:
            # Whatever failed, the request is unscored, counted and treated as the policy says, and the engine lives on.
            logger.exception("the policy failed on a request; it is treated as unscored")
            verdict = policy.judge(Unscored.POLICY_ERROR, tighten=tighten)
        if self._behind_middleware and PROMPT not in asked:
            verdict = _bypassing(verdict, policy)
        return self._held_to(case, verdict)

    def on_answer(self, case: Case, reading: npt.NDArray[np.float64] | Unscored) -> Verdict:
        """Return the verdict on an answer by its watches' scores so far `[W]`, or by the reason why it has none."""
        asked, rules = asked_of(case.request), self.bound[case.subject or 0].answers
        assert rules is not None  # noqa: S101 - or the answer would not be watched
        verdict = rules.judge(reading, tighten=bool(asked.get("tighten")), shadow=self._may_shadow(asked))
        return self._held_to(case, verdict)

    def _held_to(self, case: Case, verdict: Verdict) -> Verdict:
        """Return the verdict, or a block in place of a steer that the request's own constraints may undo.

        The policy may have such a request steered all the same.
        """
        steering = self.bound[case.subject or 0].policy.steering
        if verdict.decision is not Action.STEER or steering is None or steering.constrained is Action.STEER:
            return verdict
        constraint = constraint_of(case.request.sampling_params)
        return verdict.blocked_for(constraint) if constraint else verdict

    def _may_shadow(self, asked: dict[str, Any]) -> bool:
        # Loosening needs the digest of a key that the policy names: not even a hole in the API server could forge it.
        return bool(asked.get("shadow")) and any(
            caller.may_shadow and caller.is_known_by(asked.get("caller")) for caller in self.bound[0].policy.callers
        )


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


def _strengths(policies: Sequence[BoundPolicy], artifacts: Sequence[Artifact]) -> list[list[float]]:
    """Return for the model and each adapter how strongly every artifact's vectors act when it is steered, `[S]`."""
    vectors = [(owner, vector.name) for owner, each in enumerate(artifacts) for vector in each.manifest.steering]

    def of(subject: int) -> list[float]:
        steering = policies[subject].policy.steering
        return [steering.strength if steering and (subject, steering.vector) == each else 0.0 for each in vectors]

    return [of(subject) for subject in range(len(artifacts))]
