"""The watch over all answers in the engine: of the model and of its adapters, where their policies have rules on answers.

It touches, of vLLM's: `SchedulerOutput` (`num_scheduled_tokens`, `scheduled_spec_decode_tokens`), `ModelRunnerOutput`
(`sampled_token_ids`, `req_id_to_index`) and `Request` (`num_prompt_tokens`).
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from vllm.logger import init_logger
from vllm.v1.core.sched.output import SchedulerOutput
from vllm.v1.outputs import ModelRunnerOutput
from vllm.v1.request import Request

from guard.decide import BoundPolicy
from guard.verdict import Unscored
from probes.answer_reading import WatchBank
from probes.artifact import Artifact
from probes.errors import ServingError
from serving.core.answer_end import kept_of
from serving.core.answer_watch import AnswerWatch, Crossing, Judge
from serving.wire import ANSWERS, NO_ORDERS, ORDERS, AnswerTokens

logger = init_logger("vllm.foreguard.gate")

_MOST_BEFORE = 1024
"""Tokens of an answer's beginning that are read: one after another, which must not hold up other requests."""


class AnswerWatches:
    """An `AnswerWatch` for each subject whose answers are watched: 0 is the model itself, then come its adapters."""

    def __init__(self, policies: Sequence[BoundPolicy], artifacts: Sequence[Artifact], vllm_config: Any) -> None:
        """Raises `ServingError` where answers cannot be read as vLLM is set up."""
        if any(policy.answers for policy in policies):
            _require_readable(vllm_config)
        capacity = vllm_config.scheduler_config.max_num_seqs
        self._watches: dict[int | None, AnswerWatch] = {}
        first = 0
        for subject, (policy, artifact) in enumerate(zip(policies, artifacts, strict=True)):
            watches = artifact.manifest.watches
            columns = slice(first, first := first + len(watches))
            if policy.answers:
                bank = WatchBank.of(watches, artifact.tensors)
                self._watches[subject] = AnswerWatch(policy.answers, bank, columns, capacity)

    def begin(self, request: Request, subject: int | None, begin: int) -> None:
        """Watch the answer to the request's prompt, if answers of this subject are watched; it starts at `begin`.

        That may be in the prompt: who asks for an answer in slices gives back what there is of it.
        """
        if watch := self._watches.get(subject):
            watch.begin(request.request_id, max(begin, request.num_prompt_tokens - _MOST_BEFORE))

    def end(self, request: str) -> None:
        """Watch the request's answer no longer."""
        for watch in self._watches.values():
            watch.end(request)

    def asked(self, scheduled: Mapping[str, int]) -> dict[str, int]:
        """Return which of the `scheduled` requests the workers are to read the answers of, as `Orders.watched` has it."""
        return {name: at for watch in self._watches.values() for name, at in watch.asked(scheduled).items()}

    def take_in(
        self,
        step: SchedulerOutput,
        output: ModelRunnerOutput,
        request_of: Callable[[str], Request | None],
        judge: Judge,
    ) -> dict[str, Crossing]:
        """Read what the step took in of requests' answers; return those that crossed a threshold.

        `request_of` returns a request by its name, or None where what comes of it does not count.
        """
        requests = {name: request_of(name) for name in getattr(step, ORDERS, NO_ORDERS).watched}
        asked = [name for name, request in requests.items() if request is not None]
        if not asked:
            return {}
        tokens: AnswerTokens | str = getattr(output, ANSWERS, Unscored.MISSING.value)
        found: dict[str, Crossing] = {}
        for watch in self._watches.values():
            try:
                if isinstance(tokens, str):
                    found.update(watch.lose(asked, Unscored(tokens), judge))
                else:
                    found.update(watch.take_in(tokens, asked, _rejected(step, output, requests), judge))
            except Exception:
                # Whatever failed, these answers are unscored, counted and treated as the policy says.
                logger.exception("reading answers failed; those of this step are unscored")
                found.update(watch.lose(asked, Unscored.POLICY_ERROR, judge))
        return found


def _require_readable(vllm_config: Any) -> None:
    # There a step is laid out before it is known which drafts of the last one were accepted, so that the host does not know
    # which tokens its rows are.
    if vllm_config.speculative_config and vllm_config.scheduler_config.async_scheduling:
        raise ServingError(
            "answers cannot be watched under asynchronous scheduling while tokens are drafted",
            field="answer_rules",
            remedy="add `-- --no-async-scheduling`, or remove --speculative-config or the policy's answer_rules",
        )


def _rejected(
    step: SchedulerOutput, output: ModelRunnerOutput, requests: Mapping[str, Request | None]
) -> dict[str, int]:
    """Return, of the requests that had tokens drafted, how many of these are not the answer's: the last ones of their rows.

    vLLM also drafts for a prompt that lacks one token alone: its rows are as many as the others', and all are rejected.
    Drafts that are accepted behind the answer's end are none of its tokens either.
    """
    rejected = {}
    for name, drafts in step.scheduled_spec_decode_tokens.items():
        if (place := output.req_id_to_index.get(name)) is not None and (request := requests.get(name)) is not None:
            sampled = output.sampled_token_ids[place]
            accepted = max(len(sampled) - 1, 0)
            rejected[name] = len(drafts) - min(accepted, kept_of(request, sampled))
    return rejected
