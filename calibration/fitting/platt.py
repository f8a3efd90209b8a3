"""Platt scaling: scores made probabilities, for people to read; thresholds stay on scores."""

import numpy as np
import numpy.typing as npt
from scipy.optimize import minimize
from scipy.special import expit

from probes.manifest import Platt


def fit_platt(scores: npt.ArrayLike, harmful: npt.NDArray[np.bool_]) -> Platt:
    """Return the logistic map that makes scores `[N]` the most likely probabilities of harm.

    Targets are Platt's smoothed ones, `(N+ + 1) / (N+ + 2)` and `1 / (N- + 2)`, so that perfectly separated classes
    still give finite numbers. The prevalence of these prompts goes with the map, which `Platt.at` moves to another.
    """
    raw = np.asarray(scores, dtype=np.float64)
    centre, scale = float(raw.mean()), float(raw.std()) or 1.0
    standard = (raw - centre) / scale
    num_harmful, num_harmless = int(harmful.sum()), int((~harmful).sum())
    targets = np.where(harmful, (num_harmful + 1) / (num_harmful + 2), 1 / (num_harmless + 2))

    def loss(parameters: npt.NDArray[np.float64]) -> tuple[float, npt.NDArray[np.float64]]:
        logits = parameters[0] * standard + parameters[1]
        gap = expit(logits) - targets
        value = float((np.logaddexp(0.0, logits) - targets * logits).sum())
        return value, np.array([(gap * standard).sum(), gap.sum()])

    slope, intercept = minimize(loss, np.array([1.0, 0.0]), jac=True, method="BFGS").x
    return Platt(
        slope=float(slope / scale),
        intercept=float(intercept - slope * centre / scale),
        prevalence=num_harmful / len(raw) if num_harmful and num_harmless else None,
    )
