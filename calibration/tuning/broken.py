"""Strata that break a promise: parts of the traffic in which a threshold lets more benign prompts through the roof."""

from collections.abc import Iterator, Sequence

import numpy as np

from calibration.tuning.labelled import KINDS, Labelled
from calibration.tuning.policy_edit import shown
from calibration.tuning.tune import Tuned
from guard.store.label import Label
from guard.threshold import share_confidence
from guard.tuning.estimates import share
from probes.manifest import Rate

_DIVIDES = ("tenant", "route", "model")


def broken_promises(found: Labelled, scores: Sequence[Tuned], kept: Sequence[str], confidence: float) -> list[str]:
    """Name the tenants, routes and models in which more benign decisions are above a threshold than it promises.

    Those are named whose share is more with the confidence asked for, all tests together (Bonferroni), by exact
    intervals; `kept` are the kinds in which the thresholds were certified already. A stratum too small to be sure of is
    not named.
    """
    benign = found.rows(Label.BENIGN)
    tests = list(_tests(found, scores, [kind for kind in _DIVIDES if kind not in kept]))
    each = share_confidence(confidence, max(len(tests), 1))
    notes = []
    for kind, name, rows, item in tests:
        above = found.columns[item.name][benign[rows]] > item.threshold.value
        # Two-sided intervals, of which one end is asked for.
        found_share = share(above, np.ones(len(above)), 1 - 2 * (1 - each))
        if found_share is not None and found_share.low > item.threshold.target_fpr:
            rate = Rate(value=found_share.value, low=found_share.low, high=found_share.high, count=len(above))
            notes.append(
                f"{kind} {name} breaks the promise of {100 * item.threshold.target_fpr:.3g} %: {shown(rate)} of its "
                f"{len(above):,} benign decisions have {item.name} above {item.threshold.value:.4f}. Tune with "
                f"--by {kind} to keep it in each"
            )
    return notes


def _tests(
    found: Labelled, scores: Sequence[Tuned], kinds: Sequence[str]
) -> Iterator[tuple[str, str, np.ndarray[tuple[int], np.dtype[np.bool_]], Tuned]]:
    benign = found.rows(Label.BENIGN)
    for kind in kinds:
        values = KINDS[kind](found.traffic.rows(benign))
        names = sorted(set(values.tolist()))
        if len(names) > 1:
            for name in names:
                for item in scores:
                    yield kind, name, np.asarray(values == name), item
