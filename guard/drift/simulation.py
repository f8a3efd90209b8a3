"""A simulation of drift detection: the false alarms that are promised and seen, and how soon a shift shows.

Run it by `python -m guard.drift.simulation`: it takes one core a minute. Benign scores are standard normal. Each
run draws a new reference of 1,000. Settings are the default ones, but for a run length that is short enough to be seen
where false alarms are counted.

One stream has all of the false alarms to itself here. A sink shares them out, so its streams are slower: by about
`ln(1 / part) / growth` requests, with `part` a stream's portion and `growth` the evidence that a request brings.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.stats import norm

from guard.drift.bets import Bets
from guard.drift.cusum import Cusum, Design
from guard.drift.reference import Reference
from guard.drift.sequential import SequentialTest
from guard.drift.settings import DriftSettings
from guard.drift.stability import RecentBins, stability

Floats = npt.NDArray[np.float64]
Traffic = Callable[[np.random.Generator, int], Floats]
REFERENCE, QUIET, LONGEST, LOOK = 1000, 10_000, 20_000, 50
SETTINGS = DriftSettings()
CUT = 2.33
"""A threshold with a false-positive rate of 1 %."""


def benign(rng: np.random.Generator, count: int) -> Floats:
    """Return scores as calibration's are."""
    return rng.normal(size=count)


def shifted(by: float) -> Traffic:
    """Return traffic that is higher by so many standard deviations."""
    return lambda rng, count: rng.normal(by, 1.0, count)


def changed(portion: float, far: float = 3.0) -> Traffic:
    """Return traffic of which a `portion` is higher by `far` standard deviations."""
    return lambda rng, count: rng.normal(size=count) + far * (rng.random(count) < portion)


@dataclass(slots=True)
class Watch:
    """The detectors of one stream, as a sink has them."""

    reference: Reference
    test: SequentialTest
    bins: RecentBins
    cusum: Cusum
    looks: int = 0
    psi_at: int | None = None

    @classmethod
    def begin(cls, rng: np.random.Generator, run_length: float, reference: Reference | None = None) -> "Watch":
        """Return detectors with this reference, or with a new one."""
        reference = reference or Reference.of(benign(rng, REFERENCE))
        bets = Bets.against(reference, SETTINGS.allowance)
        test = SequentialTest(bets, 1 / SETTINGS.false_alarm, run_length)
        design = Design.of(SETTINGS.flag_rate, SETTINGS.flag_rate * SETTINGS.rate_shift, run_length)
        return cls(reference, test, RecentBins(len(reference.counts), SETTINGS.window), Cusum(design))

    def fresh(self) -> SequentialTest:
        """Return a test that begins now, against the same reference."""
        return SequentialTest(self.test.bets, self.test.e_limit, self.test.detector_limit)

    def add(self, scores: Floats, *also: SequentialTest) -> None:
        """Take in scores `[n]`, and hand them to other tests of the same reference."""
        values = self.reference.values
        cells = np.searchsorted(values, scores, "left") + np.searchsorted(values, scores, "right")
        bins = np.searchsorted(self.reference.edges, scores, "left")
        for cell, index, flagged in zip(cells.tolist(), bins.tolist(), (scores > CUT).tolist(), strict=True):
            self.test.add(cell)
            self.bins.add(index)
            self.cusum.add(flagged)
            for each in also:
                each.add(cell)
        self.looks += len(scores)
        found = stability(self.reference, self.bins.weights, self.bins.effective_count)
        if self.psi_at is None and found.band in ("moderate", "major"):
            self.psi_at = self.looks


@dataclass(frozen=True, slots=True)
class Alarms:
    """False alarms of `runs` runs of `requests` each."""

    runs: int
    requests: int
    e_process: int
    """Runs in which the e-process ever raised one."""
    detector: int
    """All of the e-detector's, which was restarted after each."""
    cusum: int
    """All of the CUSUM's, likewise, with flags at exactly its usual rate."""


def known() -> Reference:
    """Return a reference of a million scores, spread as the normal distribution is. Its bounds leave little room."""
    return Reference.of(norm.ppf((np.arange(1_000_000) + 0.5) / 1_000_000))


def false_alarms(
    traffic: Traffic, *, runs: int, requests: int, run_length: float, seed: int, reference: Reference | None = None
) -> Alarms:
    """Return the false alarms in so many runs, each with a new reference where none is given."""
    rng = np.random.default_rng(seed)
    ever = detector = by_cusum = 0
    for _ in range(runs):
        watch = Watch.begin(rng, run_length, reference)
        test, cusum = watch.test, Cusum(watch.cusum.design)
        values = watch.reference.values
        scores = traffic(rng, requests)
        cells = np.searchsorted(values, scores, "left") + np.searchsorted(values, scores, "right")
        late = watch.fresh()
        for cell, flagged in zip(cells.tolist(), (rng.random(requests) < SETTINGS.flag_rate).tolist(), strict=True):
            test.add(cell)
            late.add(cell)
            cusum.add(flagged)
            if late.detector_alarm_at is not None:
                detector, late = detector + 1, watch.fresh()
            if cusum.alarm_at is not None:
                by_cusum, cusum = by_cusum + 1, Cusum(cusum.design)
        ever += test.evidence().alarm_at is not None
    return Alarms(runs, requests, ever, detector, by_cusum)


def delays(traffic: Traffic, *, runs: int, run_length: float, seed: int) -> dict[str, list[float]]:
    """Return, for each detector, the requests from the change to its alarm in each run; infinite where none came.

    A run in which a detector raised an alarm before the change is left out for it.
    """
    rng = np.random.default_rng(seed)
    found: dict[str, list[float]] = {
        name: [] for name in ("e-process, new", "e-process, late", "e-detector, late", "PSI, late", "CUSUM, late")
    }
    for _ in range(runs):
        watch = Watch.begin(rng, run_length)
        watch.add(benign(rng, QUIET))
        fresh, seen = watch.fresh(), 0
        alarms: tuple[int | None, ...] = (None,)
        while seen < LONGEST and None in alarms:
            watch.add(traffic(rng, LOOK), fresh)
            seen += LOOK
            new, late, psi, flags = fresh.evidence(), watch.test.evidence(), watch.psi_at, watch.cusum.alarm_at
            alarms = new.alarm_at, late.alarm_at, late.detector_alarm_at, psi, flags
        for name, at, before in zip(found, alarms, (0, QUIET, QUIET, QUIET, QUIET), strict=True):
            if at is None:
                found[name].append(math.inf)
            elif at > before:
                found[name].append(at - before)
    return found


def main() -> None:
    """Print both tables."""
    promised = SETTINGS.false_alarm + (1 - Reference.of(benign(np.random.default_rng(0), REFERENCE)).confidence)
    run_length = 20_000.0
    print(f"False alarms: e-process at most {promised:.0%} of runs, others one in {run_length:,.0f} requests at most.")
    print("traffic | runs | requests each | e-process, runs | e-detector, requests per alarm | CUSUM, likewise")
    attacked = changed(SETTINGS.allowance, 20.0)
    kinds: dict[str, tuple[Traffic, Reference | None]] = {
        "benign": (benign, None),
        f"{SETTINGS.allowance:.0%} far above": (attacked, None),
        f"{SETTINGS.allowance:.0%} far above, 1,000,000 benign scores": (attacked, known()),
    }
    for number, (name, (traffic, reference)) in enumerate(kinds.items()):
        seen = false_alarms(traffic, runs=600, requests=5000, run_length=run_length, seed=number, reference=reference)
        total = seen.runs * seen.requests
        rates = [f"{total / count:,.0f}" if count else f"none in {total:,}" for count in (seen.detector, seen.cusum)]
        print(f"{name} | {seen.runs} | {seen.requests} | {seen.e_process / seen.runs:.1%} | {' | '.join(rates)}")
    run_length = DriftSettings().run_length
    print(f"\nRequests from a change to the alarm, median / 90 %, of 60 runs. Late: after {QUIET:,} benign requests.")
    changes: dict[str, Traffic] = {f"+{by:g} SD": shifted(by) for by in (0.25, 0.5, 1.0)}
    changes |= {f"{portion:.0%} by +3 SD": changed(portion) for portion in (0.05, 0.1, 0.25)}
    for number, (name, traffic) in enumerate(changes.items()):
        found = delays(traffic, runs=60, run_length=run_length, seed=100 + number)
        if number == 0:
            print(" | ".join(["change", *found]))
        print(" | ".join([name, *(_median_and_90(each) for each in found.values())]))


def _median_and_90(delay: list[float]) -> str:
    ordered = sorted(delay)
    both = [ordered[math.ceil(len(ordered) * part) - 1] for part in (0.5, 0.9)] if ordered else [math.inf]
    return " / ".join(f"{each:,.0f}" if math.isfinite(each) else f"> {LONGEST:,}" for each in both)


if __name__ == "__main__":
    main()
