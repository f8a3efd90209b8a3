"""Rankers that need no partner: how far a neuron tells refused harmful prompts from answered harmless ones.

At the prompt's last token, by the difference of means in standard deviations, and by AUROC as AurA takes it
(`|2 AUROC - 1|`, in either sense). Neither looks at what a neuron does, only at what it shows.
"""

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from calibration.fitting.metrics import aurocs
from calibration.methods.neurons.ranking import Ranking, Scores
from calibration.model.neurons import HELD_BYTES, Neurons, Numbers, neurons_at_end
from calibration.prompts.template import EncodedPrompts

Features = npt.NDArray[np.float32]
Labels = npt.NDArray[np.bool_]


def rank_by_separation(neurons: Neurons, prompts: EncodedPrompts) -> tuple[Ranking, Ranking]:
    """Return rankings `single` (difference of means) and `auroc` over `prompts`, which should behave as labelled.

    Blocks are read in as many passes as keep their neurons within `HELD_BYTES`.
    """
    difference, area = np.zeros(neurons.count), np.zeros(neurons.count)
    for numbers in _groups(neurons, len(prompts.prompts)):
        features = neurons_at_end(neurons, prompts, numbers)
        difference[numbers] = standardised_difference(features, prompts.harmful)
        area[numbers] = 2 * aurocs(features, prompts.harmful) - 1
    return (
        Ranking("single", "difference of means in standard deviations", np.abs(difference), neurons),
        Ranking("auroc", "AUROC of the neuron alone, in either sense", np.abs(area), neurons),
    )


def standardised_difference(features: Features, harmful: Labels) -> Scores:
    """Return each column's difference of class means over the pooled standard deviation `[k]`."""
    above, below = (features[side].astype(np.float64) for side in (harmful, ~harmful))
    gap = above.mean(axis=0) - below.mean(axis=0)
    spread = np.sqrt((above.var(axis=0) * len(above) + below.var(axis=0) * len(below)) / len(features))
    # Rounding leaves a neuron that never varies with a gap, and one that is two-valued with no spread.
    floor = 1e-9 * np.abs(features).max(axis=0) + np.finfo(np.float64).tiny
    return np.asarray(gap / np.maximum(spread, floor))


def _groups(neurons: Neurons, num_prompts: int) -> Iterator[Numbers]:
    """Yield all neurons in runs that fit into memory at once; ranking takes seven times the room of what is ranked."""
    most = max(HELD_BYTES // (32 * num_prompts), 1)
    for start in range(0, neurons.count, most):
        yield np.arange(start, min(start + most, neurons.count), dtype=np.int64)
