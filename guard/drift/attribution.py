"""Attribution: which stratum moved a mean score, and whether by scoring otherwise or by becoming more or less of it.

With shares w and means u of strata before (0) and after (1), the shift of the overall mean is the sum over strata of

    within:  (w0 + w1) / 2 * (u1 - u0)
    mix:     (w1 - w0) * ((u0 + u1) / 2 - c),   c the mean of the two overall means

(Kitagawa 1955, Journal of the American Statistical Association 50; Blinder and Oaxaca both 1973, with symmetric
weights). The sum is exact. `within`, and the sum of `mix`, are the Shapley values of the game whose players are each
stratum's mean and the mix as a whole (Shorrocks 2013, Journal of Economic Inequality 11). Shares add up to 0, so c
changes no sum. It lays the mix out over strata such that one that grows adds to the shift only if it scores above the
middle.

A score that is a sum of parts (channels, layers, neuron groups) shifts by the sum of its parts' shifts, so those need
no more than their means.
"""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Group:
    """Scores of one stratum: how many, and their sum. Weighted scores count by their weight."""

    weight: float
    total: float


@dataclass(frozen=True, slots=True)
class Contribution:
    """What one stratum or part did to the mean."""

    name: str
    within: float
    """By scoring otherwise, in the score's units."""
    mix: float
    """By becoming a larger or smaller part of the traffic, in the score's units."""
    share: float
    """`(within + mix) / shift`. They add up to 1, and one that pulled the other way is negative. 0 without a shift."""

    @property
    def total(self) -> float:
        """Within and mix together."""
        return self.within + self.mix


def by_stratum(before: Mapping[str, Group], after: Mapping[str, Group]) -> list[Contribution]:
    """Return what each stratum did to the mean score, the largest contribution first; nothing if a side is empty.

    A stratum that is new, or gone, has no mean on one side. It counts as mix alone, with the mean it has on the other.
    """
    weight0, weight1 = (sum(group.weight for group in side.values()) for side in (before, after))
    if weight0 <= 0 or weight1 <= 0:
        return []
    mean0, mean1 = (
        sum(group.total for group in side.values()) / weight for side, weight in ((before, weight0), (after, weight1))
    )
    middle = (mean0 + mean1) / 2
    moved: dict[str, tuple[float, float]] = {}
    for name in before.keys() | after.keys():
        old, new = before.get(name, Group(0, 0)), after.get(name, Group(0, 0))
        if old.weight <= 0 and new.weight <= 0:
            continue
        u0 = old.total / old.weight if old.weight > 0 else new.total / new.weight
        u1 = new.total / new.weight if new.weight > 0 else u0
        w0, w1 = old.weight / weight0, new.weight / weight1
        moved[name] = (w0 + w1) / 2 * (u1 - u0), (w1 - w0) * ((u0 + u1) / 2 - middle)
    return _ranked(moved)


def by_part(before: Mapping[str, float], after: Mapping[str, float]) -> list[Contribution]:
    """Return what each part of a summed score did to its mean, from the parts' means before and after.

    A part that one side lacks has the mean 0 there. Parts have no mix.
    """
    names = before.keys() | after.keys()
    return _ranked({name: (after.get(name, 0.0) - before.get(name, 0.0), 0.0) for name in names})


def _ranked(moved: Mapping[str, tuple[float, float]]) -> list[Contribution]:
    shift = sum(within + mix for within, mix in moved.values())
    found = [
        Contribution(name, within, mix, (within + mix) / shift if shift else 0.0)
        for name, (within, mix) in moved.items()
    ]
    return sorted(found, key=lambda each: (-abs(each.total), each.name))
