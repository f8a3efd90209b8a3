"""Token scores of watched answers on their way: as `due_scores`, but of every step and not reduced."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import numpy.typing as npt
import torch
from vllm.logger import init_logger

from guard.verdict import Unscored
from probes.scoring import ProbeBank
from serving.wire import ANSWERS, AnswerTokens
from serving.worker.host_copy import to_host

logger = init_logger("vllm.foreguard.worker")

_NONE = np.empty(0, np.int64)


@dataclass(frozen=True, slots=True)
class PendingAnswers:
    """What the taps read of answer tokens in one step, not yet added up."""

    attribute: ClassVar[str] = ANSWERS

    probes: ProbeBank
    channels: npt.NDArray[np.int64]
    """Of the bank: what the watches read, `[W]`."""
    requests: Sequence[str]
    firsts: npt.NDArray[np.int64]
    counts: npt.NDArray[np.int64]
    parts: torch.Tensor
    """`[N, P]` on the host, once `arrived`."""
    arrived: "torch.cuda.Event | None" = None
    failed: bool = False

    @classmethod
    def on_their_way(
        cls,
        probes: ProbeBank,
        channels: npt.NDArray[np.int64],
        requests: Sequence[str],
        firsts: npt.NDArray[np.int64],
        counts: npt.NDArray[np.int64],
        parts: torch.Tensor,
    ) -> "PendingAnswers":
        """Start the copy to the host, which waits for nothing that the device has yet to do after this."""
        host, arrived = to_host(parts)
        return cls(probes, channels, requests, firsts, counts, host, arrived)

    @classmethod
    def lost(cls, probes: ProbeBank) -> "PendingAnswers":
        """Return what is due where something failed: a reason instead of scores."""
        return cls(probes, _NONE, (), _NONE, _NONE, torch.empty(0), failed=True)

    def resolve(self) -> AnswerTokens | str:
        """Return the tokens' scores, waiting for the copy if need be, or why there are none."""
        if self.failed:
            return Unscored.SENSOR_ERROR.value
        try:
            if self.arrived is not None:
                self.arrived.synchronize()
            scores = self.probes.add_up(self.parts.numpy())[:, self.channels]
            return AnswerTokens(list(self.requests), self.firsts, self.counts, scores)
        except Exception:
            logger.exception("scoring failed; the answers of this step are unscored")
            return Unscored.SENSOR_ERROR.value
