"""What other rules would have done to the last decisions, before they are in force."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from guard.tuning.estimates import Estimates, estimates
from guard.tuning.judged import Judged, LeftOut, Rules, judge
from guard.tuning.recent import Objects, Recent
from guard.verdict import Action


@dataclass(frozen=True, slots=True)
class Counts:
    """How many decisions get each action, by the rules before and after. Every action is there."""

    before: Mapping[Action, int]
    after: Mapping[Action, int]

    @property
    def total(self) -> int:
        """How many decisions there are."""
        return sum(self.before.values())


@dataclass(frozen=True, slots=True, eq=False)
class Changes:
    """The decisions that change, the newest first."""

    rows: npt.NDArray[np.intp]
    """`[C]`: places among the decisions that were asked about."""
    keys: npt.NDArray[np.int64]
    """`[C]`: `guard.store.reader.Reader.at` takes them."""
    before: Objects
    """`[C]` of `Action`."""
    after: Objects
    """`[C]` of `Action`."""
    rules: Objects
    """`[C]` of str or None: the rule that decides after."""

    def __len__(self) -> int:
        return len(self.rows)


@dataclass(frozen=True, slots=True, eq=False)
class WhatIf:
    """What changes where other rules come into force. All of it is about the decisions that could be judged anew."""

    counts: Counts
    by_tenant: Mapping[str, Counts]
    """The largest first; the empty name is nobody's."""
    by_route: Mapping[str, Counts]
    """Likewise."""
    changes: Changes
    before: Estimates
    """What labels say of the rules before: false-positive rate, recall and precision with their intervals."""
    after: Estimates
    judged: int
    """How many decisions were judged anew."""
    left_out: Mapping[LeftOut, int]
    """How many could not be, by reason."""
    recorded_otherwise: int
    """Of the judged ones, how many were recorded with another action than the rules before call for: another policy
    decided, the client asked for a block or for an answer that cannot be steered, or the last turn was left open.
    """


def what_if(
    recent: Recent,
    before_rules: Rules,
    after_rules: Rules,
    *,
    stops: Action = Action.FLAG,
    confidence: float = 0.95,
) -> WhatIf:
    """Return what the rules after would have decided otherwise than the rules before.

    Both judge the recorded scores; what was recorded as the decision has no part in the counts. `stops` is the mildest
    action that counts as stopping a request in false-positive rate, recall and precision. A decision has a part where
    both can judge it.
    """
    before, after = judge(recent, before_rules), judge(recent, after_rules)
    counted = before.counted & after.counted
    actions = before.actions, after.actions
    rows = np.flatnonzero(counted & (before.severities != after.severities))
    changes = Changes(rows, recent.keys[rows], actions[0][rows], actions[1][rows], after.deciding[rows])
    return WhatIf(
        counts=_counts(before, after, counted),
        by_tenant=_by(recent.tenants, before, after, counted),
        by_route=_by(recent.routes, before, after, counted),
        changes=changes,
        before=estimates(recent, before.severities >= stops.severity, counted, confidence),
        after=estimates(recent, after.severities >= stops.severity, counted, confidence),
        judged=int(np.count_nonzero(counted)),
        left_out=_most(before.left_out, after.left_out),
        recorded_otherwise=int(np.count_nonzero(counted & (recent.actions != actions[0]))),
    )


def _counts(before: Judged, after: Judged, rows: npt.NDArray[np.bool_]) -> Counts:
    return Counts(_by_action(before.severities[rows]), _by_action(after.severities[rows]))


def _by_action(severities: npt.NDArray[np.int8]) -> dict[Action, int]:
    numbers = np.bincount(severities, minlength=len(Action)).tolist()
    return {action: numbers[action.severity] for action in Action}


def _by(groups: Objects, before: Judged, after: Judged, counted: npt.NDArray[np.bool_]) -> dict[str, Counts]:
    numbers: dict[str, int] = {}
    # Sooner than sorting a hundred thousand words.
    places = np.array(
        [numbers.setdefault(name or "", len(numbers)) for name in groups[counted].tolist()], dtype=np.int64
    )
    tables = [
        np.bincount(places * len(Action) + each.severities[counted], minlength=len(numbers) * len(Action)).reshape(
            -1, len(Action)
        )
        for each in (before, after)
    ]
    largest = np.argsort(-tables[0].sum(axis=1), kind="stable").tolist()
    names = list(numbers)
    return {
        names[place]: Counts(*(dict(zip(Action, table[place].tolist(), strict=True)) for table in tables))
        for place in largest
    }


def _most(before: Mapping[LeftOut, int], after: Mapping[LeftOut, int]) -> dict[LeftOut, int]:
    """Return the numbers left out of either; the two differ where they know other probes."""
    return {
        reason: max(before.get(reason, 0), after.get(reason, 0)) for reason in LeftOut if {*before, *after} & {reason}
    }
