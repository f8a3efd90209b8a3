"""Scores on their way: what the taps read of finished prompts, copied to the host while the device goes on.

It touches, of `vllm/v1/outputs.py`: `AsyncModelRunnerOutput`, which it wraps.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, chain, islice
from typing import Any, ClassVar, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
import torch
from vllm.logger import init_logger
from vllm.v1.outputs import AsyncModelRunnerOutput, ModelRunnerOutput

from guard.verdict import Unscored
from probes.scoring import ProbeBank
from probes.template import Turn
from serving.wire import GAPS, SCORES
from serving.worker.host_copy import to_host
from serving.worker.tap import SILENT

logger = init_logger("vllm.foreguard.worker")

RequestScores = dict[str, list[list[float]] | str]
"""By request: the scores `[turns][K]` of its prompt, or why it has none."""


class DuePrompt(NamedTuple):
    """One of the prompts."""

    turns: tuple[Turn, ...]
    positions: tuple[Sequence[int], ...]
    """Of the tokens that its probes read, turn by turn, in order."""
    probes: slice = slice(None)
    """Which of the bank's probes score it."""


class Reading(Protocol):
    """Something that was read in a step, on its way to the gate."""

    attribute: ClassVar[str]
    """Of `ModelRunnerOutput`, on which it travels."""

    def resolve(self) -> Any:
        """Return it, waiting for the copy if need be."""
        ...


@dataclass(frozen=True, slots=True)
class PendingScores:
    """Token scores of the prompts that one step finished, not yet reduced."""

    attribute: ClassVar[str] = SCORES

    probes: ProbeBank
    prompts: Mapping[str, DuePrompt]
    """By request, in the order of their tokens in `parts`."""
    parts: torch.Tensor
    """`[n, P]` on the host, once `arrived`: of one prompt after another."""
    arrived: "torch.cuda.Event | None" = None
    failed: bool = False
    """Whether the step's scores were lost on the way here."""

    @classmethod
    def on_their_way(
        cls,
        probes: ProbeBank,
        prompts: Mapping[str, DuePrompt],
        parts: torch.Tensor,
    ) -> "PendingScores":
        """Start the copy to the host, which waits for nothing that the device has yet to do after this."""
        host, arrived = to_host(parts)
        return cls(probes, prompts, host, arrived)

    @classmethod
    def lost(cls, probes: ProbeBank, requests: Iterable[str]) -> "PendingScores":
        """Return what is due where something failed: reasons instead of scores."""
        return cls(probes, {request: DuePrompt((), ()) for request in requests}, torch.empty(0), failed=True)

    def resolve(self) -> RequestScores:
        """Return the scores, waiting for the copy if need be."""
        if self.failed:
            return dict.fromkeys(self.prompts, Unscored.SENSOR_ERROR.value)
        try:
            if self.arrived is not None:
                self.arrived.synchronize()
            return self._reduced()
        except Exception:
            # Whatever failed, these prompts are unscored, counted and treated as the policy says.
            logger.exception("scoring failed; the prompts of this step are unscored")
            return dict.fromkeys(self.prompts, Unscored.SENSOR_ERROR.value)

    def gaps(self, found: RequestScores) -> dict[str, int]:
        """Return where the first token without a score is, by position, in each prompt that has none in `found` for
        it.
        """
        unscored = [
            name for name, own in found.items() if isinstance(own, str) or not all(map(math.isfinite, chain(*own)))
        ]
        if self.failed or not unscored:
            return {}
        lacking = dict(zip(self.prompts, self._by_prompt(~np.isfinite(self.parts.numpy()).all(axis=1)), strict=True))
        return {
            name: int([*chain(*self.prompts[name].positions)][int(lacking[name].argmax())])
            for name in unscored
            if lacking[name].any()
        }

    def _reduced(self) -> RequestScores:
        positions = [own for prompt in self.prompts.values() for own in prompt.positions]
        turns = [turn for prompt in self.prompts.values() for turn in prompt.turns]
        parts = self.parts.numpy()
        scores = self.probes.scores_of_all(self.probes.add_up(parts), positions, turns)
        rows = iter(scores.tolist())
        found: RequestScores = {
            request: [own[prompt.probes] for own in islice(rows, len(prompt.turns))]
            for request, prompt in self.prompts.items()
        }
        if np.isnan(scores.min()):  # or no tap was silent: what a probe needs and has not leaves it with NaN
            found.update(dict.fromkeys(self._unread(parts), Unscored.TAP_SILENT.value))
        return found

    def _unread(self, parts: npt.NDArray[np.float32]) -> list[str]:
        """Return the prompts of which a tap left a token out."""
        silent = (parts.view(np.int32) == SILENT).any(1)
        return [request for request, own in zip(self.prompts, self._by_prompt(silent), strict=True) if own.any()]

    def _by_prompt(self, marks: npt.NDArray[np.bool_]) -> list[npt.NDArray[np.bool_]]:
        """Return what `marks` `[n]` says of each prompt's own tokens."""
        ends = list(accumulate(sum(map(len, prompt.positions)) for prompt in self.prompts.values()))[:-1]
        return np.split(marks, ends)


class ScoredOutput(AsyncModelRunnerOutput):
    """vLLM's output of a step that it does not wait for, with what was read along."""

    def __init__(self, output: AsyncModelRunnerOutput, readings: Sequence[Reading]) -> None:
        self._output = output
        self._readings = readings

    def get_output(self) -> ModelRunnerOutput:
        """Wait for both."""
        return _attached(self._output.get_output(), self._readings)

    def get_kv_connector_output(self) -> Any:
        """Return what vLLM 0.33 saves of a step that failed."""
        return self._output.get_kv_connector_output()


def with_scores(output: Any, readings: Sequence[Reading]) -> Any:
    """Return the output of a step, of whichever kind the runner gave, with what was read in it."""
    if not readings or output is None:
        return output
    return ScoredOutput(output, readings) if isinstance(output, AsyncModelRunnerOutput) else _attached(output, readings)


def _attached(output: ModelRunnerOutput, readings: Sequence[Reading]) -> ModelRunnerOutput:
    for reading in readings:
        found = reading.resolve()
        setattr(output, reading.attribute, found)
        if isinstance(reading, PendingScores) and (gaps := reading.gaps(found)):
            setattr(output, GAPS, gaps)
    return output
