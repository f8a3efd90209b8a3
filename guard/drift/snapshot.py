"""What drift detection has to show: plain values, fit for JSON, metrics and a console."""

from dataclasses import asdict, dataclass
from typing import Any

from guard.drift.attribution import Contribution
from guard.drift.cusum import Cusum
from guard.drift.interval import Share, share
from guard.drift.sequential import Evidence
from guard.drift.stability import Stability


@dataclass(frozen=True, slots=True)
class ScoreDrift:
    """One probe's scores in the whole traffic, or in one stratum."""

    adapter: str
    """Empty for the model itself."""
    probe: str
    dimension: str
    """Empty for the whole traffic."""
    stratum: str
    drifted: bool
    """Whether the e-process or the e-detector raised an alarm since the last restart."""
    num_cuts: int
    """Cuts that the test bets on. 0: calibration's scores are too few, and it never raises an alarm."""
    evidence: Evidence
    stability: Stability


@dataclass(frozen=True, slots=True)
class RateDrift:
    """The rate of flags, or of prompts without a score."""

    share: Share
    """With a 95 % confidence sequence."""
    level: float
    """The CUSUM, as a part of its limit: an alarm is raised at 1."""
    alarm_at: int | None
    usual: float
    shifted: float
    run_length: float

    @classmethod
    def of(cls, cusum: Cusum) -> "RateDrift":
        """Return what `cusum` shows."""
        design = cusum.design
        return cls(
            share(cusum.events, cusum.count),
            cusum.level / design.limit,
            cusum.alarm_at,
            design.usual,
            design.shifted,
            design.run_length,
        )


@dataclass(frozen=True, slots=True)
class OutOfDistribution:
    """How many prompts a novelty probe finds out of distribution."""

    adapter: str
    probe: str
    drifted: bool
    above: float
    """The score that counts as out of distribution when it is exceeded: a quantile of calibration's benign scores."""
    share: Share
    """Of all prompts since the last restart, with a 95 % confidence sequence."""
    recent: float
    """Of recent prompts."""
    usual: float
    """Of calibration's benign prompts."""
    tolerated: float
    """The test looks for more than this: calibration's share at its upper confidence bound, and the allowance."""
    can_alarm: bool
    """Whether calibration had prompts enough for the test."""
    evidence: Evidence


@dataclass(frozen=True, slots=True)
class Flagged:
    """Flags in one stratum, with a 95 % confidence sequence: the realised share against the promised one."""

    dimension: str
    stratum: str
    share: Share


@dataclass(frozen=True, slots=True)
class Moved:
    """How far a score's mean moved since the baseline, and what each stratum, or each probe in it, did to it."""

    adapter: str
    probe: str
    dimension: str
    """A dimension of the traffic; or `probe`, where the score is a policy's combination of probes."""
    shift: float
    """In the score's units."""
    noise: float
    """Standard error of the shift were there no drift. Contributions to a shift of this size mean nothing."""
    contributions: list[Contribution]
    """The largest first."""


@dataclass(frozen=True, slots=True)
class DriftSnapshot:
    """Everything at one moment."""

    decisions: int
    """Prompts decided since the last restart."""
    given_up: int
    """Prompts whose client left before they were decided."""
    scores: list[ScoreDrift]
    novelty: list[OutOfDistribution]
    """Of each novelty probe that the artifacts have."""
    flags: RateDrift
    unscored: RateDrift
    flagged: list[Flagged]
    moved: list[Moved]

    @property
    def drifted(self) -> bool:
        """Whether any alarm stands."""
        tests = any(each.drifted for each in self.scores) or any(each.drifted for each in self.novelty)
        return tests or any(rate.alarm_at is not None for rate in (self.flags, self.unscored))

    def to_json(self) -> dict[str, Any]:
        """Return plain data for `json.dumps`."""
        return asdict(self)
