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
from probes.template import Ending
from serving.core.answer_end import kept_of
from serving.core.answer_watch import AnswerWatch
from serving.core.case import Case
from serving.core.policies import Policies
from serving.policy_fit import require_readable_answers
from serving.wire import ANSWERS, AnswerTokens

logger = init_logger("vllm.foreguard.gate")

_MOST_BEFORE = 1024
"""Tokens of an answer's beginning that are read: one after another, which must not hold up other requests."""


_Key = tuple[int, str]
"""A subject, and the digest of a policy."""


class AnswerWatches:
    """An `AnswerWatch` for each subject and policy whose answers are watched."""

    def __init__(self, policies: Policies, artifacts: Sequence[Artifact], vllm_config: Any) -> None:
        """Raises `ServingError` where answers cannot be read as vLLM is set up."""
        for policy in policies.known:
            require_readable_answers(policy, vllm_config)
        self._judge = policies.on_answer
        self._artifacts = artifacts
        self._capacity = vllm_config.scheduler_config.max_num_seqs
        self._watches: dict[_Key, AnswerWatch] = {}

    def begin(self, case: Case) -> None:
        """Watch the answer to the case's prompt, if the case's policy has rules on answers.

        It may start in the prompt: who asks for an answer in slices gives back what there is of it.
        """
        if case.subject is not None and case.answer_rules:
            num_tokens = case.request.num_prompt_tokens
            start = case.turns[-1].start if case.ending is Ending.PREFILL else num_tokens
            case.answer_begin = max(start, num_tokens - _MOST_BEFORE)

    def end(self, case: Case) -> None:
        """Watch the case's answer no longer."""
        if watch := self._watches.get(_key(case)):
            watch.end(case)

    def take_in(self, step: SchedulerOutput, output: ModelRunnerOutput, cases: Sequence[Case]) -> None:
        """Read what a step took in of the answers of `cases`; those that crossed a threshold have a `crossing` then."""
        tokens: AnswerTokens | str = getattr(output, ANSWERS, Unscored.MISSING.value)
        watched: dict[_Key, list[Case]] = {}
        for case in cases:
            if case.answer_begin is not None:
                watched.setdefault(_key(case), []).append(case)
        for own in watched.values():
            watch = self._watch_of(own[0])
            try:
                if isinstance(tokens, str):
                    watch.lose(own, Unscored(tokens))
                else:
                    watch.take_in(tokens, own, _rejected(step, output, own))
            except Exception:
                # Whatever failed, these answers are unscored, counted and treated as the policy says.
                logger.exception("reading answers failed; those of this step are unscored")
                watch.lose(own, Unscored.POLICY_ERROR)

    def _watch_of(self, case: Case) -> AnswerWatch:
        """Return the watch over the case's answer; where it is the first under a policy, those end that are idle."""
        if (watch := self._watches.get(_key(case))) is None:
            self._watches = {key: each for key, each in self._watches.items() if not each.is_idle}
            watch = self._watches[_key(case)] = self._begun(case)
        return watch

    def _begun(self, case: Case) -> AnswerWatch:
        subject, rules = case.subject or 0, case.answer_rules
        assert rules is not None  # noqa: S101 - or the answer would not be watched
        first = sum(len(artifact.manifest.watches) for artifact in self._artifacts[:subject])
        own = self._artifacts[subject]
        columns = slice(first, first + len(own.manifest.watches))
        bank = WatchBank.of(own.manifest.watches, own.tensors)
        return AnswerWatch(rules, bank, columns, self._capacity, self._judge)


def _key(case: Case) -> _Key:
    return case.subject or 0, case.answer_rules.policy.digest if case.answer_rules else ""


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
