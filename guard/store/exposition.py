"""The decision store as Prometheus sees it. Names and labels are public API: `docs/metrics.md`."""

from typing import Literal, get_args

from prometheus_client import CollectorRegistry, Counter, Gauge

from guard.store.sink import SinkStatus
from guard.store.writer import DropReason

Task = Literal["write", "prune"]


class StoreMetrics:
    """The metrics of the store in one registry."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.dropped = Counter(
            "foreguard_store_dropped",
            "Decisions and texts that are not in the store, by reason.",
            ["reason"],
            registry=registry,
        )
        self.written = Counter(
            "foreguard_store_written", "Decisions and texts that the store has taken.", registry=registry
        )
        # Of several API processes: all that wait, and whether any of them has a problem.
        self.queued = Gauge(
            "foreguard_store_queued",
            "Decisions and texts that wait for the store.",
            registry=registry,
            multiprocess_mode="livesum",
        )
        self.problem = Gauge(
            "foreguard_store_problem",
            "Whether something is wrong with the store, by what cannot be done.",
            ["task"],
            registry=registry,
            multiprocess_mode="livemax",
        )
        self._written = 0
        # A series that appears only with its first event hides that event from rate().
        for reason in get_args(DropReason):
            self.dropped.labels(reason)
        for task in get_args(Task):
            self.problem.labels(task).set(0)

    def observe_drop(self, reason: DropReason, count: int) -> None:
        """Count what was dropped. Any thread may do so."""
        self.dropped.labels(reason).inc(count)

    def publish(self, status: SinkStatus, pruning: str | None) -> None:
        """Publish how the sink does, and what is wrong with pruning, if something is. One thread does so."""
        self.written.inc(status.written - self._written)
        self._written = status.written
        self.queued.set(status.queued)
        self.problem.labels("write").set(status.problem is not None)
        self.problem.labels("prune").set(pruning is not None)
