"""How two builds' behaviour differs on the same prompts."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.stats import wilcoxon

from calibration.audits.builds.reading import Reading
from calibration.model.refusal_metric import refusal_metric

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Difference:
    """The second build against the first. Arrays of heads `[H]`, neurons `[L, W]`, blocks `[L]`."""

    refusal_gap: Floats
    """Change of each harmful prompt's refusal metric beyond the mean change on harmless ones, `[N]`; none without
    tokens."""
    ships: Floats
    """Change of each head's Ships, mean over prompts."""
    ships_chance: Floats
    """How likely chance makes such a change: Wilcoxon's signed ranks over prompts, whose KL are far from normal."""
    neurons_harmful: Floats
    """Root mean square change of each neuron's activation (arXiv 2406.14144) on harmful prompts."""
    neurons_harmless: Floats
    cosine: Floats
    """Between the refusal directions (difference in means at the last position) of the two builds."""
    gap: Floats
    """Harmful minus harmless along the first build's direction: the second build's as a share of the first's."""


def difference(first: Reading, second: Reading, tokens: Sequence[int]) -> Difference:
    """Return how `second` differs from `first`; `tokens` start refusals in either of them."""
    change = second.ships - first.ships
    directions = [refusal_directions(reading) for reading in (first, second)]
    sizes = [np.linalg.norm(each, axis=1) for each in directions]
    product = (directions[0] * directions[1]).sum(axis=1)
    return Difference(
        refusal_gap=_refusal_gap(first, second, tokens),
        ships=change.mean(axis=1) if change.size else np.empty(0),
        ships_chance=np.array([wilcoxon(each).pvalue if each.any() else 1.0 for each in change]),
        neurons_harmful=_contrast(first.harmful.neurons, second.harmful.neurons),
        neurons_harmless=_contrast(first.harmless.neurons, second.harmless.neurons),
        cosine=product / np.maximum(sizes[0] * sizes[1], 1e-30),
        gap=product / np.maximum(sizes[0] ** 2, 1e-30),
    )


def refusal_directions(reading: Reading) -> Floats:
    """Return each block's difference in means at the prompt's last position, `[L, D]`."""
    return np.asarray(reading.harmful.streams.mean(axis=1) - reading.harmless.streams.mean(axis=1))


def clearest_block(reading: Reading) -> int:
    """Return the block whose direction separates the two classes most widely, in units of their spread along it."""
    directions = refusal_directions(reading)
    spreads = [
        np.einsum("lnd,ld->ln", side.streams - side.streams.mean(axis=1, keepdims=True), directions).std(axis=1)
        for side in (reading.harmful, reading.harmless)
    ]
    return int((np.square(directions).sum(axis=1) / np.maximum(spreads[0] + spreads[1], 1e-30)).argmax())


def _refusal_gap(first: Reading, second: Reading, tokens: Sequence[int]) -> Floats:
    if not tokens:
        return np.empty(0)
    harmful, harmless = (
        refusal_metric(after.log_probs, tokens) - refusal_metric(before.log_probs, tokens)
        for before, after in ((first.harmful, second.harmful), (first.harmless, second.harmless))
    )
    return np.asarray(harmful - harmless.mean())


def _contrast(before: Floats, after: Floats) -> Floats:
    return np.asarray(np.sqrt(np.square(after - before).mean(axis=1)))
