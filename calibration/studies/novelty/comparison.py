"""Novelty scores side by side: which of them sees harm, which sees an unseen source, and what each costs benign
prompts.

What any of them says of an unseen harmless source is the reason why none of them may block alone.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from calibration.fitting.contract import Study
from calibration.fitting.fitted import Fitted, FittedProbe
from calibration.fitting.metrics import auroc, cut_at, rate
from calibration.fitting.study import Skipped, StudyResult, Table
from calibration.fitting.training_set import Rows, TrainingSet
from calibration.methods.novelty.distance import Distance, Space
from calibration.methods.novelty.out_of_distribution import NAME
from calibration.model.neurons import Neurons, Numbers, neurons_at_end
from calibration.recording.places import place_of
from calibration.studies.novelty.likelihood import mean_log_probs
from calibration.studies.novelty.neuron_tests import Coverage, KeySpaceBox
from calibration.studies.novelty.parts import HARMFUL, UNSEEN_HARMFUL, PromptGroups
from probes.errors import ModelError
from probes.manifest import Rate

_TARGET = 0.01

Values = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class _Scored:
    """One score of some prompts."""

    parts: PromptGroups
    values: Values
    """`[N]` by training prompt; NaN for those that have no part."""

    @classmethod
    def of(cls, training: TrainingSet, parts: PromptGroups, rows: Rows, values: Values) -> "_Scored":
        """Take the scores of the prompts `rows` `[n]`."""
        everywhere = np.full(len(training.prompts.prompts), np.nan)
        everywhere[rows] = values
        return cls(parts, everywhere)

    def measured(self) -> dict[str, tuple[int, float, Rate]]:
        """Return by group its size, its AUROC against harmless prompts, and its share above their 1 % cut."""
        benign = self.values[self.parts.cut]
        cut, found = cut_at(benign, _TARGET), {}
        for name, rows in self.parts.groups.items():
            group = self.values[rows]
            found[name] = len(rows), auroc(group, benign), rate(int((group > cut).sum()), len(rows))
        return found


def compare_novelty(training: TrainingSet, found: Fitted) -> tuple[StudyResult, ...]:
    """Return the comparison at the block of probe `novelty`. Raises `Skipped` where there is no such probe."""
    probe = next((each for each in found.probes if each.spec.name == NAME), None)
    if probe is None:
        raise Skipped(f"there is no probe {NAME!r} to compare with: it is fitted by method {NAME!r}")
    parts = PromptGroups.of(training)
    few = parts.fewer()
    scores = _distances(training, parts, probe)
    scores |= _neuron_scores(training, few, found, probe.spec.layers[0]) | _likelihoods(training, few)
    return (_study(parts, scores),)


def _distances(training: TrainingSet, parts: PromptGroups, probe: FittedProbe) -> dict[str, _Scored]:
    """Fit the probe anew without the sources left out, where and as large as it is; with and without its background."""
    spec = probe.spec
    left_out = (probe.weight[0] == 0).all(0).numpy()
    where = place_of(spec.readout)
    if where is None:
        raise Skipped(f"probe {NAME!r} reads what no recording keeps")
    space = Space.of(training, spec.layers[0], where, parts.background, left_out, spec.channels)
    components = space.project(training)
    relative = Distance.of(components[parts.benign], components[parts.background])
    return {
        "relative Mahalanobis": _Scored(parts, relative(components)),
        "plain Mahalanobis": _Scored(parts, relative.plain()(components)),
    }


def _neuron_scores(training: TrainingSet, parts: PromptGroups, found: Fitted, layer: int) -> dict[str, _Scored]:
    """Coverage of the neurons that probe `neurons` reads (of the block where there is none), and the block's box."""
    try:
        neurons = Neurons.of(training.chat)
    except ModelError:
        return {}
    block = np.arange(neurons.starts[layer], neurons.starts[layer + 1])
    named = _read_by_probe(neurons, found)
    covered = named if len(named) else block
    numbers, split = np.union1d(block, covered), len(parts.benign)
    asked = np.concatenate([parts.benign, parts.judged])
    values = neurons_at_end(neurons, training.prompts.subset(asked), numbers)
    wide, box = (values[:, np.searchsorted(numbers, chosen)] for chosen in (covered, block))
    scores = {
        "neuron coverage": Coverage.of(wide[:split])(wide[split:]),
        "key-space box": KeySpaceBox.of(box[:split])(box[split:]),
    }
    return {name: _Scored.of(training, parts, parts.judged, own) for name, own in scores.items()}


def _read_by_probe(neurons: Neurons, found: Fitted) -> Numbers:
    probe = next((each for each in found.probes if each.spec.name == "neurons"), None)
    if probe is None:
        return np.empty(0, dtype=np.int64)
    rows = zip(probe.spec.layers, probe.weight[:, 0].numpy(), strict=True)
    return np.concatenate([neurons.starts[layer] + row.nonzero()[0] for layer, row in rows])


def _likelihoods(training: TrainingSet, parts: PromptGroups) -> dict[str, _Scored]:
    prompts, tail = training.prompts.subset(parts.judged), training.instruction_offset
    own = mean_log_probs(training.chat, prompts, tail, "how likely prompts are")
    scores = {"improbability": _Scored.of(training, parts, parts.judged, -own)}
    if training.partner:
        other = mean_log_probs(training.partner, prompts, tail, "how likely prompts are to the partner")
        scores["likelihood ratio"] = _Scored.of(training, parts, parts.judged, other - own)
    return scores


def _study(parts: PromptGroups, scores: Mapping[str, _Scored]) -> StudyResult:
    rows = tuple(
        (name, len(scored.parts.cut), group, count, area, above.value, above.low, above.high)
        for name, scored in scores.items()
        for group, (count, area, above) in scored.measured().items()
    )
    return StudyResult(
        name="novelty_scores",
        title="Out-of-distribution scores",
        finding=_finding(parts, scores),
        tables=(
            Table(
                name="against held-out harmless prompts of seen sources",
                columns=("score", "harmless", "prompts", "n", "AUROC", "above the 1 % cut", "from", "to"),
                rows=rows,
            ),
        ),
    )


def _finding(parts: PromptGroups, scores: Mapping[str, _Scored]) -> str:
    asked = UNSEEN_HARMFUL if UNSEEN_HARMFUL in parts.groups else HARMFUL
    measured = {name: scored.measured() for name, scored in scores.items()}
    best = max(measured, key=lambda name: measured[name][asked][2].value)
    shares = "; ".join(
        f"of {group} {_percent(above)}, AUROC {area:.3f}" for group, (_, area, above) in measured[best].items()
    )
    others = ", ".join(
        f"{name} {above.value:.1%}, {area:.3f} (n = {count})"
        for name, (count, area, above) in ((name, each[asked]) for name, each in measured.items() if name != best)
    )
    left_out = f"With {parts.unseen} left out of every fit" if parts.unseen else "No source could be left out"
    wanting = "" if "likelihood ratio" in scores else " The likelihood ratio needs --partner."
    if "neuron coverage" not in scores:
        wanting += " Scores of neurons are left out: the model has no neurons that every token passes."
    return (
        f"{left_out}; above the 1 % cut of {len(scores[best].parts.cut)} held-out harmless prompts of seen sources, "
        f"{best} puts most: {shares}. The other scores on {asked}: {others}.{wanting}"
    )


def _percent(share: Rate) -> str:
    return f"{share.value:.1%} ({share.low:.1%} to {share.high:.1%}, n = {share.count})"


STUDY = Study("novelty_scores", compare_novelty, rank=140, uses_partner=True)
