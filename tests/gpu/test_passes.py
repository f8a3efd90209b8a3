"""Around a forward pass on a device: nothing waits for it, nothing overtakes it, and CUDA graphs read what was set
last.

What needs no GPU to be true runs on a CPU too.
"""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from vllm.v1.kv_cache_interface import FullAttentionSpec, KVCacheConfig, KVCacheGroupSpec

from probes.manifest import Probe
from probes.readout import Readout
from probes.scoring import ProbeBank
from probes.steering import Move, SteeringBank
from probes.template import whole
from serving.wire import NO_ORDERS, Due, Orders, Steer
from serving.worker.guarded_pass import GuardedPass, Places
from serving.worker.sensor import Sensor
from serving.worker.tap import laid_out, project, silence, silent

HIDDEN, BLOCK, BLOCKS, MAX_TOKENS = 8, 4, 8, 16
A_WHILE = 200_000_000
"""Cycles: a tenth of a second or so."""


ON_A_GPU = pytest.param("cuda", marks=pytest.mark.gpu)


@pytest.fixture(params=["cpu", ON_A_GPU])
def device(request):
    return request.param


only_on_a_gpu = pytest.mark.parametrize("device", [ON_A_GPU], indirect=True)


@pytest.fixture
def probes():
    """One probe on all tokens, and one on the last."""
    specs = [
        Probe(name="peak", method="m", layers=(0,), readout=Readout(kind="max")),
        Probe(name="last", method="m", layers=(1,), bias=1.0),
    ]
    weights = torch.randn(2, 1, 1, HIDDEN, generator=torch.Generator().manual_seed(0))
    return ProbeBank.of(specs, {f"probe.{p.name}.weight": w for p, w in zip(specs, weights, strict=True)})


@pytest.fixture
def sensor(device):
    with torch.device(device):
        nowhere = torch.zeros(0, dtype=torch.int64)
        return Sensor(torch.zeros(MAX_TOKENS, 2), nowhere, nowhere, torch.zeros(MAX_TOKENS, 1))


@pytest.fixture
def guard(sensor, probes, monkeypatch):
    monkeypatch.setattr("serving.worker.guarded_pass.get_pp_group", lambda: SimpleNamespace(is_last_rank=True))
    guard = GuardedPass(sensor, probes, SteeringBank(("away",), {}, ((1.0, 1.0, 0.5),)))
    attention = FullAttentionSpec(block_size=BLOCK, num_kv_heads=1, head_size=8, dtype=torch.float32)
    guard.allocate(KVCacheConfig(BLOCKS, [], [KVCacheGroupSpec(["layer.0"], attention)]))
    return guard


class Batch:
    """One request's first tokens, in one KV-cache block."""

    def __init__(self, num_tokens, device, block=5):
        self._num_tokens = num_tokens
        self._slots = torch.arange(block * BLOCK, block * BLOCK + num_tokens, device=device)

    def places(self, request_ids):
        return Places(*np.array([(0, self._num_tokens, 0) for _ in request_ids], dtype=np.int64).reshape(-1, 3).T)

    def slots(self, group):
        return self._slots


@pytest.fixture
def no_waiting(device):
    """On a GPU any operation that makes the host wait for it raises."""
    if device == "cpu":
        yield
        return
    torch.cuda.set_sync_debug_mode("error")
    yield
    torch.cuda.set_sync_debug_mode("default")


def forward(guard, sensor, values, orders=NO_ORDERS):
    """One pass of four tokens in which the taps read `values` `[4, 2]`, which are on the device."""
    guard.begin(4, orders)
    guard.lay_out(Batch(4, values.device))
    sensor.parts[:4].copy_(values)
    return guard.collect()


@pytest.mark.filterwarnings("ignore:Synchronization debug mode")
def test_nothing_waits_for_the_device(guard, sensor, device, no_waiting):
    """With everything that a step can be asked for at once: scores, steering, blocks forgotten and copied, an
    answer.
    """
    values = torch.ones(4, 2, device=device)
    asked = {"due": {"a": Due((whole(4),), [5])}, "steering": {"a": Steer([1.0], 3)}, "watched": {"a": 3}}
    due, answers = forward(guard, sensor, values, Orders(**asked, unknown=[2], copies=[(2, 6)]))
    assert not due.failed
    assert not answers.failed


@only_on_a_gpu
def test_scores_arrive_in_pinned_memory(guard, sensor, device):
    """A copy to other memory would wait, whatever it was asked."""
    (due,) = forward(guard, sensor, torch.ones(4, 2, device=device), Orders(due={"a": Due((whole(4),), [5])}))
    assert due.parts.is_pinned()


def test_the_next_pass_leaves_scores_on_their_way_alone(guard, sensor, device, probes):
    """Two passes are queued behind a busy device; each brings its own scores, and both read the prompt's own slots."""
    tokens = [torch.randn(4, 2, generator=torch.Generator().manual_seed(seed)) for seed in (1, 2)]
    on_device = [each.to(device) for each in tokens]
    if device == "cuda":
        torch.cuda._sleep(A_WHILE)
    dues = [forward(guard, sensor, each, Orders(due={"a": Due((whole(4),), [5])}))[0] for each in on_device]
    guard.begin(4, NO_ORDERS)  # a third one forgets what the second read
    for due, own in zip(dues, tokens, strict=True):
        expected = [probes.turn_scores(probes.add_up(own.numpy()), range(4), whole(4))]
        np.testing.assert_allclose(due.resolve()["a"], expected, rtol=1e-6)


@only_on_a_gpu
def test_a_full_graph_reads_and_steers_by_what_was_set_last(sensor):
    """Captured once at eight rows, replayed with five: scores of these five, and the steering of the moment."""
    generator = torch.Generator().manual_seed(0)
    matrix, vector = (torch.randn(shape, generator=generator).cuda() for shape in ((HIDDEN, 2), (HIDDEN,)))
    hidden, given = torch.zeros(8, HIDDEN, device="cuda"), torch.zeros(8, HIDDEN, device="cuda")
    plan, tensors = laid_out([Move(0, "add", None, (vector,))])

    def block():
        hidden.copy_(given)
        torch.ops.foreguard.store(project(hidden, None, matrix.T), sensor.parts, 0)
        torch.ops.foreguard.steer(hidden, None, sensor.coefficients, plan, tensors)

    graph = _captured(block)
    for seed, strength in ((1, 0.0), (2, 3.0), (3, 0.0)):
        own = torch.randn(8, HIDDEN, generator=torch.Generator().manual_seed(seed)).cuda()
        given.copy_(own)
        silence(sensor.parts)
        sensor.coefficients.zero_()
        sensor.coefficients[2] = strength
        graph.replay()
        torch.testing.assert_close(sensor.parts[:5], (own @ matrix)[:5], rtol=1e-4, atol=1e-4)
        assert not silent(sensor.parts[:5]).any()
        expected = own.clone()
        expected[2] += strength * vector
        torch.testing.assert_close(hidden, expected, rtol=1e-5, atol=1e-5)
        assert torch.equal(hidden[:2], own[:2])


def _captured(block):
    """Capture `block` as PyTorch asks for it: after a run on a stream aside."""
    aside = torch.cuda.Stream()
    aside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(aside):
        block()
    torch.cuda.current_stream().wait_stream(aside)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        block()
    return graph
