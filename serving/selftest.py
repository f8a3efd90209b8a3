"""The self-test: no port opens before a canary prompt went through the whole engine and came back scored."""

import asyncio
import math
import uuid
from collections.abc import AsyncGenerator, Callable
from typing import Any

from vllm.sampling_params import SamplingParams

from guard.verdict import Verdict
from probes.errors import ServingError
from serving.engine.wire import CANARY, EXTRA, PROMPT, VERDICT

TIMEOUT_S = 300.0
Generate = Callable[..., AsyncGenerator[Any, None]]
_REMEDY = "do not serve with this set-up: it would not guard; report the versions and the model"


async def canary(engine_client: Any) -> Verdict:
    """Return the verdict on a canary prompt. Raises `ServingError` when the guard did not see it.

    Every engine of a data-parallel group is asked, and then every rank whether it read the same.
    """
    try:
        verdicts = await asyncio.wait_for(ask_engines(engine_client, engine_client.generate), TIMEOUT_S)
    except TimeoutError as error:
        raise ServingError(f"no answer within {TIMEOUT_S:.0f} s", field="self-test", remedy=_REMEDY) from error
    await _require_agreement(engine_client)
    return verdicts[0]


async def ask_engines(engine_client: Any, generate: Generate) -> list[Verdict]:
    """Return the verdict of each engine on a canary prompt. Raises `ServingError` when one did not see it.

    `generate` is vLLM's own: what goes through the listener's is traffic.
    """
    return [_scored(await _ask(engine_client, generate, rank)) for rank in engines(engine_client)]


def _scored(verdict: Verdict | None) -> Verdict:
    if verdict is None:
        raise ServingError("the engine answered, but no verdict came with it", field="self-test", remedy=_REMEDY)
    if verdict.unscored or not all(map(math.isfinite, verdict.scores.values())):
        raise ServingError(f"the canary prompt was not scored ({verdict.unscored})", field="self-test", remedy=_REMEDY)
    return verdict


def engines(engine_client: Any) -> list[int | None]:
    """Return the data-parallel ranks that this API server sends requests to."""
    engines = getattr(getattr(engine_client, "engine_core", None), "core_engines", None) or [None]
    return list(range(len(engines))) if len(engines) > 1 else [None]


async def _require_agreement(engine_client: Any) -> None:
    try:
        await asyncio.wait_for(engine_client.collective_rpc("foreguard_require_agreement"), TIMEOUT_S)
    except Exception as error:  # whatever a worker raised, in whichever wrapping its executor sends it here
        raise ServingError(f"the ranks do not agree: {error}", field="self-test", remedy=_REMEDY) from error


async def _ask(engine_client: Any, generate: Generate, rank: int | None) -> Verdict | None:
    verdict = None
    vocabulary = engine_client.model_config.get_vocab_size()
    prompt = {"prompt_token_ids": [(7 * place + 3) % vocabulary for place in range(24)]}
    # No two API server processes ask under one name.
    name = f"foreguard-canary-{uuid.uuid4().hex}"
    params = SamplingParams(max_tokens=1, extra_args={EXTRA: {PROMPT: CANARY}})
    async for output in generate(prompt, params, name, data_parallel_rank=rank):
        carried = (output.kv_transfer_params or {}).get(EXTRA)
        verdict = Verdict.from_wire(carried[VERDICT]) if carried else verdict
    return verdict
