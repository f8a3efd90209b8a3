"""The report's figures, each a function of the evidence."""

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from scipy.special import expit

from calibration.evaluation.reliability import equal_bins
from calibration.evaluation.separation import SeparationMap
from calibration.fitting.metrics import rate
from calibration.fitting.study import Chart
from calibration.methods.steering.dose_response import Dose
from calibration.report.evidence import SplitScores
from calibration.report.style import HARMFUL, HARMLESS, MUTED, canvas, line_style
from probes.manifest import Platt

_BINS = 40
_COLUMNS = 3
_QUANTILES = 8


def separation(found: SeparationMap) -> Figure:
    """Draw AUROC by block and position, with the number in each cell where there is room."""
    values = np.array(found.auroc)
    rows, columns = values.shape
    figure, axes = canvas(min(3.5 + 0.45 * columns, 11), 1.2 + 0.42 * rows)
    image = axes.imshow(values, cmap="cividis", vmin=0.5, vmax=1.0, aspect="auto")
    axes.set(xlabel="decoder block", xticks=_thinned(columns), yticks=range(rows), yticklabels=found.positions)
    if columns <= 16:
        for row, column in np.ndindex(rows, columns):
            shade = "black" if values[row, column] > 0.8 else "white"
            axes.text(column, row, f"{values[row, column]:.2f}", ha="center", va="center", fontsize=7, color=shade)
    axes.spines[:].set_visible(False)
    figure.colorbar(image, ax=axes, label="AUROC", fraction=0.05)
    return figure


def histograms(scores: Mapping[str, SplitScores], thresholds: Mapping[str, float]) -> Figure:
    """Draw each probe's scores by class, with the threshold in force for 1 % where one is certified."""
    rows = -(-len(scores) // _COLUMNS)
    figure = Figure(figsize=(10, 2.1 * rows), layout="constrained")
    grid = figure.subplots(rows, _COLUMNS, squeeze=False).ravel()
    for axes, (name, split) in zip(grid, scores.items(), strict=False):
        _histogram(axes, name, split, thresholds.get(name))
    for axes in grid[len(scores) :]:
        axes.set_visible(False)
    grid[0].legend()
    return figure


def _histogram(axes: Axes, name: str, split: SplitScores, threshold: float | None) -> None:
    edges = np.histogram_bin_edges([*split.harmless, *split.harmful], bins=_BINS)
    for values, colour, label in ((split.harmless, HARMLESS, "harmless"), (split.harmful, HARMFUL, "harmful")):
        axes.hist(values, bins=edges.tolist(), density=True, color=colour, alpha=0.6, label=label)
    if threshold is not None:
        axes.axvline(threshold, color="black", linewidth=1, linestyle="--", label="certified 1 %")
    axes.set(title=name, yticks=[])
    axes.spines["left"].set_visible(False)


def roc(scores: Mapping[str, SplitScores]) -> Figure:
    """Draw recall against the false-positive rate, on a logarithmic axis: guards work at its left end."""
    figure, axes = canvas(7, 4.2)
    smallest = 1.0
    for index, (name, split) in enumerate(scores.items()):
        false_positives, recall = roc_points(split)
        smallest = min(smallest, 1 / len(split.harmless))
        axes.step(np.maximum(false_positives, smallest), recall, where="post", label=name, **line_style(index))
    chance = np.geomspace(smallest, 1, 100)
    axes.plot(chance, chance, color=MUTED, linewidth=0.8, label="chance")
    axes.set(xscale="log", xlim=(smallest, 1), ylim=(0, 1.01), xlabel="false-positive rate", ylabel="recall")
    axes.axvline(0.01, color=MUTED, linewidth=0.8, linestyle=":")
    axes.legend(loc="lower right")
    return figure


def roc_points(split: SplitScores) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Return false-positive rates and recalls `[N + 1]` of flagging above each harmless score, highest first, then
    all.
    """
    cuts = np.sort(np.asarray(split.harmless))[::-1]
    harmful = np.sort(np.asarray(split.harmful))
    recall = 1 - np.searchsorted(harmful, cuts, side="right") / len(harmful)
    return np.arange(len(cuts) + 1) / len(cuts), np.append(recall, 1.0)


def reliability(scores: Mapping[str, SplitScores], platt: Mapping[str, Platt]) -> Figure:
    """Draw, for each probe, how often prompts of a predicted probability were harmful, with 95 % intervals."""
    figure, axes = canvas(5, 4.2)
    axes.plot([0, 1], [0, 1], color=MUTED, linewidth=0.8)
    for index, (name, split) in enumerate(scores.items()):
        predicted, observed, low, high = reliability_points(split, platt[name])
        style = line_style(index)
        axes.errorbar(
            predicted, observed, yerr=[observed - low, high - observed], label=name, marker="o", markersize=3,
            elinewidth=0.7, linewidth=1, **style,
        )  # fmt: skip
    axes.set(xlim=(0, 1), ylim=(0, 1), xlabel="predicted probability of harm", ylabel="share that was harmful")
    axes.legend()
    return figure


def reliability_points(split: SplitScores, platt: Platt) -> tuple[npt.NDArray[np.float64], ...]:
    """Return mean prediction, observed share, and its exact 95 % interval, for bins of about equal size; ties share
    one.
    """
    raw = np.concatenate([split.harmless, split.harmful])
    labels = np.repeat([False, True], [len(split.harmless), len(split.harmful)])
    predicted = expit(platt.slope * raw + platt.intercept)
    bins = equal_bins(predicted, _QUANTILES)
    points = []
    for rows in (np.flatnonzero(bins == each) for each in np.unique(bins)):
        share = rate(int(labels[rows].sum()), len(rows))
        points.append((float(predicted[rows].mean()), share.value, share.low, share.high))
    return tuple(np.array(column) for column in zip(*points, strict=True))


def dose(curve: Sequence[Dose], unit: str) -> Figure:
    """Draw refusal and side effect against strength, whose axis says `unit`."""
    figure = Figure(figsize=(9, 3), layout="constrained")
    left, right = figure.subplots(1, 2)
    strengths = [each.strength for each in curve]
    left.plot(strengths, [each.refusal_harmful for each in curve], color=HARMFUL, marker="o", label="harmful")
    left.plot(strengths, [each.refusal_harmless for each in curve], color=HARMLESS, marker="o", label="harmless")
    left.axhline(0, color=MUTED, linewidth=0.8)
    left.set(xlabel=unit, ylabel="mean log-odds of refusal")
    left.legend()
    right.plot(strengths, [each.kl_harmless for each in curve], color=HARMLESS, marker="o")
    right.set(xlabel=unit, ylabel="KL on harmless prompts, nats")
    return figure


def lines(chart: Chart) -> Figure:
    """Draw a study's chart: one line a series, with its 95 % intervals as a band where there are any."""
    figure, axes = canvas(6.5, 3.6)
    for index, series in enumerate(chart.series):
        style = line_style(index)
        shown = style | ({"linestyle": "none"} if chart.scatter else {})
        axes.plot(series.x, series.y, label=series.name, marker="o", markersize=3, linewidth=1, **shown)
        if series.low is not None and series.high is not None:
            axes.fill_between(series.x, series.low, series.high, color=style["color"], alpha=0.15, linewidth=0)
    axes.set(xlabel=chart.x_label, ylabel=chart.y_label)
    if chart.log_x:
        axes.set_xscale("log")
    if len(chart.series) > 1:
        axes.legend()
    return figure


def _thinned(count: int, most: int = 20) -> list[int]:
    return list(range(0, count, -(-count // most)))
