"""What an operator sets of drift detection."""

from dataclasses import dataclass

from probes.errors import CalibrationError


@dataclass(frozen=True, slots=True)
class DriftSettings:
    """Settings, with the promise that each one makes."""

    allowance: float = 0.02
    """Share of traffic that may come from anywhere, such as attacks, without being called drift."""
    false_alarm: float = 0.01
    """Probability that any e-process of this sink ever raises an alarm while there is no drift.

    Of all streams together, from one restart to the next. Beside it stands the references' own error probability,
    that their bounds do not hold."""
    run_length: float = 1_000_000.0
    """Requests between false alarms of all e-detectors of this sink together, on average and at least.

    Each of the two CUSUMs has the same run length for itself."""
    novel_above: float = 0.95
    """Quantile of calibration's benign scores above which a prompt counts as out of distribution."""
    window: int = 2000
    """Recent scores: how many the stability index and the attribution are worth."""
    baseline: int = 1000
    """Scores since a restart that the attribution compares recent ones to."""
    most_strata: int = 16
    """Names in each dimension that have streams of their own. The others share one."""
    flag_rate: float = 0.02
    """Share of scored prompts that the policy does not allow while all is well, or more than that.

    A policy that flags more of calibration's benign prompts has their share (`DriftSink.expect_flags`)."""
    unscored_rate: float = 0.001
    """Share of prompts without a score while all is well, or more than that."""
    rate_shift: float = 2.0
    """By which factor a rate must rise to be seen soonest."""

    def __post_init__(self) -> None:
        shares = [("allowance", 0 <= self.allowance < 1)]
        shares += [(name, 0 < getattr(self, name) < 1) for name in ("false_alarm", "novel_above")]
        sizes = [(name, getattr(self, name) >= 2) for name in ("window", "baseline", "run_length")]
        others = ("most_strata", self.most_strata >= 1), ("rate_shift", self.rate_shift > 1)
        for name, holds in (*shares, *sizes, *others):
            if not holds:
                raise CalibrationError(
                    f"{getattr(self, name)} is out of range",
                    field=f"drift.{name}",
                    remedy="give a share below 1, two requests or more, one stratum or more, and a factor above 1",
                )
