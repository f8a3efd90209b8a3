"""What the guard's parts send each other, and on which of vLLM's own objects it rides.

No sockets and no side channels: the messages are ordered and routed by vLLM itself, the same for tensor, pipeline and
data parallelism, for several API servers and under every executor.
"""

import secrets
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from probes.template import Turn

SCORES = "foreguard_scores"
"""Attribute of `ModelRunnerOutput`: `{request_id: [turns][K] floats, or an Unscored reason}` for prompts finished in
the step."""

GAPS = "foreguard_gaps"
"""Attribute of `ModelRunnerOutput`: `{request_id: position}` of the first token without a score, for prompts finished
in the step that are not scored because of one."""

ANSWERS = "foreguard_answers"
"""Attribute of `ModelRunnerOutput`: the `AnswerTokens` of the step, or an Unscored reason, where answers are
watched."""

ORDERS = "foreguard_orders"
"""Attribute of `SchedulerOutput`: the step's `Orders`, where there are any."""

STREAM_PARTS = "foreguard_parts"
"""Key of `IntermediateTensors`: what the taps of earlier pipeline stages read, `[T, P]`."""

EXTRA = "foreguard"
"""Key of `additional_config` (the guard's configuration), of `SamplingParams.extra_args` (what a caller may ask of the
gate, `POLICY`, and `PROMPT`: where there is none, the request came past the API server's verdict reader) and of
`EngineCoreOutput.kv_transfer_params` (the `VERDICT`, and `PROMPT`)."""

PROMPT = "prompt"
"""Under `EXTRA`: the prompt's name, which the API process makes up and no client can guess. A prompt may have several
requests (`n`) in the engine."""

POLICY = "policy"
"""Under `EXTRA`: the digest of the policy by which the API process answers the request, and the gate is to decide."""

POLICY_TEXT = "policy_text"
"""Under `EXTRA`, of a canary: the policy of that digest, in YAML. The gate has it from then on."""

CANARY = f"canary-{secrets.token_hex(16)}"
"""In place of such a name: the guard asks itself.

The verdict then stays on the output, for whoever asked. Each API process has its own, so that no client can ask for
it."""

VERDICT = "verdict"
"""Under `EXTRA`: the verdict, as `Verdict.to_wire` has it; with a request's first output alone."""

PROMPT_TOKENS = "prompt_tokens"
"""Under `EXTRA`, beside a verdict: how many tokens the prompt has."""

ANSWER = "answer"
"""Under `EXTRA`: the verdict on an answer that crossed a threshold, with the output of that step."""

STOP_BLOCKED = "foreguard:blocked"
"""How the `stop_reason` of a request begins that the gate ended before its first token; `stop_reason` has the whole."""

STOP_ANSWER = "foreguard:answer"
"""The same for a request that the gate ended in the middle of its answer."""


def stop_reason(reason: str, prompt: object) -> str:
    """Return the `stop_reason` by which the gate gives its `reason` for ending a request of `prompt`.

    It has the prompt's name in it. vLLM reports a client's stop string in the same place, and no client can spell this.
    """
    return reason if prompt is None else f"{reason}:{prompt}"


class Due(NamedTuple):
    """A prompt that the step finishes: its scores are due."""

    turns: tuple[Turn, ...]
    blocks: list[int]
    """The KV-cache blocks of its tokens, in order."""
    subject: int = 0
    """Whose probes score it: 0 for the model itself, and then its adapters, as `GuardConfig.adapters` has them."""

    @property
    def num_tokens(self) -> int:
        """How many tokens the prompt has."""
        return self.turns[-1].stop


@dataclass(frozen=True, slots=True)
class Steer:
    """How a request is steered."""

    strengths: list[float]
    """One for each steering vector, `[S]`."""
    begin: int
    """The first position that is steered: the prompt's last, which predicts the first token."""


@dataclass(frozen=True, slots=True)
class Orders:
    """What the gate asks of the workers in one step."""

    due: dict[str, Due] = field(default_factory=dict)
    steering: dict[str, Steer] = field(default_factory=dict)
    unknown: list[int] = field(default_factory=list)
    """KV-cache blocks that are filled from elsewhere: no forward pass scored their tokens."""
    copies: list[tuple[int, int]] = field(default_factory=list)
    """KV-cache blocks that are copied before the pass, (from, to): a partly cached block, continued by another
    request."""
    watched: dict[str, int] = field(default_factory=dict)
    """Requests whose answers are read, and the position of each answer's first token.

    It is in the prompt where the prompt ends with the beginning of an answer."""

    def __bool__(self) -> bool:
        """Whether anything is asked."""
        return bool(self.due or self.steering or self.unknown or self.copies or self.watched)


@dataclass(frozen=True, slots=True)
class AnswerTokens:
    """Token scores of watched answers, of the tokens that one step took in: one request after another."""

    requests: list[str]
    firsts: npt.NDArray[np.int64]
    """Position of each request's first token among these, `[R]`."""
    counts: npt.NDArray[np.int64]
    """How many of these tokens are each request's, `[R]`; drafted ones that may yet be rejected among them."""
    scores: npt.NDArray[np.float32]
    """`[N, W]`: of the probes of all watches, the model's and then its adapters'."""


NO_ORDERS = Orders()
