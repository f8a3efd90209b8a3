"""The listener: hears verdicts where the engine's outputs arrive in the API process.

Every generating route calls `engine_client.generate`, so wrapping that one method sees every prompt. Verdicts ride the
first output of a request, and are noted before vLLM makes anything of it: it merges outputs that nobody has taken yet,
drops those of an answer that is not streamed, and ends an answer at a stop string that the engine knows nothing of.
An answer that comes without a verdict is unscored, and treated as the policy says: whatever took the gate out of the
engine, nothing leaves unguarded.

It touches, of `vllm/v1/engine/async_llm.py`: `generate` and `output_processor.process_outputs`, both wrapped.
"""

import copy
import itertools
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import suppress
from functools import partial
from typing import Any

from vllm.logger import init_logger
from vllm.outputs import CompletionOutput, RequestOutput
from vllm.sampling_params import SamplingParams

from guard.decide import BoundPolicy
from guard.metrics import GuardMetrics
from guard.verdict import Action, Unscored, Verdict
from serving.decision_log import DecisionLog
from serving.engine.wire import ANSWER, CANARY, EXTRA, PROMPT, STOP_ANSWER, STOP_BLOCKED, VERDICT
from serving.exchange import Exchange, Prompt, current
from serving.hidden_logprobs import hide_prompt

logger = init_logger("vllm.foreguard.listener")

Generate = Callable[..., AsyncGenerator[RequestOutput, None]]


class Listener:
    """Hears the verdicts on all prompts of this process."""

    def __init__(
        self,
        policy: BoundPolicy,
        metrics: GuardMetrics,
        log: DecisionLog | None = None,
        on_scored: Callable[[], None] = lambda: None,
    ) -> None:
        """`policy` is for answers that come without a verdict, and has what a blocked completion says.

        `on_scored` is told of each prompt that has a score.
        """
        self._policy = policy
        self._message = policy.policy.response.message
        self._metrics = metrics
        self._log = log or DecisionLog(policy.policy, "")
        self._on_scored = on_scored
        self._prompts: dict[int, Prompt] = {}
        self._numbers = itertools.count()

    def attach(self, engine_client: Any) -> None:
        """Listen to vLLM's engine client."""
        engine_client.generate = self._listening(engine_client.generate)
        processor = engine_client.output_processor
        processor.process_outputs = self._hearing(processor.process_outputs)

    def _hearing(self, process: Callable[..., Any]) -> Callable[..., Any]:
        def hear_and_process(outputs: Sequence[Any], *args: Any, **options: Any) -> Any:
            for output in outputs:
                if output.kv_transfer_params is not None:
                    try:
                        self._hear(output)
                    except Exception:
                        # One prompt's fault is no other's: its answer is one that came without a verdict.
                        logger.exception("a verdict could not be read")
            return process(outputs, *args, **options)

        return hear_and_process

    def _hear(self, output: Any) -> None:
        """Take the verdict off an output that brings one: what else its parameters hold is the client's."""
        if _is_canary(output):
            return
        carried = output.kv_transfer_params.pop(EXTRA, None)
        output.kv_transfer_params = output.kv_transfer_params or None
        # A prompt whose client has left is counted already.
        prompt = self._prompts.get(carried[PROMPT]) if carried else None
        if prompt and VERDICT in carried:
            self._record(prompt, Verdict.from_wire(carried[VERDICT]))
        if prompt and ANSWER in carried:
            self._record_answer(prompt, carried[ANSWER])

    def _record(self, prompt: Prompt, verdict: Verdict) -> None:
        # Each of n completions brings a verdict of its own: the prompt is counted once.
        if prompt.verdict is None:
            prompt.verdict = verdict
            self._count(partial(self._metrics.observe, verdict))
        elif verdict.action.severity > prompt.verdict.action.severity:
            prompt.verdict = verdict
        else:
            return
        self._log.record(verdict, prompt)
        if verdict.unscored is None:
            self._on_scored()

    def _record_answer(self, prompt: Prompt, carried: dict[str, Any]) -> None:
        num_tokens = carried.pop("tokens")
        verdict = Verdict.from_wire(carried)
        self._count(partial(self._metrics.observe_answer, verdict, num_tokens))
        self._log.record(verdict, prompt, "answer")
        if prompt.answer is None or verdict.decision.severity > prompt.answer.decision.severity:
            prompt.answer = verdict

    def _count(self, count: Callable[[], None]) -> None:
        try:
            count()
        except Exception:
            # The verdict holds, counted or not: a full disk under the metrics is no reason to answer nobody.
            logger.exception("a prompt could not be counted")
            with suppress(Exception):
                self._metrics.observe_unrecorded()

    def _listening(self, generate: Generate) -> Generate:
        def listening(
            prompt: Any, sampling_params: SamplingParams, request_id: str, **options: Any
        ) -> AsyncGenerator[RequestOutput, None]:
            exchange = current.get()
            lora = options.get("lora_request")
            asked = exchange.asked if exchange is not None else {}
            entry = Prompt(request_id, n=sampling_params.n or 1, model=lora.lora_name if lora else None, asked=asked)
            if exchange is not None:
                entry.route, entry.caller = exchange.route, exchange.caller
                exchange.prompts.append(entry)
            number = next(self._numbers)
            params = _with_asked(sampling_params, exchange, number)
            return self._heard(generate(prompt, params, request_id, **options), entry, number, params)

        return listening

    async def _heard(
        self, outputs: AsyncGenerator[RequestOutput, None], entry: Prompt, number: int, params: SamplingParams
    ) -> AsyncGenerator[RequestOutput, None]:
        """Yield what may leave."""
        self._prompts[number] = entry
        try:
            async for output in outputs:
                if entry.verdict is None and _needs_verdict(output) and self._withholds(entry):
                    withheld = _withheld(output, entry.n)
                    _note_completions(entry, withheld, self._message)
                    hide_prompt(withheld, params)
                    yield withheld
                    return  # and the engine is told to stop
                _note_completions(entry, output, self._message)
                if entry.stopped:
                    hide_prompt(output, params)
                yield output
        finally:
            # Counted first: closing waits for vLLM, and a request that is cancelled once more meanwhile goes no further.
            del self._prompts[number]
            if entry.verdict is None:
                self._count(self._metrics.observe_aborted)
            await outputs.aclose()

    def _withholds(self, entry: Prompt) -> bool:
        """Decide on an answer that came without a verdict; return whether it is blocked."""
        logger.error("an answer came without a verdict; it is unscored")
        tighten, shadow = bool(entry.asked.get("tighten")), bool(entry.asked.get("shadow"))
        verdict = self._policy.judge(Unscored.NO_VERDICT, tighten=tighten, shadow=shadow)
        self._record(entry, verdict)
        return verdict.action is Action.BLOCK


def _is_canary(output: Any) -> bool:
    carried = output.kv_transfer_params.get(EXTRA)
    return isinstance(carried, dict) and carried.get(PROMPT) == CANARY


def _with_asked(params: SamplingParams, exchange: Exchange | None, number: int) -> SamplingParams:
    # A client can fill `extra_args` through `vllm_xargs`; what it put under the guard's key is thrown away. By the number
    # the gate knows that the request came this way.
    asked = exchange.asked if exchange is not None else {}
    params = copy.copy(params)  # which may serve several prompts
    params.extra_args = {**(params.extra_args or {}), EXTRA: {**asked, PROMPT: number}}
    return params


def _needs_verdict(output: RequestOutput) -> bool:
    """Whether there is something to withhold, or the gate has withheld it: what vLLM gave up before needs none."""
    return any(each.token_ids or each.text or each.stop_reason == STOP_BLOCKED for each in output.outputs)


def _withheld(output: RequestOutput, n: int) -> RequestOutput:
    """Return the output as if the gate had ended all `n` completions at it."""
    output.outputs = [
        CompletionOutput(index, "", [], None, [], finish_reason="stop", stop_reason=STOP_BLOCKED) for index in range(n)
    ]
    output.finished = True
    return output


def _note_completions(entry: Prompt, output: RequestOutput, message: str) -> None:
    entry.num_tokens = len(output.prompt_token_ids or ()) or entry.num_tokens
    for completion in output.outputs:
        # A client's stop string may be spelt like this, and ends an answer that has tokens.
        if completion.stop_reason == STOP_BLOCKED and not completion.token_ids:
            entry.blocked.add(completion.index)
            completion.text, completion.finish_reason, completion.stop_reason = message, "content_filter", None
            continue
        entry.passed = True
        if completion.stop_reason == STOP_ANSWER:
            # What was said before stays said.
            completion.finish_reason, completion.stop_reason = "content_filter", None
