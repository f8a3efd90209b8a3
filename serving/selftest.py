"""The self-test: no port opens before a canary prompt went through the whole engine and came back scored."""

import asyncio
import math
from typing import Any

from vllm.sampling_params import SamplingParams

from guard.verdict import Verdict
from probes.errors import ServingError
from serving.engine.wire import EXTRA

TIMEOUT_S = 300.0
_REMEDY = "do not serve with this set-up: it would not guard; report the versions and the model"


async def canary(engine_client: Any) -> Verdict:
    """Return the verdict on a canary prompt. Raises `ServingError` when the guard did not see it."""
    try:
        verdict = await asyncio.wait_for(_ask(engine_client), TIMEOUT_S)
    except TimeoutError as error:
        raise ServingError(f"no answer within {TIMEOUT_S:.0f} s", field="self-test", remedy=_REMEDY) from error
    if verdict is None:
        raise ServingError("the engine answered, but no verdict came with it", field="self-test", remedy=_REMEDY)
    if verdict.unscored or not all(map(math.isfinite, verdict.scores.values())):
        raise ServingError(f"the canary prompt was not scored ({verdict.unscored})", field="self-test", remedy=_REMEDY)
    return verdict


async def _ask(engine_client: Any) -> Verdict | None:
    verdict = None
    vocabulary = engine_client.model_config.get_vocab_size()
    prompt = {"prompt_token_ids": [(7 * place + 3) % vocabulary for place in range(24)]}
    async for output in engine_client.generate(prompt, SamplingParams(max_tokens=1), "foreguard-canary"):
        carried = (output.kv_transfer_params or {}).get(EXTRA)
        verdict = Verdict.from_wire(carried) if carried else verdict
    return verdict
