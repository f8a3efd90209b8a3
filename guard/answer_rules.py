"""Rules on answers: what happens to one that becomes unusual while it is generated.

An answer's score only ever rises (`probes.answer_reading`), so a rule that holds once holds to the end, and is acted on
when it first does. Most answers cross nothing: they are told apart from the others all at once, and only these get a
verdict.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from guard.bound_rule import BoundRule
from guard.policy import Policy
from guard.verdict import Action, Unscored, Verdict


@dataclass(frozen=True, slots=True)
class BoundAnswerRules:
    """A policy's rules on answers, whose watches exist and whose thresholds are numbers."""

    policy: Policy
    watches: tuple[str, ...]
    rules: tuple[BoundRule, ...]
    """Most severe first: the first that holds decides."""

    def first(self, scores: npt.NDArray[np.float64]) -> npt.NDArray[np.int64]:
        """Return for each of n answers, by their scores `[n, W]`, the number of the rule that decides, or that of
        rules.

        An answer without a score (NaN) crosses nothing: `judge` has to be told.
        """
        columns = {name: scores[:, index] for index, name in enumerate(self.watches)}
        fires = np.stack([*(rule.fires(columns) for rule in self.rules), np.ones(len(scores), dtype=bool)])
        return np.asarray(fires.argmax(axis=0), dtype=np.int64)

    def judge(
        self, reading: npt.NDArray[np.float64] | Unscored, *, tighten: bool = False, shadow: bool = False
    ) -> Verdict:
        """Return the verdict on one answer's scores so far `[W]`, or on their absence."""
        if isinstance(reading, Unscored):
            decision: Action = self.policy.on_unscored
            return self.policy.verdict(decision.tightened if tighten else decision, unscored=reading, shadow=shadow)
        number = int(self.first(reading[None])[0])
        rule = self.rules[number] if number < len(self.rules) else None
        decision = rule.action if rule else Action.ALLOW
        return self.policy.verdict(
            decision.tightened if tighten else decision,
            dict(zip(self.watches, reading.tolist(), strict=True)),
            rule=rule.name if rule else None,
            category=rule.category if rule else None,
            shadow=shadow,
        )
