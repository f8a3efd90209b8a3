"""Running means of one probe's score by stratum: the first requests since a restart, and the recent ones."""

import math

from guard.drift.attribution import Contribution, Group, by_part, by_stratum
from guard.drift.state import MeansState

_RESCALED_AT = 1e100


class RunningMeans:
    """Four numbers for each stratum: what it was, and what it lately is."""

    def __init__(self, baseline: int, window: int, *, each: int = 1) -> None:
        """The first `baseline` requests are what later ones are compared to.

        Of the later ones, old ones are exponentially forgotten, so that in the long run they are worth `window`
        requests. A request adds `each` numbers.
        """
        self._each = each
        baseline, window = baseline * each, window * each
        self._baseline, self._window = baseline, window
        self._growth = (window + 1.0) / max(window - 1.0, 1e-9)
        self._step = 1.0
        self._seen = 0
        self._groups: dict[str, list[float]] = {}

    def add(self, stratum: str, score: float) -> None:
        """Take in one score. The caller bounds the number of strata."""
        group = self._groups.get(stratum)
        if group is None:
            group = self._groups[stratum] = [0.0, 0.0, 0.0, 0.0]
        self._seen += 1
        if self._seen <= self._baseline:
            group[0] += 1.0
            group[1] += score
            return
        self._step *= self._growth
        group[2] += self._step
        group[3] += self._step * score
        if self._step > _RESCALED_AT:
            self.restore(self.state())

    def contributions(self) -> list[Contribution]:
        """Return what each stratum did to the mean since the baseline, largest first; nothing before there is one."""
        before = {name: Group(count, total) for name, (count, total, _, _) in self._groups.items()}
        after = {name: Group(weight, total) for name, (_, _, weight, total) in self._groups.items()}
        return by_stratum(before, after)

    def parts(self) -> list[Contribution]:
        """Return what each part of a sum did to its mean, where strata are parts and each request adds to all."""
        means = {
            name: (total / count, recent / weight)
            for name, (count, total, weight, recent) in self._groups.items()
            if count > 0 and weight > 0
        }
        return by_part({name: each[0] for name, each in means.items()}, {name: each[1] for name, each in means.items()})

    def noise(self, spread: float) -> float:
        """Return about how large a shift of the mean is by chance, one standard error, for scores of this `spread`."""
        seen, baseline, window = (number / self._each for number in (self._seen, self._baseline, self._window))
        before, recent = min(seen, baseline), min(seen - baseline, window)
        return spread * math.sqrt(1 / before + 1 / recent) if recent > 0 else math.inf

    def state(self) -> MeansState:
        """Return plain data from which `restore` makes the means what they are."""
        groups = {
            name: (count, total, weight / self._step, recent / self._step)
            for name, (count, total, weight, recent) in self._groups.items()
        }
        return MeansState(seen=self._seen, groups=groups)

    def restore(self, state: MeansState) -> None:
        """Take on saved means."""
        self._groups = {name: list(group) for name, group in state.groups.items()}
        self._seen, self._step = state.seen, 1.0
