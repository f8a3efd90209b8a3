"""The self-test: no port opens before a canary prompt went through the whole engine and came back with the right
scores.

It touches, of `vllm/v1/engine/async_llm.py`: `generate`, `collective_rpc`, `model_config`, `engine_core`; of
`vllm/v1/engine/core_client.py`: `core_engines`.
"""

import asyncio
import logging
import math
import uuid
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from vllm.sampling_params import SamplingParams

from guard.verdict import Verdict
from probes.artifact import Artifact
from probes.canary import canary_prompt, tolerances
from probes.errors import PolicyError, ServingError
from probes.template import Template
from serving.wire import CANARY, EXTRA, POLICY, POLICY_TEXT, PROMPT, VERDICT

logger = logging.getLogger("vllm.foreguard.selftest")

TIMEOUT_S = 300.0
Generate = Callable[..., AsyncGenerator[Any, None]]
_REMEDY = "do not serve with this set-up: it would not guard; report the versions and the model"


@dataclass(frozen=True, slots=True)
class Expected:
    """What an engine must answer to the canary prompt, asked of the model itself or of one of its adapters."""

    scores: Mapping[str, float]
    """By probe, as calibration had them; none where the artifact keeps none."""
    tolerances: Mapping[str, float]
    """By probe, how far they may be away."""
    template: Template | None
    """The chat template, as whose the prompt ends."""
    adapter: Any = None
    """vLLM's `LoRARequest`, for an adapter."""

    @classmethod
    def of(cls, artifact: Artifact, adapter: Any = None) -> "Expected":
        """Return what is expected of the model that `artifact` was calibrated on."""
        kept = artifact.manifest.canary
        if not kept:
            logger.warning(
                "an artifact (%s) keeps no scores of the canary prompt, so that wrong ones go unnoticed: calibrate "
                "again",
                artifact.manifest.digest[:12],
            )
        allowed = tolerances(artifact) if kept else {}
        return cls(kept, allowed, artifact.manifest.template, adapter)

    def require(self, verdict: Verdict | None, policy: str) -> Verdict:
        """Return the verdict, which is to be by the `policy` of this digest.

        Raises `ServingError` where the guard did not see the prompt, or read something else, and `PolicyError` where it
        decided by another policy.
        """
        if verdict is None:
            raise ServingError("the engine answered, but no verdict came with it", field="self-test", remedy=_REMEDY)
        if verdict.unscored or not all(map(math.isfinite, verdict.scores.values())):
            problem = f"the canary prompt was not scored ({verdict.unscored})"
            raise ServingError(problem, field="self-test", remedy=_REMEDY)
        if verdict.policy_digest != policy:
            raise PolicyError(
                f"an engine decides by another policy ({verdict.policy}, digest {verdict.policy_digest}; here {policy})",
                field="policy",
                remedy="start the server again; where it runs on several machines, give all of them one policy",
            )
        self._require_scores(verdict)
        return verdict

    def _require_scores(self, verdict: Verdict) -> None:
        wrong = [
            f"{probe} {verdict.scores[probe]:.4g}, not {score:.4g} ± {self.tolerances[probe]:.2g}"
            for probe, score in self.scores.items()
            if abs(verdict.scores[probe] - score) > self.tolerances[probe]
        ]
        if wrong:
            name = f"adapter {self.adapter.lora_name}" if self.adapter else "the model"
            raise ServingError(
                f"{name} gives the canary prompt other scores than it did when it was calibrated: {'; '.join(wrong)}",
                field="self-test",
                remedy="serve what was calibrated, by the same numbers; where this is it, calibrate it with --engine "
                "vllm",
            )


async def canary(engine_client: Any, expected: Sequence[Expected], policy: str) -> Verdict:
    """Return the model's verdict on a canary prompt.

    Raises `ForeguardError` when the guard did not see it as `expected`. Every engine of a data-parallel group is asked,
    for the model itself, which is `expected` first, and for each adapter; and then every rank whether it read the same.
    """
    try:
        asking = ask_engines(engine_client, engine_client.generate, expected, policy)
        verdicts = await asyncio.wait_for(asking, TIMEOUT_S)
    except TimeoutError as error:
        raise ServingError(f"no answer within {TIMEOUT_S:.0f} s", field="self-test", remedy=_REMEDY) from error
    await _require_agreement(engine_client)
    return verdicts[0]


async def ask_engines(
    engine_client: Any, generate: Generate, expected: Sequence[Expected], policy: str, text: str | None = None
) -> list[Verdict]:
    """Return the verdict of each engine on a canary prompt, by the `policy` of this digest.

    Raises `ForeguardError` when one is not as `expected`.

    A policy that is new to the engines comes with its `text`, in YAML. `generate` is vLLM's own: what goes through the
    verdict reader's is traffic.
    """
    about = {POLICY: policy} | ({} if text is None else {POLICY_TEXT: text})
    asked = [(each, rank) for each in expected for rank in engines(engine_client)]
    # All at once: none waits for another engine's queue.
    verdicts = await asyncio.gather(*(_ask(engine_client, generate, rank, each, about) for each, rank in asked))
    return [each.require(verdict, policy) for (each, _), verdict in zip(asked, verdicts, strict=True)]


def engines(engine_client: Any) -> list[int | None]:
    """Return the data-parallel ranks that this API server sends requests to."""
    engines = getattr(getattr(engine_client, "engine_core", None), "core_engines", None) or [None]
    return list(range(len(engines))) if len(engines) > 1 else [None]


async def _require_agreement(engine_client: Any) -> None:
    try:
        await asyncio.wait_for(engine_client.collective_rpc("foreguard_require_agreement"), TIMEOUT_S)
    except Exception as error:  # whatever a worker raised, in whichever wrapping its executor sends it here
        raise ServingError(f"the ranks do not agree: {error}", field="self-test", remedy=_REMEDY) from error


async def _ask(
    engine_client: Any, generate: Generate, rank: int | None, asked: Expected, about: dict[str, str]
) -> Verdict | None:
    verdict = None
    prompt = {"prompt_token_ids": canary_prompt(engine_client.model_config.get_vocab_size(), asked.template)}
    # No two API server processes ask under one name.
    name = f"foreguard-canary-{uuid.uuid4().hex}"
    params = SamplingParams(max_tokens=1, extra_args={EXTRA: {PROMPT: CANARY, **about}})
    async for output in generate(prompt, params, name, lora_request=asked.adapter, data_parallel_rank=rank):
        carried = (output.kv_transfer_params or {}).get(EXTRA)
        verdict = Verdict.from_wire(carried[VERDICT]) if carried else verdict
    return verdict
