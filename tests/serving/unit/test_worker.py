"""What an operator may have a guarded worker do while it serves."""

import pytest

from probes.errors import ModelError
from serving.engine.worker import GuardedWorker, PlatformWorker

WEIGHTS = ("reload_weights", "reset_weights", "start_weight_update", "update_weights")


class Scores:
    """Stands for the scores beside the KV cache."""

    known = True

    def forget_all(self):
        self.known = False


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
