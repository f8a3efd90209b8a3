"""Probe `neurons`: logistic regression on the best-ranked neurons at the last prompt token (arXiv 2406.14144, section
6).

How many, and by which ranking, the selection prompts choose. The control is the same regression on random neurons of
the same blocks: much of what a detector reads is which blocks it reads, and not which neurons.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from calibration.fitting.fitted import FittedProbe
from calibration.fitting.linear import Linear
from calibration.fitting.metrics import auroc, mean_interval, recall_at
from calibration.fitting.study import Chart, Series, StudyResult
from calibration.fitting.training_set import TrainingSet
from calibration.methods.classifiers.linear_classifiers import fit_logistic
from calibration.methods.neurons.ranking import Ranking, matched_random
from calibration.model.neurons import Neurons, Numbers, neurons_at_end
from calibration.prompts.progress import track
from probes.manifest import Probe

_SIZES = (15, 50, 150, 500, 1500, 5000)
"""Neurons. The paper finds 150 decent and 1,500 enough; a small model has fewer, and all of its neurons come last."""
_MOST_FIT, _MOST_SELECT = 1000, 500
"""Prompts per class."""
_NUM_DRAWS = 5
_SEED = 20_260


@dataclass(frozen=True, slots=True)
class _Regression:
    """One regression: on which neurons, and how it does on selection prompts."""

    ranking: str
    numbers: Numbers
    linear: Linear
    recall: float
    auroc: float


@dataclass(frozen=True, slots=True)
class _Pool:
    """Every neuron that any trial needs, read once."""

    numbers: Numbers
    """Ascending, each once."""
    fit: npt.NDArray[np.float32]
    select: npt.NDArray[np.float32]
    fit_harmful: npt.NDArray[np.bool_]
    select_harmful: npt.NDArray[np.bool_]

    def try_out(self, ranking: str, numbers: Numbers) -> _Regression:
        columns = np.searchsorted(self.numbers, numbers)
        linear = fit_logistic(self.fit[:, columns], self.fit_harmful)
        logits = linear(self.select[:, columns])
        above, below = logits[self.select_harmful], logits[~self.select_harmful]
        return _Regression(ranking, numbers, linear, recall_at(above, below, 0.01), auroc(above, below))


def fit_neuron_probe(
    training: TrainingSet, neurons: Neurons, rankings: Sequence[Ranking]
) -> tuple[FittedProbe, StudyResult]:
    """Return the probe, and the study of how many neurons it takes. The first ranking's random twins are the control.

    All blocks must have the same number of neurons, as a probe's tensor does.
    """
    generator = np.random.default_rng(_SEED)
    sizes = _sizes(rankings[0])
    wanted = [(ranking.name, ranking.top(size)) for ranking in rankings for size in sizes]
    wanted += [
        ("random", matched_random(neurons, rankings[0].top(size), generator))
        for size in sizes
        for _ in range(_NUM_DRAWS)
    ]
    pool = _read(training, neurons, np.unique(np.concatenate([numbers for _, numbers in wanted])))
    trials = [pool.try_out(name, numbers) for name, numbers in track(wanted, "choosing neurons")]
    ranked, random = ([each for each in trials if (each.ranking == "random") == side] for side in (False, True))
    best = max(ranked, key=lambda each: (each.recall, each.auroc, -len(each.numbers)))
    return _probe(neurons, best, random), _study(pool, best, rankings, ranked, random)


def _sizes(ranking: Ranking) -> list[int]:
    most = len(ranking.candidates)
    return [size for size in _SIZES if size < most] + ([most] if most <= _SIZES[-1] else [])


def _read(training: TrainingSet, neurons: Neurons, numbers: Numbers) -> _Pool:
    samples = [
        np.concatenate([training.sample(rows, harmful=label, most=most) for label in (False, True)])
        for rows, most in ((training.fit, _MOST_FIT), (training.select, _MOST_SELECT))
    ]
    fit, select = (neurons_at_end(neurons, training.prompts.subset(sample), numbers) for sample in samples)
    return _Pool(numbers, fit, select, *(training.harmful[sample] for sample in samples))


def _probe(neurons: Neurons, best: _Regression, random: Sequence[_Regression]) -> FittedProbe:
    """Lay the chosen neurons' weights out over all neurons of their blocks, `[len(layers), 1, F]`, zero elsewhere."""
    layers = sorted(set(neurons.layer_of(best.numbers).tolist()))
    weight = torch.zeros(len(layers), 1, neurons.widths[0])
    dense = torch.zeros(neurons.count)
    dense[torch.from_numpy(best.numbers)] = torch.from_numpy(best.linear.weight.astype(np.float32))
    for row, layer in enumerate(layers):
        weight[row, 0] = dense[neurons.starts[layer] : neurons.starts[layer + 1]]
    alike = [each.auroc for each in random if len(each.numbers) == len(best.numbers)]
    spec = Probe(
        name="neurons",
        method=f"L2 logistic regression on {len(best.numbers)} neurons ranked by {best.ranking}",
        site="mlp_neurons",
        layers=tuple(layers),
        width=neurons.widths[0],
        bias=best.linear.bias,
        evidence={
            "selection_auroc": best.auroc,
            "selection_recall": best.recall,
            "num_neurons": float(len(best.numbers)),
            "random_matched_auroc": float(np.mean(alike)),
        },
    )
    return FittedProbe(spec, weight)


def _study(
    pool: _Pool,
    best: _Regression,
    rankings: Sequence[Ranking],
    ranked: Sequence[_Regression],
    random: Sequence[_Regression],
) -> StudyResult:
    alike = [each for each in random if len(each.numbers) == len(best.numbers)]
    mean, low, high = mean_interval([each.auroc for each in alike], of_shares=True)
    recall, *_ = mean_interval([each.recall for each in alike], of_shares=True)
    harmful = int(pool.select_harmful.sum())
    charts = tuple(
        Chart(
            name=name,
            caption=f"{what} on selection prompts; random neurons have the blocks of “{rankings[0].name}”, with the 95 "
            f"% interval of the mean of {_NUM_DRAWS} draws.",
            x_label="neurons",
            y_label=what,
            series=(*(_ranked(ranking, ranked, name) for ranking in rankings), _random(random, name)),
            log_x=True,
        )
        for name, what in (("auroc", "AUROC"), ("recall", "recall at 1 % false positives"))
    )
    return StudyResult(
        name="neuron_count",
        title="How many neurons the probe needs",
        finding=(
            f"Chosen: {len(best.numbers)} neurons ranked by “{best.ranking}”, AUROC {best.auroc:.3f} and recall "
            f"{best.recall:.0%} at 1 % false positives on {harmful} harmful and {len(pool.select_harmful) - harmful} "
            f"harmless selection prompts. As many random neurons of the blocks that “{rankings[0].name}” takes reach "
            f"{mean:.3f} ({low:.3f} to {high:.3f}, {_NUM_DRAWS} draws) and {recall:.0%}."
        ),
        charts=charts,
    )


def _ranked(ranking: Ranking, trials: Sequence[_Regression], name: str) -> Series:
    ours = [each for each in trials if each.ranking == ranking.name]
    return Series(
        name=ranking.name,
        x=tuple(float(len(each.numbers)) for each in ours),
        y=tuple(float(getattr(each, name)) for each in ours),
    )


def _random(trials: Sequence[_Regression], name: str) -> Series:
    sizes = sorted({len(each.numbers) for each in trials})
    spread = [
        mean_interval([float(getattr(each, name)) for each in trials if len(each.numbers) == size], of_shares=True)
        for size in sizes
    ]
    mean, low, high = zip(*spread, strict=True)
    return Series(name="random, matched by block", x=tuple(map(float, sizes)), y=mean, low=low, high=high)
