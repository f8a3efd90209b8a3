"""What the guard's parts say rides on vLLM's own objects: each way in which vLLM moves them leaves it on them."""

import pickle
from types import SimpleNamespace

import pytest
import ray.cloudpickle
import torch
from vllm.distributed.device_communicators.shm_broadcast import MessageQueue
from vllm.distributed.kv_transfer.kv_connector.utils import KVOutputAggregator
from vllm.sequence import IntermediateTensors
from vllm.v1.core.sched.output import SchedulerOutput
from vllm.v1.executor.multiproc_executor import MultiprocExecutor
from vllm.v1.executor.ray_executor_v2 import RayExecutorV2
from vllm.v1.executor.ray_utils import detach_zero_copy_from_model_runner_output
from vllm.v1.outputs import KVConnectorOutput, ModelRunnerOutput
from vllm.v1.worker.gpu_worker import AsyncIntermediateTensors

from probes.template import whole
from serving.wire import ORDERS, SCORES, STREAM_PARTS, Due, Orders, Steer
from serving.worker.pipeline_stages import relay

GIVEN = Orders(due={"a": Due((whole(3),), [1, 2], 1)}, steering={"b": Steer([0.5], 7)}, unknown=[4], copies=[(5, 6)])
READ = {"a": [0.25, -1.0], "b": "tap_silent"}


@pytest.fixture
def through_queue():
    """The queue by which the executors of several processes, Ray's among them, speak to their workers."""
    queue = MessageQueue(n_reader=1, n_local_reader=1)
    reader = MessageQueue.create_from_handle(queue.export_handle(), 0)

    def pass_through(content):
        queue.enqueue(content)
        return reader.dequeue(timeout=5)

    return pass_through


def step():
    scheduled = SchedulerOutput.make_empty()
    setattr(scheduled, ORDERS, GIVEN)
    return scheduled


def output():
    made = ModelRunnerOutput(req_ids=["a", "b"], req_id_to_index={"a": 0, "b": 1})
    setattr(made, SCORES, READ)
    return made


def test_orders_and_scores_pass_the_executors_queue(through_queue):
    """A step on its way to the workers has its orders, and its output on the way back the scores."""
    method, args = through_queue(("execute_model", (step(),)))
    assert method == "execute_model"
    assert getattr(args[0], ORDERS) == GIVEN
    assert getattr(through_queue(output()), SCORES) == READ


def test_rays_executor_is_the_one_of_several_processes():
    """Its workers are called by the same loop, through the same queues; not past the guard, as in Ray's older
    executor.
    """
    assert issubclass(RayExecutorV2, MultiprocExecutor)
    assert RayExecutorV2.execute_model is MultiprocExecutor.execute_model
    assert RayExecutorV2.sample_tokens is MultiprocExecutor.sample_tokens


@pytest.mark.parametrize("library", [pickle, ray.cloudpickle], ids=["pickle", "ray"])
def test_orders_and_scores_are_pickled(library):
    """By whoever sends them further."""
    assert getattr(library.loads(library.dumps(step())), ORDERS) == GIVEN
    received = library.loads(library.dumps(output()))
    detach_zero_copy_from_model_runner_output(received)
    assert getattr(received, SCORES) == READ


def test_scores_pass_where_a_connectors_outputs_are_put_together():
    """Of several workers' outputs one is taken: the one that reports, with its scores."""
    made = [output(), output()]
    for each in made:
        each.kv_connector_output = KVConnectorOutput(finished_recving={"a"})
    delattr(made[1], SCORES)
    assert getattr(KVOutputAggregator(expected_finished_count=2).aggregate(made, 0), SCORES) == READ


class Stage:
    """The guard of a pipeline stage, which adds one to what it receives."""

    parts = torch.zeros(2, 3)

    def receive(self, parts):
        self.parts = parts + 1

    def send(self):
        return self.parts.clone()


class Runner:
    """A model runner that knows of hidden states only, as the V1 runner does, and answers as one that is not the
    last.
    """

    def __init__(self, answer):
        self._answer = answer

    def execute_model(self, step, intermediate_tensors=None):
        if intermediate_tensors is not None:
            assert set(intermediate_tensors.tensors) == {"hidden_states"}
        return self._answer


def test_what_is_read_travels_on_with_the_hidden_states():
    """Each stage takes it off what arrived, once that is there, and puts its own onto what leaves."""
    waited, guard = [], Stage()
    runner = Runner(IntermediateTensors({"hidden_states": torch.zeros(2, 8)}))
    relay(runner, guard)
    arrived = AsyncIntermediateTensors(
        {"hidden_states": torch.zeros(2, 8), STREAM_PARTS: torch.zeros(2, 3)},
        comm_handles=[SimpleNamespace(wait=lambda: waited.append(True))],
    )
    left = runner.execute_model(step(), arrived)
    assert waited == [True]
    assert torch.equal(left.tensors[STREAM_PARTS], torch.ones(2, 3))


def test_the_last_stage_and_the_first():
    """The first has nothing to receive; what the last one gives is no tensor, and stays as it is."""
    guard, first = Stage(), Runner(IntermediateTensors({"hidden_states": torch.zeros(2, 8)}))
    relay(first, guard)
    assert torch.equal(first.execute_model(step()).tensors[STREAM_PARTS], torch.zeros(2, 3))
    last = Runner(None)
    relay(last, guard)
    arrived = IntermediateTensors({"hidden_states": torch.zeros(2, 8), STREAM_PARTS: torch.zeros(2, 3)})
    assert last.execute_model(step(), arrived) is None
    assert torch.equal(guard.parts, torch.ones(2, 3))
