"""What an operator may have a guarded worker do while it serves."""

from types import SimpleNamespace

import pytest

from probes.errors import ModelError
from serving.worker.worker import GuardedWorker, PlatformWorker

WEIGHTS = ("reload_weights", "reset_weights", "start_weight_update", "update_weights")


class Scores:
    """Stands for the scores beside the KV cache."""

    known = True

    def forget_all(self):
        self.known = False

    def room_for_cache(self, available, specs):
        return available - 10 * len(list(specs))


@pytest.fixture
def worker(monkeypatch):
    """A worker without a model, on a device that can sleep."""
    slept = []
    monkeypatch.setattr(PlatformWorker, "sleep", lambda self, level: slept.append(level))
    monkeypatch.setattr(PlatformWorker, "discard", lambda self, tags: slept.append(tags))
    worker = GuardedWorker.__new__(GuardedWorker)
    worker.foreguard, worker.slept = Scores(), slept
    return worker


@pytest.mark.parametrize("rest", [lambda worker: worker.sleep(1), lambda worker: worker.discard(("kv_cache",))])
def test_scores_end_with_the_memory_that_they_stood_beside(worker, rest):
    """A worker that sleeps, or gives its KV cache's memory back, knows no token's score when it wakes up."""
    rest(worker)
    assert worker.slept
    assert not worker.foreguard.known


def test_weights_are_not_discarded(worker):
    """What would be put in their place could be anything; the worker is awake as before."""
    with pytest.raises(ModelError, match="weights"):
        worker.sleep(2)
    assert not worker.slept


@pytest.mark.parametrize("method", WEIGHTS)
def test_weights_are_not_changed(worker, method):
    """Every way of vLLM's to put other weights into a served model ends in an error that says why."""
    assert hasattr(PlatformWorker, method)
    with pytest.raises(ModelError, match="calibrated on these"):
        getattr(worker, method)()


@pytest.mark.parametrize(("given", "expected"), [(None, 980), (2000, 1000)])
def test_scores_have_their_part_of_the_memory_that_was_found(worker, monkeypatch, given, expected):
    """Where vLLM measures, the cache gets what is left beside them; where somebody gave a size, the cache gets it."""
    worker.cache_config = SimpleNamespace(kv_cache_memory_bytes=given)

    def measure(self):
        # As vLLM's start-up plan does: a size that was measured once before.
        self.cache_config.kv_cache_memory_bytes = 1000
        return 1000

    monkeypatch.setattr(PlatformWorker, "determine_available_memory", measure)
    monkeypatch.setattr(PlatformWorker, "get_kv_cache_spec", lambda self: {"a": 1, "b": 2})
    assert worker.determine_available_memory() == expected
