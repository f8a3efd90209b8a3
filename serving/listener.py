"""The listener: hears verdicts where vLLM's engine client hands its outputs to the OpenAI routes.

Every generating route calls `engine_client.generate`, so wrapping that one method sees every verdict. It also takes the
verdict off the output, where a non-streaming response would print it, and puts the operator's message in place of the
tokens that a blocked completion does not have.
"""

from collections.abc import AsyncGenerator, Callable
from typing import Any

from vllm.outputs import RequestOutput
from vllm.sampling_params import SamplingParams

from guard.metrics import GuardMetrics
from guard.verdict import Verdict
from serving.engine.wire import EXTRA, STOP_BLOCKED
from serving.exchange import Exchange, Prompt, current

Generate = Callable[..., AsyncGenerator[RequestOutput, None]]


def listen(generate: Generate, message: str, metrics: GuardMetrics) -> Generate:
    """Return vLLM's `generate`, hearing verdicts; `message` is what a blocked completion says."""

    def listening(
        prompt: Any, sampling_params: SamplingParams, request_id: str, **options: Any
    ) -> AsyncGenerator[RequestOutput, None]:
        exchange = current.get()
        lora = options.get("lora_request")
        entry = Prompt(request_id, n=sampling_params.n or 1, model=lora.lora_name if lora else None)
        if exchange is not None:
            exchange.prompts.append(entry)
        params = _with_asked(sampling_params, exchange)
        return _heard(generate(prompt, params, request_id, **options), entry, message, metrics)

    return listening


def _with_asked(params: SamplingParams, exchange: Exchange | None) -> SamplingParams:
    # A client can fill `extra_args` through `vllm_xargs`; what it put under the guard's key is thrown away.
    extra = {key: value for key, value in (params.extra_args or {}).items() if key != EXTRA}
    if exchange is not None and exchange.asked:
        extra[EXTRA] = exchange.asked
    params.extra_args = extra or None
    return params


async def _heard(
    outputs: AsyncGenerator[RequestOutput, None], entry: Prompt, message: str, metrics: GuardMetrics
) -> AsyncGenerator[RequestOutput, None]:
    try:
        async for output in outputs:
            if carried := _take_verdict(output):
                _record(entry, carried, metrics)
            _note_completions(entry, output, message)
            yield output
    finally:
        # Counted first: closing waits for vLLM, and a request that is cancelled once more meanwhile goes no further.
        if entry.verdict is None:
            metrics.observe_aborted()
        await outputs.aclose()


def _take_verdict(output: RequestOutput) -> dict[str, Any] | None:
    params = output.kv_transfer_params
    if not params or EXTRA not in params:
        return None
    output.kv_transfer_params = {key: value for key, value in params.items() if key != EXTRA} or None
    carried: dict[str, Any] = params[EXTRA]
    return carried


def _record(entry: Prompt, carried: dict[str, Any], metrics: GuardMetrics) -> None:
    # Each of n completions brings its own verdict, and brings it with every output: the prompt is counted once.
    if entry.verdict is not None and entry.verdict.event_id == carried["event_id"]:
        return
    verdict = Verdict.from_wire(carried)
    if entry.verdict is None:
        metrics.observe(verdict)
        entry.verdict = verdict
    elif verdict.action.severity > entry.verdict.action.severity:
        entry.verdict = verdict


def _note_completions(entry: Prompt, output: RequestOutput, message: str) -> None:
    entry.num_tokens = len(output.prompt_token_ids or ())
    for completion in output.outputs:
        if completion.stop_reason == STOP_BLOCKED:
            entry.blocked.add(completion.index)
            completion.text, completion.finish_reason, completion.stop_reason = message, "content_filter", None
        else:
            entry.passed = True
