"""The watch over all answers in the engine: of the model and of its adapters, where their policies have rules on
answers.

It touches, of vLLM's: `SchedulerOutput` (`scheduled_spec_decode_tokens`), `ModelRunnerOutput`
(`sampled_token_ids`, `req_id_to_index`) and `Request` (`num_prompt_tokens`).
"""

from collections.abc import Sequence
from typing import Any

from vllm.logger import init_logger
from vllm.v1.core.sched.output import SchedulerOutput
from vllm.v1.outputs import ModelRunnerOutput

from guard.verdict import Unscored
from probes.answer_reading import WatchBank
from probes.artifact import Artifact
from probes.errors import ServingError
from probes.template import Ending
from serving.core.answer_end import kept_of
from serving.core.answer_watch import AnswerWatch
from serving.core.case import Case
from serving.core.policies import Policies
from serving.wire import ANSWERS, AnswerTokens

logger = init_logger("vllm.foreguard.gate")

_MOST_BEFORE = 1024
"""Tokens of an answer's beginning that are read: one after another, which must not hold up other requests."""


class AnswerWatches:
    """An `AnswerWatch` for each subject whose answers are watched."""

    def __init__(self, policies: Policies, artifacts: Sequence[Artifact], vllm_config: Any) -> None:
        """Raises `ServingError` where answers cannot be read as vLLM is set up."""
        if any(policy.answers for policy in policies.bound):
            _require_readable(vllm_config)
        capacity = vllm_config.scheduler_config.max_num_seqs
        self._watches: dict[int | None, AnswerWatch] = {}
        first = 0
        for subject, (policy, artifact) in enumerate(zip(policies.bound, artifacts, strict=True)):
            watches = artifact.manifest.watches
            columns = slice(first, first := first + len(watches))
            if policy.answers:
                bank = WatchBank.of(watches, artifact.tensors)
                self._watches[subject] = AnswerWatch(policy.answers, bank, columns, capacity, policies.on_answer)

    def begin(self, case: Case) -> None:
        """Watch the answer to the case's prompt, if answers of its subject are watched.

        It may start in the prompt: who asks for an answer in slices gives back what there is of it.
        """
        if case.subject in self._watches:
            num_tokens = case.request.num_prompt_tokens
            start = case.turns[-1].start if case.ending is Ending.PREFILL else num_tokens
            case.answer_begin = max(start, num_tokens - _MOST_BEFORE)

    def end(self, case: Case) -> None:
        """Watch the case's answer no longer."""
        if watch := self._watches.get(case.subject):
            watch.end(case)

    def take_in(self, step: SchedulerOutput, output: ModelRunnerOutput, cases: Sequence[Case]) -> None:
        """Read what a step took in of the answers of `cases`; those that crossed a threshold have a `crossing` then."""
        tokens: AnswerTokens | str = getattr(output, ANSWERS, Unscored.MISSING.value)
        for subject, watch in self._watches.items():
            own = [case for case in cases if case.subject == subject and case.answer_begin is not None]
            if not own:
                continue
            try:
                if isinstance(tokens, str):
                    watch.lose(own, Unscored(tokens))
                else:
                    watch.take_in(tokens, own, _rejected(step, output, own))
            except Exception:
                # Whatever failed, these answers are unscored, counted and treated as the policy says.
                logger.exception("reading answers failed; those of this step are unscored")
                watch.lose(own, Unscored.POLICY_ERROR)


def _require_readable(vllm_config: Any) -> None:
    # There a step is laid out before it is known which drafts of the last one were accepted, so that the host does not
    # know which tokens its rows are.
    if vllm_config.speculative_config and vllm_config.scheduler_config.async_scheduling:
        raise ServingError(
            "answers cannot be watched under asynchronous scheduling while tokens are drafted",
            field="answer_rules",
            remedy="add `-- --no-async-scheduling`, or remove --speculative-config or the policy's answer_rules",
        )


def _rejected(step: SchedulerOutput, output: ModelRunnerOutput, cases: Sequence[Case]) -> dict[str, int]:
    """Return how many of a request's drafted tokens are not its answer's: they are the last ones of its rows.

    vLLM also drafts for a prompt that lacks one token alone: its rows are as many as the others', and all are rejected.
    Drafts that are accepted behind the answer's end are none of its tokens either.
    """
    rejected = {}
    for case in cases:
        drafts = step.scheduled_spec_decode_tokens.get(case.name)
        if drafts and (place := output.req_id_to_index.get(case.name)) is not None:
            sampled = output.sampled_token_ids[place]
            accepted = max(len(sampled) - 1, 0)
            rejected[case.name] = len(drafts) - min(accepted, kept_of(case.request, sampled))
    return rejected
