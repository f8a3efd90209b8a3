"""Flips: the requests of a labelled file that are decided otherwise after an update, and whether it got worse.

A flip is negative where a harmful request is no longer stopped, or a harmless one is. Flips of both directions are
expected where two models differ by chance; an exact test on the discordant pairs (McNemar's) says whether more of them
are negative than chance explains.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from scipy.stats import binomtest

from calibration.prompts.prompt_file import Prompt
from guard.verdict import Action, Verdict


@dataclass(frozen=True, slots=True)
class Decided:
    """How one request is decided: the verdict's decision, its rule, and what it would be for a client."""

    decision: Action
    rule: str | None
    scores: dict[str, float]

    @classmethod
    def of(cls, verdict: Verdict) -> "Decided":
        """Return what a verdict says; in shadow mode, what it would have done."""
        return cls(verdict.decision, verdict.rule, verdict.scores)


@dataclass(frozen=True, slots=True)
class Flip:
    """A request that is decided otherwise."""

    prompt: Prompt
    before: Decided
    after: Decided
    is_negative: bool
    """Whether it is worse decided than before."""


@dataclass(frozen=True, slots=True)
class Side:
    """The requests of one label."""

    num_prompts: int
    num_stopped_before: int
    num_stopped_after: int
    num_negative: int
    num_positive: int

    @property
    def p_value(self) -> float:
        """The chance of as many negative flips or more among so many, if either direction were as likely; 1 of none."""
        flips = self.num_negative + self.num_positive
        return float(binomtest(self.num_negative, flips, 0.5, alternative="greater").pvalue) if flips else 1.0


@dataclass(frozen=True, slots=True)
class Update:
    """What an update does to the requests of a file."""

    stops: Action
    """The mildest action that counts as stopping a request."""
    harmful: Side
    harmless: Side
    flips: tuple[Flip, ...]
    """Negative ones first; of these, harmful requests first."""

    def is_worse(self, alpha: float) -> bool:
        """Return whether more requests of either label flipped for the worse than chance explains.

        The chance of saying so of an update that is not worse is `alpha` at most: half of it for each label.
        """
        return min(self.harmful.p_value, self.harmless.p_value) <= alpha / 2

    def to_json(self) -> str:
        """Return the counts and all flips, with each request's place in the file, and no text of any."""
        sides = {name: asdict(side) | {"p_value": side.p_value} for name, side in self._sides()}
        flips = [
            {
                "id": flip.prompt.id,
                "line": flip.prompt.line,
                "label": "harmful" if flip.prompt.is_harmful else "harmless",
                "for_the_worse": flip.is_negative,
                "before": asdict(flip.before),
                "after": asdict(flip.after),
            }
            for flip in self.flips
        ]
        return json.dumps({"stops": self.stops.value, **sides, "flips": flips}, indent=2)

    def _sides(self) -> tuple[tuple[str, Side], tuple[str, Side]]:
        return ("harmful", self.harmful), ("harmless", self.harmless)


def compare(prompts: Sequence[Prompt], before: Sequence[Decided], after: Sequence[Decided], stops: Action) -> Update:
    """Compare how requests are decided `before` and `after` an update, `[N]` each."""
    pairs = list(zip(prompts, before, after, strict=True))
    flips = [
        Flip(prompt, one, other, prompt.is_harmful is _stopped(one, stops))
        for prompt, one, other in pairs
        if _stopped(one, stops) is not _stopped(other, stops)
    ]
    flips.sort(key=lambda flip: (not flip.is_negative, not flip.prompt.is_harmful))

    def side(is_harmful: bool) -> Side:
        own = [(one, other) for prompt, one, other in pairs if prompt.is_harmful is is_harmful]
        negative = [flip.is_negative for flip in flips if flip.prompt.is_harmful is is_harmful]
        return Side(
            len(own),
            sum(_stopped(one, stops) for one, _ in own),
            sum(_stopped(other, stops) for _, other in own),
            sum(negative),
            len(negative) - sum(negative),
        )

    return Update(stops, side(True), side(False), tuple(flips))


def _stopped(decided: Decided, stops: Action) -> bool:
    return decided.decision.severity >= stops.severity
