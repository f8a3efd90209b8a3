"""Learn then Test (arXiv 2110.01052): which of a list of configurations keep every one of several limits, with
confidence.

Each configuration is a null hypothesis, "one of its risks is above its limit". A risk's p-value is exact binomial for
losses that are 0 or 1, and Hoeffding-Bentkus for others between them; a configuration's is the largest of its risks',
which is valid since under the null at least one of them is. Rejected nulls are certified: with the stated confidence,
over draws of the sample, not one configuration that breaks a limit is among them, so any may be chosen, by whatever
criterion.

The list, its order and its weights must not depend on the sample that certifies.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.stats import binom

from probes.errors import CalibrationError

Floats = npt.NDArray[np.float64]
_MOST_NEEDED = 100_000_000
"""No sample size beyond this is ever advised."""


@dataclass(frozen=True, slots=True)
class Risk:
    """One limit, and what a sample of `count` prompts says of it: the mean loss of each of C configurations, `[C]`."""

    name: str
    limit: float
    means: Floats
    count: int
    is_binary: bool
    """Whether every loss is 0 or 1."""

    def __post_init__(self) -> None:
        if not 0.0 < self.limit < 1.0:
            raise CalibrationError(
                f"{self.limit:g} is not between 0 and 1", field=self.name, remedy="give a proportion such as 0.01"
            )
        if self.count == 0:
            raise CalibrationError(
                "there are no prompts to measure it on", field=self.name, remedy="give prompts of this kind"
            )

    @property
    def p_values(self) -> Floats:
        """Probability `[C]` of a mean this low, or a bound on it, were the true risk at the limit or above."""
        return p_values(self.means, self.count, self.limit, is_binary=self.is_binary)


def p_values(means: npt.ArrayLike, count: int, limit: float, *, is_binary: bool = True) -> Floats:
    """Return p-values `[C]` of "the risk is above `limit`" for the means `[C]` of `count` losses.

    Exact binomial, `P(Bin(n, limit) <= n * mean)`; else Hoeffding-Bentkus, the lesser of `exp(-n h(min(mean, limit),
    limit))` with the binary relative entropy h, and `e P(Bin(n, limit) <= ceil(n * mean))`.
    """
    observed = np.asarray(means, dtype=np.float64)
    # A mean of 0/1 losses is a whole number over n, up to rounding; other sums are rounded up, hair's breadths apart.
    hits = np.rint(observed * count) if is_binary else np.ceil(observed * count - 1e-9)
    tail = binom.cdf(hits, count, limit)
    if is_binary:
        return np.asarray(tail, dtype=np.float64)
    low = np.minimum(observed, limit)
    with np.errstate(divide="ignore", invalid="ignore"):
        entropy = np.where(low > 0, low * np.log(low / limit), 0.0) + (1 - low) * np.log((1 - low) / (1 - limit))
    return np.asarray(np.minimum(np.minimum(np.exp(-count * entropy), math.e * tail), 1.0), dtype=np.float64)


def learn_then_test(
    risks: Sequence[Risk],
    confidence: float = 0.95,
    *,
    order: Sequence[int] | None = None,
    shares: npt.ArrayLike | None = None,
) -> npt.NDArray[np.bool_]:
    """Return which of C configurations are certified `[C]`: with `confidence`, none that breaks a limit is among them.

    The error probability `1 - confidence` is laid out over the configurations, in `order`, by `shares` `[C]` that add
    up to 1 or less; evenly where none are given. What a certified one had is handed to the next (the fallback
    procedure: Wiens 2003, "A fixed sequence Bonferroni procedure"). All on the first is thus fixed-sequence testing,
    and even shares are no worse than Bonferroni.
    """
    joint = np.max([risk.p_values for risk in risks], axis=0)
    laid_out = np.full(len(joint), 1 / len(joint)) if shares is None else np.asarray(shares, dtype=np.float64)
    if (laid_out < 0).any() or laid_out.sum() > 1 + 1e-9:
        raise ValueError("shares of the error probability are negative, or add up to more than 1")
    certified = np.zeros(len(joint), dtype=bool)
    inherited = 0.0
    for share, index in zip(laid_out, range(len(joint)) if order is None else order, strict=True):
        level = inherited + (1.0 - confidence) * float(share)
        certified[index] = joint[index] <= level
        inherited = level if certified[index] else 0.0
    return certified


def explain(risks: Sequence[Risk], level: float) -> CalibrationError:
    """Return the error that says which limit stood in the way of every configuration, and what sample would help.

    `level` is the error probability that every configuration, wherever it stood in the order, was sure to be tested at.
    """
    joint = np.array([risk.p_values for risk in risks])
    alone = [number for number, row in enumerate(joint) if row.min() > level]
    if alone:
        number = max(alone, key=lambda each: float(joint[each].min()))
        return _out_of_reach(risks[number], int(joint[number].argmin()), level, "")
    # Each can be kept, and not all at once: which of them fails by least where the others are kept?
    kept = joint <= level
    closest: list[tuple[float, int, int]] = []
    for number, row in enumerate(joint):
        others = np.delete(kept, number, axis=0).all(axis=0)
        if others.any():
            index = int(np.where(others, row, np.inf).argmin())
            closest.append((float(row[index]), number, index))
    if not closest:
        index = int(joint.max(axis=0).argmin())
        return _out_of_reach(risks[int(joint[:, index].argmax())], index, level, " of all limits together")
    _, number, index = min(closest)
    others_named = " and ".join(each.name for each in risks if each is not risks[number])
    return _out_of_reach(risks[number], index, level, f" where {others_named} are kept")


def needed_sample(mean: float, limit: float, level: float, *, is_binary: bool = True) -> int | None:
    """Return about how many prompts would show a risk that is `mean` to be within `limit`; none when no number
    would.
    """

    def shows(count: int) -> bool:
        seen = math.ceil(mean * count - 1e-9) / count
        return bool(p_values([seen], count, limit, is_binary=is_binary)[0] <= level)

    high = 1
    while not shows(high):
        high *= 2
        if high > _MOST_NEEDED:
            return None
    low = high // 2
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if shows(middle) else (middle, high)
    return high


def _out_of_reach(risk: Risk, index: int, level: float, where: str) -> CalibrationError:
    mean = float(risk.means[index])
    seen = f"{100 * mean:.3g} % of {risk.count} prompts at best{where}"
    needed = needed_sample(mean, risk.limit, level, is_binary=risk.is_binary)
    if needed is None:
        return CalibrationError(
            f"cannot be kept at {100 * risk.limit:.3g} %: it is {seen}, and no larger sample would change that",
            field=risk.name,
            remedy="allow more of it, or less of nothing else; or calibrate probes that tell these prompts apart",
        )
    return CalibrationError(
        f"cannot be certified at {100 * risk.limit:.3g} %: it is {seen}, which so few cannot show",
        field=risk.name,
        remedy=f"give more prompts of this kind, about {needed} to be sure; or allow more of it, or ask for less "
        "confidence",
    )
