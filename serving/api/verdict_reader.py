"""The verdict reader: takes verdicts from the engine's outputs where these arrive in the API process.

Every generating route calls `engine_client.generate`, so wrapping that one method sees every prompt. Verdicts ride the
first output of a request, and are noted before vLLM makes anything of it: it merges outputs that nobody has taken yet,
drops those of an answer that is not streamed, and ends an answer at a stop string that the engine knows nothing of.
An answer that comes without a verdict is unscored, and treated as the policy says: whatever took the gate out of the
engine, nothing leaves unguarded.

It touches, of `vllm/v1/engine/async_llm.py`: `generate` and `output_processor.process_outputs`, both wrapped.
"""

import copy
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from dataclasses import replace
from typing import Any

from vllm.logger import init_logger
from vllm.outputs import CompletionOutput, RequestOutput
from vllm.sampling_params import SamplingParams

from guard.journal import Decision, Journal
from guard.rollout import InForce
from guard.verdict import Action, Unscored, Verdict
from probes.errors import ServingError
from serving.api.exchange import Prompt, current
from serving.api.hidden_logprobs import hide_prompt
from serving.api.kept_prompts import KeptPrompts
from serving.wire import (
    ANSWER,
    CANARY,
    EXTRA,
    POLICY,
    PROMPT,
    PROMPT_TOKENS,
    STOP_ANSWER,
    STOP_BLOCKED,
    VERDICT,
    stop_reason,
)

logger = init_logger("vllm.foreguard.verdict_reader")

Generate = Callable[..., AsyncGenerator[RequestOutput, None]]


class VerdictReader:
    """Reads the verdicts on all prompts of this process."""

    def __init__(
        self,
        in_force: InForce,
        journal: Journal,
        on_scored: Callable[[], None] = lambda: None,
        kept: KeptPrompts | None = None,
    ) -> None:
        """`in_force` are the policies of what no exchange was opened for.

        `journal` has every decision once; `on_scored` is told of each prompt that has a score; `kept` has the text of
        each prompt that is decided, where the operator wants prompts kept.
        """
        self._in_force = in_force
        self._journal = journal
        self._on_scored = on_scored
        self._kept = kept
        self._prompts: dict[str, Prompt] = {}

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
        if prompt:
            prompt.num_tokens = carried.get(PROMPT_TOKENS, prompt.num_tokens)
        if prompt and VERDICT in carried:
            # A prompt has no verdict while one of its verdicts cannot be read.
            known, prompt.verdict = prompt.verdict, None
            self._record(prompt, _own(prompt, Verdict.from_wire(carried[VERDICT])), known)
        if prompt and ANSWER in carried:
            self._record_answer(prompt, carried[ANSWER])

    def _record(self, prompt: Prompt, verdict: Verdict, known: Verdict | None = None) -> None:
        """Take in one of the prompt's verdicts, of which `known` is the most severe so far.

        Each of n completions brings one. A session brings one more with each of its further inputs, which then stands.
        """
        if verdict.unscored is None:
            self._on_scored()
        prompt.num_verdicts += 1
        if known and prompt.num_verdicts <= prompt.n:
            # The first one's id may be in the headers already.
            milder = verdict.action.severity <= known.action.severity
            verdict = known if milder else replace(verdict, event_id=known.event_id)
        prompt.verdict = verdict
        if prompt.num_verdicts >= prompt.n:
            self._settle(prompt, verdict)

    def _settle(self, prompt: Prompt, verdict: Verdict) -> None:
        """Write the prompt down, once: by the verdict that its client is told."""
        self._journal.record(_decision(verdict, prompt))
        if self._kept is not None:
            self._kept.keep(verdict.event_id, prompt.text)

    def _record_answer(self, prompt: Prompt, carried: dict[str, Any]) -> None:
        num_tokens = carried.pop("tokens")
        verdict = _own(prompt, Verdict.from_wire(carried))
        self._journal.record(replace(_decision(verdict, prompt), judged="answer", num_tokens=num_tokens))
        if prompt.answer is None or verdict.decision.severity > prompt.answer.decision.severity:
            prompt.answer = verdict

    def _listening(self, generate: Generate) -> Generate:
        def listening(
            prompt: Any, sampling_params: SamplingParams, request_id: str, **options: Any
        ) -> AsyncGenerator[RequestOutput, None]:
            exchange = current.get()
            lora = options.get("lora_request")
            if exchange is not None and lora is not None:
                exchange.answered_by(lora.lora_name)
            policies = exchange.policies if exchange is not None else self._in_force.current.base
            entry = Prompt(request_id, sampling_params.n or 1, policies, lora.lora_name if lora else None)
            if exchange is not None:
                entry.asked, entry.route = exchange.asked, exchange.route
                entry.caller, entry.tenant = exchange.caller, exchange.tenant
                exchange.prompts.append(entry)
            if self._kept is not None:
                entry.text = self._kept.text_of(prompt, options.get("prompt_text"))
            params = _with_asked(sampling_params, entry)
            return self._heard(generate(prompt, params, request_id, **options), entry, params)

        return listening

    async def _heard(
        self, outputs: AsyncGenerator[RequestOutput, None], entry: Prompt, params: SamplingParams
    ) -> AsyncGenerator[RequestOutput, None]:
        """Yield what may leave."""
        self._prompts[entry.name] = entry
        stopped, message = False, entry.policies.policy.response.message
        try:
            async for output in outputs:
                if entry.verdict is None and _needs_verdict(entry, output) and self._withholds(entry):
                    withheld = _withheld(entry, output)
                    _note_completions(entry, withheld, message)
                    hide_prompt(withheld, params)
                    yield withheld
                    return  # and the engine is told to stop
                _note_completions(entry, output, message)
                stopped = stopped or entry.stopped
                if stopped:
                    hide_prompt(output, params)
                yield output
        finally:
            # Counted first: closing waits for vLLM, and a request that is cancelled once more meanwhile goes no
            # further.
            del self._prompts[entry.name]
            if entry.verdict is None:
                self._journal.give_up()
            elif entry.num_verdicts < entry.n:
                self._settle(entry, entry.verdict)
            await outputs.aclose()

    def _withholds(self, entry: Prompt) -> bool:
        """Decide on an answer that came without a verdict; return whether it is blocked."""
        logger.error("an answer came without a verdict; it is unscored")
        tighten, shadow = bool(entry.asked.get("tighten")), bool(entry.asked.get("shadow"))
        verdict = entry.policies.model.judge(Unscored.NO_VERDICT, tighten=tighten, shadow=shadow)
        self._record(entry, verdict)
        return verdict.action is Action.BLOCK


def _decision(verdict: Verdict, prompt: Prompt) -> Decision:
    return Decision(
        verdict,
        prompt.policies.policy,
        request_id=prompt.request_id,
        route=prompt.route,
        model=prompt.model,
        caller=prompt.caller,
        tenant=prompt.tenant,
        prompt_tokens=prompt.num_tokens,
        seconds=time.monotonic() - prompt.asked_at,
    )


def _own(prompt: Prompt, verdict: Verdict) -> Verdict:
    """Return the verdict.

    Raises `ServingError` where it was made by another policy than the prompt came in under: it says nothing.
    """
    own = prompt.policies
    if verdict.policy_digest != own.digest:
        raise ServingError(
            f"decided by {verdict.policy} with the digest {verdict.policy_digest!r}, which is another policy than "
            f"that of the request, {own.policy.label} with {own.digest!r}",
            field="policy",
            remedy="start the server again",
        )
    return verdict


def _is_canary(output: Any) -> bool:
    carried = output.kv_transfer_params.get(EXTRA)
    return isinstance(carried, dict) and carried.get(PROMPT) == CANARY


def _with_asked(params: SamplingParams, entry: Prompt) -> SamplingParams:
    # A client can fill `extra_args` through `vllm_xargs`; what it put under the guard's key is thrown away. By the name
    # the gate knows that the request came this way.
    params = copy.copy(params)  # which may serve several prompts
    params.extra_args = {
        **(params.extra_args or {}),
        EXTRA: {**entry.asked, PROMPT: entry.name, POLICY: entry.policies.digest},
    }
    return params


def _needs_verdict(entry: Prompt, output: RequestOutput) -> bool:
    """Whether there is something to withhold, or the gate has withheld it: what vLLM gave up before needs none."""
    blocked = stop_reason(STOP_BLOCKED, entry.name)
    return any(each.token_ids or each.text or each.stop_reason == blocked for each in output.outputs)


def _withheld(entry: Prompt, output: RequestOutput) -> RequestOutput:
    """Return the output as if the gate had ended all completions at it."""
    blocked = stop_reason(STOP_BLOCKED, entry.name)
    output.outputs = [
        CompletionOutput(index, "", [], None, [], finish_reason="stop", stop_reason=blocked) for index in range(entry.n)
    ]
    output.finished = True
    return output


def _note_completions(entry: Prompt, output: RequestOutput, message: str) -> None:
    entry.num_tokens = len(output.prompt_token_ids or ()) or entry.num_tokens
    blocked, ended = (stop_reason(reason, entry.name) for reason in (STOP_BLOCKED, STOP_ANSWER))
    for completion in output.outputs:
        if completion.stop_reason == blocked:
            entry.blocked.add(completion.index)
            completion.text, completion.finish_reason, completion.stop_reason = message, "content_filter", None
            continue
        entry.passed = True
        if completion.stop_reason == ended:
            # What was said before stays said.
            completion.finish_reason, completion.stop_reason = "content_filter", None
