"""Rankings of neurons, and the random neurons that every ranking has to beat."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from calibration.model.neurons import Neurons, Numbers

Scores = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Ranking:
    """Every neuron's score, by one idea of what makes a neuron matter."""

    name: str
    what: str
    """The idea, in a few words."""
    scores: Scores
    """float64 `[count]`, by the neuron's number."""
    neurons: Neurons

    @property
    def candidates(self) -> Numbers:
        """Neurons that may be chosen: all but the last block's, which write the next token and not what leads to it."""
        depth = max(len(self.neurons.widths) - 1, 1)
        return np.arange(self.neurons.starts[depth], dtype=np.int64)

    def top(self, count: int) -> Numbers:
        """Return the `count` candidates of highest score, best first; of equal ones the earlier."""
        return np.asarray(np.argsort(-self.scores[self.candidates], kind="stable")[:count], dtype=np.int64)

    def share(self, share: float) -> Numbers:
        """Return the best `share` of all candidates, at least one."""
        return self.top(max(round(share * len(self.candidates)), 1))


def matched_random(neurons: Neurons, chosen: Numbers, generator: np.random.Generator) -> Numbers:
    """Return random neurons, as many of each block as `chosen` has there.

    They are drawn from all of a block, so that where `chosen` takes the whole block, the control does too.
    """
    counts = np.bincount(neurons.layer_of(chosen), minlength=len(neurons.widths))
    drawn = [
        start + generator.permutation(width)[:count]
        for start, width, count in zip(neurons.starts, neurons.widths, counts, strict=False)
    ]
    return np.asarray(np.concatenate(drawn), dtype=np.int64)
