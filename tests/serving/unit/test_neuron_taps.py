"""Taps on neurons: the right matrix of each block, whole or in slices, and a clear error where there is none."""

import json
import os
import subprocess
import sys
from contextlib import ExitStack
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn
from vllm.model_executor.layers.attention_layer_base import AttentionLayerBase
from vllm.model_executor.layers.fused_moe import MoERunner
from vllm.model_executor.layers.fusion.quant_activation import expose_input_quant_key
from vllm.model_executor.layers.linear import RowParallelLinear

from probes.errors import ModelError
from probes.manifest import Probe
from probes.readout import Readout
from probes.scoring import ProbeBank, Tap
from probes.steering import SteeringBank
from serving.worker.down_projection import down_projection
from serving.worker.sensor import install

HIDDEN, NEURONS, LAYERS, TOKENS = 8, 12, 3, 5
BACKENDS = ["eager", "aot_eager"]
NO_STEERING = SteeringBank((), {}, ())


class Row(RowParallelLinear):
    """A row-parallel matrix as one rank of a group has it, without the group: vLLM's class, and its attributes."""

    def __init__(self, weight, rank=0, ranks=1):
        nn.Module.__init__(self)
        self.input_size, self.output_size = weight.shape[1], weight.shape[0]
        self.tp_rank, self.tp_size, self.input_is_parallel = rank, ranks, True
        self.weight = nn.Parameter(weight.chunk(ranks, dim=1)[rank], requires_grad=False)

    def forward(self, neurons):
        """Return this rank's share of the output, and no bias."""
        return neurons @ self.weight.T, None


class Cache(nn.Module, AttentionLayerBase):
    """What marks a module as attention."""

    def get_attn_backend(self):
        """Return nothing."""

    def get_kv_cache_spec(self, vllm_config):
        """Return nothing."""


class Attention(nn.Module):
    """Attention, whose output projection is row-parallel and as wide as the neurons."""

    def __init__(self):
        super().__init__()
        self.attn = Cache()
        self.o_proj = Row(torch.randn(HIDDEN, NEURONS))


class Mlp(nn.Module):
    """An MLP of which this rank holds some neurons."""

    def __init__(self, rank=0, ranks=1):
        super().__init__()
        up = torch.randn(NEURONS, HIDDEN)
        self.up = nn.Parameter(up.chunk(ranks)[rank], requires_grad=False)
        self.down_proj = Row(torch.randn(HIDDEN, NEURONS), rank, ranks)

    def neurons(self, stream):
        """Return the activations that this rank holds."""
        return torch.relu(stream @ self.up.T)

    def forward(self, stream):
        """Return this rank's share."""
        return self.down_proj(self.neurons(stream))[0]


class Block(nn.Module):
    """Attention that does nothing, and an MLP; the stream leaves in two parts."""

    def __init__(self, **split):
        super().__init__()
        self.self_attn, self.mlp = Attention(), Mlp(**split)

    def forward(self, hidden, residual):
        """Return (hidden, residual)."""
        residual = hidden if residual is None else hidden + residual
        return self.mlp(residual), residual


class Model(nn.Module):
    """Three blocks."""

    def __init__(self, **split):
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.ModuleList(Block(**split) for _ in range(LAYERS))

    def forward(self, hidden):
        """Return the last residual stream."""
        residual = None
        for block in self.layers:
            hidden, residual = block(hidden, residual)
        return hidden + residual


@pytest.fixture
def bank():
    """Three channels on the neurons of blocks 0 and 2, two on those of block 0, and one on the stream of block 0."""
    probes = (
        Probe(name="wide", method="m", site="mlp_neurons", width=NEURONS, layers=(0, 2), channels=3),
        Probe(name="stream", method="m", layers=(0,)),
        Probe(
            name="pair", method="m", site="mlp_neurons", width=NEURONS, layers=(0,), channels=2,
            readout=Readout(kind="attention"),
        ),
    )  # fmt: skip
    generator = torch.Generator().manual_seed(1)
    shapes = {name: shape for probe in probes for name, shape in probe.shapes(HIDDEN).items()}
    return ProbeBank.of(probes, {name: torch.randn(*shape, generator=generator) for name, shape in shapes.items()})


@pytest.fixture
def hidden():
    """A batch of five tokens."""
    return torch.randn(TOKENS, HIDDEN, generator=torch.Generator().manual_seed(2))


@torch.no_grad()
def by_hand(hidden):
    """Activations at every tap, computed without any, and the output."""
    found, residual = {}, None
    for layer, block in enumerate(Model().layers):
        residual = hidden if residual is None else hidden + residual
        found[Tap("mlp_neurons", layer)] = block.mlp.neurons(residual)
        hidden = block.mlp(residual)
        found[Tap("resid_post", layer)] = hidden + residual
    return found, hidden + residual


def run(model, backend, hidden):
    """The model's output, eager or compiled with no graph break."""
    torch.compiler.reset()
    compiled = model if backend == "eager" else torch.compile(model, backend=backend, fullgraph=True)
    with torch.no_grad():
        return compiled(hidden)


def dry_run(model):
    """A pass over made-up tokens."""
    return lambda: model(torch.ones(TOKENS, HIDDEN))


@pytest.mark.parametrize("backend", BACKENDS)
def test_neurons_and_streams_are_read_side_by_side(bank, hidden, backend):
    """What the taps gather is what the bank gives for the same activations, and the output is the model's own."""
    model = Model()
    sensor = install(model, LAYERS, TOKENS + 2, bank, NO_STEERING, dry_run(model))
    found = run(model, backend, hidden.clone())
    activations, expected = by_hand(hidden)
    torch.testing.assert_close(found, expected)
    served = bank.add_up(sensor.parts[:TOKENS].numpy())
    np.testing.assert_allclose(served, bank.token_scores(activations), rtol=1e-4, atol=1e-4)
    assert sensor.split.tolist() == []


def test_neurons_of_a_batch_of_one_are_read(bank, hidden):
    """As the Transformers backend lays them out."""
    model = Model()
    sensor = install(model, LAYERS, TOKENS, bank, NO_STEERING, dry_run(model))
    with torch.no_grad():
        model(hidden[None].clone())
    activations, _ = by_hand(hidden)
    served = bank.add_up(sensor.parts.numpy())
    np.testing.assert_allclose(served, bank.token_scores(activations), rtol=1e-4, atol=1e-4)


def test_ranks_shares_add_up(bank, hidden):
    """Each of three ranks reads its own neurons; the sum of what they read is what one rank reads alone."""
    whole = Model()
    alone = install(whole, LAYERS, TOKENS, bank, NO_STEERING, dry_run(whole))
    whole.layers[0](hidden, None)
    shares = []
    for rank in range(3):
        model = Model(rank=rank, ranks=3)
        sensor = install(model, LAYERS, TOKENS, bank, NO_STEERING, dry_run(model))
        model.layers[0](hidden, None)
        shares.append(sensor.parts)
    columns = [*range(5)]  # the wide probe's and the pair's, on the neurons of block 0
    torch.testing.assert_close(sum(shares)[:, columns], alone.parts[:, columns], rtol=1e-4, atol=1e-4)
    assert alone.parts[:, columns].abs().min() > 0
    assert sensor.split.tolist() == [*range(8)]


RANK = """
import sys
import torch
from types import SimpleNamespace
from vllm.config import VllmConfig, set_current_vllm_config
from vllm.distributed import init_distributed_environment, initialize_model_parallel
from serving.worker.guarded_pass import GuardedPass
from serving.worker.sensor import Sensor

rank, meeting = int(sys.argv[1]), sys.argv[2]
with set_current_vllm_config(VllmConfig()):
    init_distributed_environment(2, rank, f"file://{meeting}", rank, "gloo")
    initialize_model_parallel(2)
parts = torch.arange(12.0).reshape(3, 4) * (1 + 9 * rank)
parts[1, 2] = torch.nan if rank else 1.0
nowhere = torch.zeros(0, dtype=torch.int64)
sensor = Sensor(parts, torch.tensor([0, 2]), nowhere, torch.zeros(1, 1))
guard = GuardedPass(sensor, None, None)
guard._num_tokens = 2
guard._complete()
print(parts.tolist())
"""


def test_two_ranks_of_a_real_group_hold_the_same_sums(tmp_path):
    """Split columns of the step's rows become the ranks' sum on both; others stay, and NaN on one is NaN on both."""
    # vLLM's CPU ranks find their shared memory by this name, which an engine would have set.
    environment = {**os.environ, "VLLM_DIST_IDENT": tmp_path.name}
    with ExitStack() as stack:
        ranks = []
        for rank in range(2):
            command = [sys.executable, "-c", RANK, str(rank), tmp_path / "meeting"]
            process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
            stack.callback(process.kill)
            ranks.append(stack.enter_context(process))
        outputs = [rank.communicate(timeout=200)[0].splitlines()[-1] for rank in ranks]
    first, second = (np.array(json.loads(output.replace("nan", "NaN"))) for output in outputs)
    np.testing.assert_array_equal(first[:2, [0, 2]], [[0, 22], [44, np.nan]])
    np.testing.assert_array_equal(second[:2, [0, 2]], first[:2, [0, 2]])
    np.testing.assert_array_equal(first[:, [1, 3]], [[1, 3], [5, 7], [9, 11]])
    np.testing.assert_array_equal(second[:, [1, 3]], np.array([[1, 3], [5, 7], [9, 11]]) * 10)
    np.testing.assert_array_equal(first[2], [8, 9, 10, 11])


def test_buffers_are_no_part_of_the_weights(bank):
    """Taps on matrices add nothing to the state dict."""
    model = Model()
    install(model, LAYERS, TOKENS, bank, NO_STEERING, dry_run(model))
    assert set(model.state_dict()) == set(Model().state_dict())


def test_the_output_projection_of_attention_is_not_it():
    """Though it is row-parallel and as wide; a block that is its own MLP (two loose matrices) is read too."""
    block = Block()
    assert down_projection(block, 0, NEURONS) is block.mlp.down_proj
    loose = nn.Module()
    loose.self_attn, loose.fc2 = Attention(), Row(torch.randn(HIDDEN, NEURONS))
    assert down_projection(loose, 0, NEURONS) is loose.fc2


class Experts(MoERunner):
    """What marks a module as a mixture of experts."""

    def __init__(self):
        nn.Module.__init__(self)


def with_child(name, child):
    """A block with one more child."""
    block = Block()
    block.add_module(name, child)
    return block


@pytest.mark.parametrize(
    ("block", "problem"),
    [
        (with_child("experts", Experts()), "mixture of experts"),
        (with_child("second_mlp", Mlp()), r"no single down-projection of 12 neurons \(row-parallel matrices: 12, 12\)"),
        (nn.Sequential(nn.Linear(2, 2)), r"no single down-projection of 12 neurons \(row-parallel matrices: none\)"),
    ],
)
def test_blocks_without_such_neurons_are_refused(block, problem):
    """The error says which block, and why."""
    with pytest.raises(ModelError, match=f"decoder block 2 .*{problem}"):
        down_projection(block, 2, NEURONS)


def test_another_number_of_neurons_is_refused():
    """With the number that was found."""
    with pytest.raises(ModelError, match=r"of 13 neurons \(row-parallel matrices: 12\)"):
        down_projection(Block(), 0, 13)


def test_neurons_that_arrive_quantised_are_refused():
    """A fused kernel hands the matrix its input in 8 bits: there is nothing to read as it was calibrated."""
    block = Block()
    expose_input_quant_key(block.mlp.down_proj, SimpleNamespace(input_quant_key=lambda: "fp8"))
    with pytest.raises(ModelError, match="quantised"):
        down_projection(block, 0, NEURONS)
