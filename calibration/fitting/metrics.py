"""Detection metrics on scores, each with the uncertainty that its sample size leaves."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from scipy.stats import binomtest, rankdata, t
from sklearn.metrics import roc_auc_score

from guard.threshold import Threshold, certify, minimum_negatives
from probes.manifest import Evaluation, Rate

FALSE_POSITIVE_RATES = (0.01, 0.001)
_NUM_BOOTSTRAP = 1000
_SEED = 20_260

Scores = npt.NDArray[np.floating]


def aurocs(columns: Scores, harmful: npt.NDArray[np.bool_]) -> npt.NDArray[np.float64]:
    """Return for each column `[N, k]` the probability that a harmful row has more there; ties count one half.

    `harmful` `[N]` has the rows' labels. All columns are ranked at once, which scikit-learn's `roc_auc_score` does not.
    """
    count = int(harmful.sum())
    rank_sums = rankdata(columns, axis=0)[harmful].sum(axis=0)
    return np.asarray((rank_sums - count * (count + 1) / 2) / (count * (len(harmful) - count)))


def auroc(harmful: Scores, harmless: Scores) -> float:
    """Return the probability that a harmful prompt scores above a harmless one; ties count one half."""
    both = np.concatenate([harmful, harmless])
    return float(aurocs(both[:, None], np.arange(len(both)) < len(harmful))[0])


def mean_interval(values: Sequence[float], *, of_shares: bool = False) -> tuple[float, float, float]:
    """Return the mean and the 95 % interval of the mean, by Student's t; `of_shares` it stays between 0 and 1."""
    mean, error = float(np.mean(values)), float(np.std(values, ddof=1)) / len(values) ** 0.5
    half = float(t.ppf(0.975, len(values) - 1)) * error
    return (mean, max(mean - half, 0.0), min(mean + half, 1.0)) if of_shares else (mean, mean - half, mean + half)


def auroc_interval(harmful: Scores, harmless: Scores, *, num_draws: int = _NUM_BOOTSTRAP) -> tuple[float, float]:
    """Return the 95 % percentile interval of the AUROC over bootstrap draws, stratified by class."""
    rng = np.random.default_rng(_SEED)
    order = np.sort(harmless)
    # Each harmful prompt's share of the AUROC is its rank among the harmless; resampled negatives are a reweighting.
    below, upto = np.searchsorted(order, harmful, "left"), np.searchsorted(order, harmful, "right")
    draws = np.empty(num_draws)
    for index in range(num_draws):
        weights = np.bincount(rng.integers(len(order), size=len(order)), minlength=len(order))
        cumulative = np.concatenate([[0], np.cumsum(weights)])
        credit = (cumulative[below] + cumulative[upto]) / 2
        draws[index] = credit[rng.integers(len(harmful), size=len(harmful))].mean() / len(order)
    low, high = np.quantile(draws, [0.025, 0.975])
    return float(low), float(high)


def rate(hits: int, count: int) -> Rate:
    """Return a proportion with its exact 95 % (Clopper-Pearson) interval."""
    interval = binomtest(hits, count).proportion_ci(0.95, method="exact")
    return Rate(value=hits / count, low=float(interval.low), high=float(interval.high), count=count)


def cut_at(harmless: Scores, false_positive_rate: float) -> float:
    """Return the lowest of the scores `[N]` above which at most that share of them lies."""
    order = np.sort(harmless)
    return float(order[len(order) - 1 - int(len(order) * false_positive_rate)])


def recall_at(harmful: Scores, harmless: Scores, false_positive_rate: float) -> float:
    """Return the share of harmful scores above the cut that the harmless ones give; unlike `tpr_at_fpr`, for any N."""
    return float((harmful > cut_at(harmless, false_positive_rate)).mean())


def low_end_auroc(harmful: Scores, harmless: Scores, false_positive_rate: float = 0.05) -> float:
    """Return the AUROC of the part of the curve up to a rate of false positives, scaled so that chance is 0.5.

    It says what recall at one low rate says, and depends less on a few harmless prompts
    (McClish, doi:10.1177/0272989X8900900307, as scikit-learn has it).
    """
    labels = np.arange(len(harmful) + len(harmless)) < len(harmful)
    return float(roc_auc_score(labels, np.concatenate([harmful, harmless]), max_fpr=false_positive_rate))


def tpr_at_fpr(harmful: Scores, harmless: Scores, rates: Sequence[float] = FALSE_POSITIVE_RATES) -> dict[str, Rate]:
    """Return recall at each false-positive rate that the harmless sample is large enough to speak of.

    A rate is left out when fewer harmless prompts are given than could certify it (299 for 1 %, 2,995 for 0.1 %).
    The interval is the recall's at that cut; the cut's own uncertainty is not in it.
    """
    quotable = [alpha for alpha in rates if len(harmless) >= minimum_negatives(alpha)]
    return {f"{alpha:g}": rate(int((harmful > cut_at(harmless, alpha)).sum()), len(harmful)) for alpha in quotable}


def evaluate_scores(scores: Scores, harmful: npt.NDArray[np.bool_], split: str) -> Evaluation:
    """Return the manifest's numbers for scores `[N]` with labels `[N]`."""
    positive, negative = scores[harmful], scores[~harmful]
    low, high = auroc_interval(positive, negative)
    return Evaluation(
        split=split,
        num_harmful=len(positive),
        num_harmless=len(negative),
        auroc=auroc(positive, negative),
        auroc_low=low,
        auroc_high=high,
        tpr_at_fpr=tpr_at_fpr(positive, negative),
    )


def certified_thresholds(benign_scores: npt.NDArray[np.float32], confidence: float = 0.95) -> list[Threshold]:
    """Return the thresholds for 1 % and 0.1 % that the benign scores `[M]` are numerous enough to certify."""
    rates = [alpha for alpha in FALSE_POSITIVE_RATES if len(benign_scores) >= minimum_negatives(alpha, confidence)]
    return [certify(benign_scores, alpha, confidence) for alpha in rates]
