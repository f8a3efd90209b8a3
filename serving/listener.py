"""The listener: hears verdicts where vLLM's engine client hands its outputs to the OpenAI routes.

Every generating route calls `engine_client.generate`, so wrapping that one method sees every verdict. It also takes the
verdict off the output, where a non-streaming response would print it, and puts the operator's message in place of the
tokens that a blocked completion does not have. An answer that comes without a verdict is unscored, and treated as the
policy says: whatever took the gate out of the engine, nothing leaves unguarded.
"""

from collections.abc import AsyncGenerator, Callable
from contextlib import suppress
from functools import partial
from typing import Any

from vllm.logger import init_logger
from vllm.outputs import CompletionOutput, RequestOutput
from vllm.sampling_params import SamplingParams

from guard.decide import BoundPolicy
from guard.metrics import GuardMetrics
from guard.verdict import Action, Unscored, Verdict
from serving.engine.wire import EXTRA, STOP_BLOCKED
from serving.exchange import Exchange, Prompt, current

logger = init_logger("vllm.foreguard.listener")

Generate = Callable[..., AsyncGenerator[RequestOutput, None]]


def listen(generate: Generate, policy: BoundPolicy, metrics: GuardMetrics) -> Generate:
    """Return vLLM's `generate`, hearing verdicts; `policy` is for answers that come without one."""

    def listening(
        prompt: Any, sampling_params: SamplingParams, request_id: str, **options: Any
    ) -> AsyncGenerator[RequestOutput, None]:
        exchange = current.get()
        lora = options.get("lora_request")
        entry = Prompt(request_id, n=sampling_params.n or 1, model=lora.lora_name if lora else None)
        if exchange is not None:
            exchange.prompts.append(entry)
        params = _with_asked(sampling_params, exchange)

        def undecided() -> Verdict:
            asked = exchange.asked if exchange is not None else {}
            tighten, shadow = bool(asked.get("tighten")), bool(asked.get("shadow"))
            return policy.judge(Unscored.NO_VERDICT, tighten=tighten, shadow=shadow)

        outputs = generate(prompt, params, request_id, **options)
        return _heard(outputs, entry, undecided, policy.policy.response.message, metrics)

    return listening


def _with_asked(params: SamplingParams, exchange: Exchange | None) -> SamplingParams:
    # A client can fill `extra_args` through `vllm_xargs`; what it put under the guard's key is thrown away. Where nothing
    # is asked the key is there all the same: by it the gate knows that the request came this way.
    params.extra_args = {**(params.extra_args or {}), EXTRA: exchange.asked if exchange is not None else {}}
    return params


async def _heard(
    outputs: AsyncGenerator[RequestOutput, None],
    entry: Prompt,
    undecided: Callable[[], Verdict],
    message: str,
    metrics: GuardMetrics,
) -> AsyncGenerator[RequestOutput, None]:
    """Yield what may leave. `undecided` gives the verdict on an answer that comes without one."""
    try:
        async for output in outputs:
            if carried := _take_verdict(output):
                _take_in(entry, carried, metrics)
            elif entry.verdict is None and _has_tokens(output):
                logger.error("an answer came without a verdict; it is unscored")
                verdict = undecided()
                _record(entry, verdict, metrics)
                if verdict.action is Action.BLOCK:
                    withheld = _withheld(output, entry.n)
                    _note_completions(entry, withheld, message)
                    yield withheld
                    return  # and the engine is told to stop
            _note_completions(entry, output, message)
            yield output
    finally:
        # Counted first: closing waits for vLLM, and a request that is cancelled once more meanwhile goes no further.
        if entry.verdict is None:
            _count(metrics.observe_aborted, metrics)
        await outputs.aclose()


def _take_verdict(output: RequestOutput) -> dict[str, Any] | None:
    params = output.kv_transfer_params
    if not params or EXTRA not in params:
        return None
    output.kv_transfer_params = {key: value for key, value in params.items() if key != EXTRA} or None
    carried: dict[str, Any] = params[EXTRA]
    return carried


def _has_tokens(output: RequestOutput) -> bool:
    return any(completion.token_ids or completion.text for completion in output.outputs)


def _withheld(output: RequestOutput, n: int) -> RequestOutput:
    """Return the output as if the gate had ended all `n` completions at it."""
    output.outputs = [
        CompletionOutput(index, "", [], None, None, finish_reason="stop", stop_reason=STOP_BLOCKED)
        for index in range(n)
    ]
    output.finished = True
    return output


def _take_in(entry: Prompt, carried: dict[str, Any], metrics: GuardMetrics) -> None:
    # The verdict comes with every output, to be read once.
    if entry.verdict is None or entry.verdict.event_id != carried["event_id"]:
        _record(entry, Verdict.from_wire(carried), metrics)


def _record(entry: Prompt, verdict: Verdict, metrics: GuardMetrics) -> None:
    # Each of n completions brings a verdict of its own: the prompt is counted once.
    if entry.verdict is None:
        entry.verdict = verdict
        _count(partial(metrics.observe, verdict), metrics)
    elif verdict.action.severity > entry.verdict.action.severity:
        entry.verdict = verdict


def _count(count: Callable[[], None], metrics: GuardMetrics) -> None:
    try:
        count()
    except Exception:
        # The verdict holds, counted or not: a full disk under the metrics is no reason to answer nobody.
        logger.exception("a prompt could not be counted")
        with suppress(Exception):
            metrics.observe_unrecorded()


def _note_completions(entry: Prompt, output: RequestOutput, message: str) -> None:
    entry.num_tokens = len(output.prompt_token_ids or ())
    for completion in output.outputs:
        if completion.stop_reason == STOP_BLOCKED:
            entry.blocked.add(completion.index)
            completion.text, completion.finish_reason, completion.stop_reason = message, "content_filter", None
        else:
            entry.passed = True
