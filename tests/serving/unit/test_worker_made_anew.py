"""Whoever makes a worker, first or again, makes a guarded one, and loads its model through it."""

import pytest
from vllm.engine.arg_utils import EngineArgs
from vllm.v1.executor.multiproc_executor import WorkerProc
from vllm.v1.executor.ray_executor_v2 import RayWorkerProc
from vllm.v1.executor.ray_utils import RayWorkerWrapper
from vllm.v1.executor.uniproc_executor import UniProcExecutor
from vllm.v1.worker.worker_base import WorkerWrapperBase

from serving.launch.server import WORKER
from serving.worker.worker import GuardedWorker
from tests.serving.lab import MODEL

ADDRESS = {"distributed_init_method": "tcp://127.0.0.1:1"}


@pytest.fixture(scope="module")
def config():
    """What vLLM makes of the guard's flag."""
    return EngineArgs(
        model=str(MODEL), worker_cls=WORKER, max_model_len=256, gpu_memory_utilization=0.1
    ).create_engine_config()


class LoadingError(Exception):
    """A model was about to be loaded."""


@pytest.fixture
def loaded(monkeypatch):
    """The classes whose `load_model` was called, none of which gets as far as loading; devices are left alone."""
    found = []

    def load(self, **_options):
        found.append(type(self))
        raise LoadingError

    monkeypatch.setattr(GuardedWorker, "load_model", load)
    monkeypatch.setattr(WorkerWrapperBase, "init_device", lambda self: None)
    monkeypatch.setattr(WorkerProc, "setup_proc_title_and_log_prefix", lambda self, *, enable_ep: None)
    return found


def one_process(config):
    UniProcExecutor(config)


def many_processes(config):
    WorkerProc(config, 0, 0, input_shm_handle=None, shared_worker_lock=None, is_driver_worker=True, **ADDRESS)


def ray_actor(config):
    RayWorkerProc(config, 0, None, is_driver_worker=True).initialize_worker(0, {}, **ADDRESS)


@pytest.mark.parametrize("make", [one_process, many_processes, ray_actor])
def test_an_executor_s_worker_is_guarded_each_time_that_it_is_made(config, loaded, make):
    """The executors of vLLM have no other way to a worker than `worker_cls`, and none to a model but its
    `load_model`.
    """
    for _ in range(2):
        with pytest.raises(LoadingError):
            make(config)
    assert loaded == [GuardedWorker] * 2


def test_ray_s_older_executor_makes_workers_in_the_same_way():
    """It starts vLLM's own wrapper as an actor, which makes the worker as everywhere."""
    assert RayWorkerWrapper.init_worker is WorkerWrapperBase.init_worker


def test_a_worker_class_that_cannot_be_imported_makes_no_worker(config, monkeypatch):
    """There is no other class that vLLM would take instead."""
    monkeypatch.setattr(config.parallel_config, "worker_cls", "tests.serving.faults.unimportable.Worker")
    with pytest.raises(ImportError, match="planted"):
        many_processes(config)


def test_a_scheduler_class_that_cannot_be_imported_makes_no_scheduler(config, monkeypatch):
    """Nor is there another scheduler."""
    monkeypatch.setattr(config.scheduler_config, "scheduler_cls", "tests.serving.faults.unimportable.Scheduler")
    with pytest.raises(ImportError, match="planted"):
        config.scheduler_config.get_scheduler_cls()
