"""Public metrics: what `/metrics` says to whoever has no key for scores and thresholds.

What is left out is chosen by name, where the metrics are collected: neither the format nor what a client library makes
of a metric changes it. With several API servers vLLM's registry reads the metrics of all.

It touches, of `vllm/v1/metrics/prometheus.py`: `get_prometheus_registry`.
"""

import asyncio
from collections.abc import Iterator

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Metric, generate_latest
from prometheus_client.registry import Collector
from starlette.responses import Response
from starlette.types import Receive, Scope, Send
from vllm.v1.metrics.prometheus import get_prometheus_registry

from guard.metrics import is_public


class _Public(Collector):
    """A registry's metrics, but for those that are not public."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._registry = registry

    def collect(self) -> Iterator[Metric]:
        return (metric for metric in self._registry.collect() if is_public(metric.name))


def public_page() -> bytes:
    """Return the public metrics of all API servers as Prometheus's text."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Public(get_prometheus_registry()))
    return generate_latest(registry)


async def public_metrics(scope: Scope, receive: Receive, send: Send) -> None:
    """Answer a request for metrics."""
    # Beside the event loop, as vLLM does it.
    page = await asyncio.to_thread(public_page)
    await Response(page, media_type=CONTENT_TYPE_LATEST)(scope, receive, send)
