"""What people label next: decisions near a threshold and those that probes disagree on first, each by a known chance.

The design is Poisson sampling with unequal chances (Hájek 1964, "Asymptotic theory of rejective sampling with varying
probabilities from a finite population"; Särndal, Swensson and Wretman 1992, *Model Assisted Survey Sampling*, 3.5) by
permanent random numbers, served in sequence (Ohlsson 1998, "Sequential Poisson sampling"). Each decision has a design
chance p and a random number u of its own. They come in the order of u / p, so that after any number of them those with
u < t p are labelled, for some t: each decision was picked with the chance t p. The factor t is the same for all, and
shares are ratios, so that p is all that estimates need.

What makes a decision worth a look is uncertainty (Lewis and Gale 1994, "A sequential algorithm for training text
classifiers"), disagreement (Seung, Opper and Sompolinsky 1992, "Query by committee"), and that it was stopped.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from sqlalchemy import Engine

from guard.decide import BoundPolicy
from guard.store.filters import Filters
from guard.store.reader import ALL, Reader, Record
from guard.tuning.chance import drawn
from guard.tuning.judged import Rules, columns_for, judge, judge_columns
from guard.tuning.recent import Recent, recent

Floats = npt.NDArray[np.float64]
FLOOR = 1 / 16
"""The least chance that a decision has."""
_NEAR = 0.25
"""Spreads from a threshold up to which a decision has the greatest chance; with each as many more it is halved."""
_RARE = 0.01
"""Share of decisions, those that probes disagree on most, that have the greatest chance; twice as many, half of it."""
_STOPPED = 0.25
"""The least chance of a decision that the rules stop: these are few, and precision is made from them alone."""
_EVENLY = "review, evenly"
_NORMAL_IQR = 1.349
"""Interquartile range of a normal distribution, in standard deviations."""


@dataclass(frozen=True, slots=True)
class ToReview:
    """A decision to label."""

    record: Record
    chance: float
    """The design's chance, to be stored as `GivenLabel.chance`. It is the one that the decision was picked with up to a
    factor that all of this source have in common.
    """
    source: str
    """The design's name, to be stored as `GivenLabel.source`: chances of two designs have different factors."""
    rule: str | None
    """The rule with the nearest threshold; None where no rule has one."""
    score: str | None
    """The score that this threshold is of."""
    distance: float
    """From the score to the threshold, in spreads of the score: above it is positive. NaN without a threshold."""
    disagreement: float
    """Share of decisions that probes disagree on at least as much: small is much. NaN with fewer than two probes."""


@dataclass(frozen=True, slots=True, eq=False)
class Design:
    """With which chance each of N decisions is picked, and why."""

    chances: Floats
    """`[N]`: a power of one half, at least the floor."""
    nearest: npt.NDArray[np.intp]
    """`[N]`: which of `ends` is nearest."""
    distances: Floats
    """`[N]`: in spreads; NaN where there are no `ends`."""
    disagreement: Floats
    """`[N]`."""
    ends: tuple[tuple[str, str, float], ...]
    """Rule, score and number of each threshold."""


def to_review(
    engine: Engine,
    policy: BoundPolicy,
    n: int,
    seed: int = 0,
    *,
    filters: Filters = ALL,
    among: int = 100_000,
    floor: float = FLOOR,
    confirm: bool = True,
) -> list[ToReview]:
    """Return up to `n` decisions to label next, in the order in which to label them.

    Those with a label of known chance are left out. With `confirm`, two kinds of labelled decisions come up where the
    design picks them, with their label, and need no more than to be confirmed under this design's `source` and
    `chance`: those of unknown chance, such as a complaint, or else the labels of known chance would be of what nobody
    complains about; and, for an even design, those of an uneven one, or else it would lack what that one prefers.

    They come from the last `among` decisions that fit the filters and that the policy can judge. With a `floor` of 1
    all have the same chance: that is the quickest way to labels which certify a threshold. With a lesser one,
    borderline decisions come first, which is the quickest way to precision and recall near the threshold. There are
    fewer than `n` where all that the design picks have labels: wait for more traffic, or ask with a higher floor.

    Label them in order, and all of them: whoever skips what is hard to say biases what labels say (label it unsure).
    Other thresholds, another floor and another seed are another design with random numbers of its own. Labels of two
    designs go together, each under its `source`, as long as only a small share of the decisions has one; those of a
    part of the traffic (`filters`) speak of that part. Raises `sqlalchemy.exc.DBAPIError` where the store is gone.
    """
    found = recent(engine, among, filters)
    rules = Rules.of(policy)
    found = found.rows(judge(found, rules).counted)
    plan = design(found, rules, floor)
    order = drawn(found.keys, f"review {seed} {floor} {plan.ends}") / plan.chances
    wanted = _unlabelled(found, floor) if confirm else found.labels == None  # noqa: E711 - of each element
    picked = np.flatnonzero(wanted & (order < 1))
    picked = picked[np.argsort(order[picked], kind="stable")][:n]
    records = {record.key: record for record in Reader(engine).at(found.keys[picked].tolist())}
    # One that was deleted meanwhile is left out.
    source = source_of(floor)
    return [
        _told(records[key], plan, row, source) for row in picked.tolist() if (key := int(found.keys[row])) in records
    ]


def source_of(floor: float = FLOOR) -> str:
    """Return the name of the design with that floor."""
    return {FLOOR: "review, borderline first", 1.0: _EVENLY}.get(floor, f"review, floor {floor:g}")


def _unlabelled(found: Recent, floor: float) -> npt.NDArray[np.bool_]:
    """Return the decisions `[N]` that have no label which counts for the design.

    After an uneven design with chances t p, an even one with the chance s that takes its labels over leaves that one
    with chances t p (1 - s): still proportional to p. The other way round an uneven design leaves even labels alone,
    and has chances t p (1 - s) itself.
    """
    unknown = ~np.isfinite(found.chances)
    if floor < 1:
        return unknown
    names: dict[str | None, bool] = {}
    uneven = [names.setdefault(name, _is_uneven(name)) for name in found.sources.tolist()]
    return np.asarray(unknown | np.array(uneven, dtype=bool))


def _is_uneven(source: str | None) -> bool:
    return source is not None and source.startswith("review, ") and source != _EVENLY


def design(found: Recent, rules: Rules, floor: float = FLOOR) -> Design:
    """Return the chances of decisions that `rules` can judge. Raises `ValueError` for a floor that is no probability.

    A chance is the greater of two, by distance and by disagreement, in powers of one half: what moves a spread a little
    as traffic goes on then changes the chance of few decisions. What the rules stop has a quarter at least.
    """
    if not 0 < floor <= 1:
        raise ValueError(f"a chance of {floor} is not above 0 and at most 1")
    columns = columns_for(found, rules)
    ends = tuple(
        (rule.name, band.score, end)
        for rule in rules.rules
        for band in rule.bands
        for end in (band.above, band.below)
        if np.isfinite(end)
    )
    spread = {name: _spread(columns[name]) for _, name, _ in ends}
    signed = np.array([(columns[name] - end) / spread[name] for _, name, end in ends]).reshape(len(ends), len(found))
    nearest = np.abs(signed).argmin(axis=0) if ends else np.zeros(len(found), dtype=np.intp)
    distances = signed[nearest, np.arange(len(found))] if ends else np.full(len(found), np.nan)
    disagreement = _disagreement([columns[name] for name in dict.fromkeys(name for _, name, _ in ends)], len(found))
    by_distance = -np.floor(np.abs(distances) / _NEAR)
    by_disagreement = -np.ceil(np.log2(np.maximum(disagreement, _RARE) / _RARE) - 1e-9)
    exponents = np.fmax(np.nan_to_num(by_distance, nan=-np.inf), np.nan_to_num(by_disagreement, nan=-np.inf))
    least = np.where(judge_columns(columns, rules, len(found))[0] > 0, max(_STOPPED, floor), floor)
    return Design(np.maximum(2.0**exponents, least), nearest, distances, disagreement, ends)


def _spread(column: Floats) -> float:
    """Return a standard deviation that a few extreme scores do not change: from the interquartile range."""
    if not len(column):
        return 1.0
    low, high = np.quantile(column, (0.25, 0.75))
    return float((high - low) / _NORMAL_IQR) or float(column.std()) or 1.0


def _disagreement(columns: list[Floats], count: int) -> Floats:
    """Return the share of decisions `[N]` on which scores lie at least as far apart; NaN for a single score."""
    if len(columns) < 2 or not count:
        return np.full(count, np.nan)
    standing = np.array([(column - np.median(column)) / _spread(column) for column in columns])
    apart = np.ptp(standing, axis=0)
    return np.asarray(1 - np.searchsorted(np.sort(apart), apart, "left") / count)


def _told(record: Record, plan: Design, row: int, source: str) -> ToReview:
    rule, score, _ = plan.ends[plan.nearest[row]] if plan.ends else (None, None, 0.0)
    return ToReview(
        record, float(plan.chances[row]), source, rule, score, float(plan.distances[row]), float(plan.disagreement[row])
    )
