"""Drift as Prometheus sees it. Names and labels are public API: `docs/metrics.md`.

None of these metrics is public: before and after a request of one's own, each tells what a probe made of it.
"""

import math

from prometheus_client import CollectorRegistry, Gauge

from guard.drift.snapshot import DriftSnapshot


class DriftMetrics:
    """The metrics of drift in one registry."""

    def __init__(self, registry: CollectorRegistry) -> None:
        of_stream, of_probe = ["adapter", "probe", "dimension", "stratum"], ["adapter", "probe"]
        self.alarm = _gauge(
            registry,
            "foreguard_drift_alarm",
            "Whether a probe's scores have left calibration's benign ones, beyond the allowance.",
            of_stream,
        )
        self.evidence = _gauge(
            registry,
            "foreguard_drift_evidence",
            "Decimal logarithm of a probe's e-value: evidence that its scores have drifted. 0 is none.",
            of_probe,
        )
        self.stability = _gauge(
            registry,
            "foreguard_drift_psi",
            "Population stability index of recent scores against calibration's benign ones, beyond its noise.",
            of_probe,
        )
        self.rate = _gauge(
            registry,
            "foreguard_drift_rate",
            "CUSUM of a rate as a part of its limit: 1 is an alarm.",
            ["rate"],
        )

        self.out_of_distribution = _gauge(
            registry,
            "foreguard_drift_out_of_distribution",
            "Share of recent prompts that a novelty probe finds further out than nearly all of calibration's benign.",
            of_probe,
        )
        self.out_of_distribution_alarm = _gauge(
            registry,
            "foreguard_drift_out_of_distribution_alarm",
            "Whether more prompts are out of distribution than calibration's share and the allowance explain.",
            of_probe,
        )

    def publish(self, snapshot: DriftSnapshot) -> None:
        """Publish everything as it is now."""
        for each in snapshot.scores:
            self.alarm.labels(each.adapter, each.probe, each.dimension, each.stratum).set(each.drifted)
            if not each.dimension:
                self.evidence.labels(each.adapter, each.probe).set(math.log10(max(each.evidence.e_value, 1e-300)))
                self.stability.labels(each.adapter, each.probe).set(each.stability.beyond)
        for novelty in snapshot.novelty:
            self.out_of_distribution.labels(novelty.adapter, novelty.probe).set(novelty.recent)
            self.out_of_distribution_alarm.labels(novelty.adapter, novelty.probe).set(novelty.drifted)
        for name, rate in (("flags", snapshot.flags), ("unscored", snapshot.unscored)):
            self.rate.labels(name).set(1.0 if rate.alarm_at is not None else rate.level)


def _gauge(registry: CollectorRegistry, name: str, text: str, labels: list[str]) -> Gauge:
    # Of several API processes the one that moved most is shown: each watches its own part of the traffic.
    return Gauge(name, text, labels, registry=registry, multiprocess_mode="livemax")
