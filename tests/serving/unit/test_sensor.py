"""The sensor on a plain model: found by structure, read and steered alike in eager mode and compiled."""

import numpy as np
import pytest
import torch
from torch import nn

from probes.artifact import Artifact
from probes.fingerprint import Fingerprint
from probes.manifest import EMBEDDINGS, Manifest, Probe, SteeringVector
from probes.scoring import ProbeBank, Tap
from probes.steering import SteeringBank, displacement
from serving.worker.sensor import install
from serving.worker.tap import silence, silent

HIDDEN, LAYERS, TOKENS = 8, 4, 5
BACKENDS = ["eager", "aot_eager"]


class Block(nn.Module):
    """A decoder block as vLLM writes them: the stream leaves in two parts, to be summed by whoever reads it."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(HIDDEN, HIDDEN)

    def forward(self, hidden, residual):
        """Return (hidden, residual)."""
        residual = hidden if residual is None else hidden + residual
        return torch.tanh(self.linear(residual)), residual


class Model(nn.Module):
    """Four blocks, a decoy list of as many norms, and a head."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.norms = nn.ModuleList(nn.LayerNorm(HIDDEN) for _ in range(LAYERS))
        self.layers = nn.ModuleList(Block() for _ in range(LAYERS))

    def forward(self, hidden):
        """Return the last residual stream."""
        residual = None
        for block in self.layers:
            hidden, residual = block(hidden, residual)
        return hidden + residual


@pytest.fixture
def artifact():
    """Probes on blocks 1, (0, 3), and before and behind block 0.

    Steering vectors on (1, 2) and 2, and a gated one and an affine map on 1.
    """
    empty = dict.fromkeys(("config", "weights", "tokenizer", "chat_template"), "")
    fingerprint = Fingerprint(architecture="A", num_layers=LAYERS, hidden_size=HIDDEN, dtype="float32", **empty)
    probes = (Probe(name="one", method="m", layers=(1,)), Probe(name="two", method="m", layers=(0, 3)))
    probes += (Probe(name="three", method="m", layers=(EMBEDDINGS, 0)),)
    steering = tuple(
        SteeringVector(name=name, method="m", layers=layers, operator=operator, gate=gate, norm=1.0, cos_refusal=0.0)
        for name, layers, operator, gate in (
            ("a", (1, 2), "add", None),
            ("b", (2,), "add", None),
            ("c", (1,), "add", "soft"),
            ("d", (1,), "affine", None),
        )
    )
    generator = torch.Generator().manual_seed(1)
    tensors = {f"probe.{p.name}.weight": torch.randn(len(p.layers), 1, HIDDEN, generator=generator) for p in probes}
    shapes = {f"steering.{v.name}.{name}": shape for v in steering for name, shape in v.shapes(HIDDEN).items()}
    tensors |= {name: torch.randn(*shape, generator=generator) for name, shape in shapes.items()}
    tensors["steering.d.low"].fill_(-3.0)
    tensors["steering.d.high"].fill_(3.0)
    manifest = Manifest(name="a", created="", fingerprint=fingerprint, probes=probes, steering=steering)
    return Artifact(manifest, tensors)


@pytest.fixture
def tapped(artifact):
    """A tapped model, its sensor and the banks."""
    model, probes, steering = Model().eval(), ProbeBank.from_artifact(artifact), SteeringBank.from_artifact(artifact)
    return model, install(model, LAYERS, TOKENS + 3, probes, steering, dry_run(model)), probes, steering


def dry_run(model):
    """A pass over made-up tokens."""
    return lambda: model(torch.ones(TOKENS, HIDDEN))


@torch.no_grad()
def by_hand(hidden, steering=None, coefficients=None):
    """The residual stream after each block, and the output, computed without any tap; steered if so asked."""
    model, residual, streams = Model().eval(), None, {EMBEDDINGS: hidden}
    for layer, block in enumerate(model.layers):
        hidden, residual = block(hidden, residual)
        streams[layer] = hidden + residual
        if steering is not None and layer in steering.moves:
            hidden = hidden + displacement(hidden + residual, coefficients, steering.moves[layer])
    return streams, hidden + residual


def at_blocks(streams):
    """The streams as the bank names them."""
    return {Tap("resid_post", layer): stream for layer, stream in streams.items()}


def run(model, backend, hidden):
    """The model's output, eager or compiled with no graph break."""
    torch.compiler.reset()
    compiled = model if backend == "eager" else torch.compile(model, backend=backend, fullgraph=True)
    with torch.no_grad():
        return compiled(hidden)


@pytest.fixture
def hidden():
    """A batch of five tokens."""
    return torch.randn(TOKENS, HIDDEN, generator=torch.Generator().manual_seed(2))


@pytest.mark.parametrize("backend", BACKENDS)
def test_scores_are_the_bank_s_scores(tapped, hidden, backend):
    """What the taps gather in one pass, plus the bias, is what the bank gives for the streams: offline equals
    served.
    """
    model, sensor, probes, _ = tapped
    for _ in range(2):
        run(model, backend, hidden.clone())
    streams, _ = by_hand(hidden)
    served = probes.add_up(sensor.parts[:TOKENS].numpy())
    np.testing.assert_allclose(served, probes.token_scores(at_blocks(streams)), rtol=1e-5, atol=1e-5)
    assert not sensor.parts[TOKENS:].any()


@pytest.mark.parametrize("backend", BACKENDS)
def test_unsteered_output_is_the_model_s_own(tapped, hidden, backend):
    """Guard on, nothing to steer: the output is what the model without taps gives, to the bit in eager mode."""
    model, _, _, _ = tapped
    _, expected = by_hand(hidden)
    found = run(model, backend, hidden.clone())
    if backend == "eager":
        assert torch.equal(found, expected)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("backend", BACKENDS)
def test_steering_reaches_its_rows_and_blocks_only(tapped, hidden, backend):
    """Rows with coefficients get the vectors after their blocks; the rows beside them are as without steering."""
    model, sensor, probes, steering = tapped
    _, plain = by_hand(hidden)
    sensor.coefficients[2] = torch.tensor([1.5, 1.0, 1.0, 0.5])
    sensor.coefficients[4] = torch.tensor([0.0, 2.0, 0.0, 0.0])
    streams, expected = by_hand(hidden, steering, sensor.coefficients[:TOKENS])
    found = run(model, backend, hidden.clone())
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(found[[0, 1, 3]], plain[[0, 1, 3]])
    assert (found[[2, 4]] - plain[[2, 4]]).abs().max() > 0.01
    served = probes.add_up(sensor.parts[:TOKENS].numpy())
    np.testing.assert_allclose(served, probes.token_scores(at_blocks(streams)), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("backend", BACKENDS)
def test_coefficients_are_read_at_run_time(tapped, hidden, backend):
    """A compiled graph sees the buffer's new content without being compiled again."""
    model, sensor, _, _ = tapped
    torch.compiler.reset()
    compiled = model if backend == "eager" else torch.compile(model, backend=backend, fullgraph=True)
    with torch.no_grad():
        plain = compiled(hidden.clone())
        sensor.coefficients[0, 0] = 1.0
        steered = compiled(hidden.clone())
        sensor.coefficients.zero_()
        again = compiled(hidden.clone())
    assert not torch.equal(steered[0], plain[0])
    assert torch.equal(again, plain)


def test_a_block_that_is_skipped_leaves_its_columns_silent(tapped, hidden):
    """So that a silent tap is noticed."""
    model, sensor, _, _ = tapped
    silence(sensor.parts)
    with torch.no_grad():
        model.layers[0](hidden, None)
    assert silent(sensor.parts[:TOKENS]).all(0).tolist() == [False, False, False, True, True]
    run(model, "eager", hidden)
    assert not silent(sensor.parts[:TOKENS]).any()


def test_buffers_are_no_part_of_the_weights(tapped):
    """Taps add nothing to the state dict: a checkpoint loads and saves as before."""
    assert set(tapped[0].state_dict()) == set(Model().state_dict())


def test_a_model_without_steering_or_with_a_single_tensor_stream(artifact, hidden):
    """Blocks that return one tensor are read as they are; no steering vectors, no steering taps."""

    class Whole(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.layers = nn.ModuleList(nn.Linear(HIDDEN, HIDDEN) for _ in range(LAYERS))

        def forward(self, stream):
            for block in self.layers:
                stream = block(stream)
            return stream

    probes = ProbeBank.from_artifact(artifact)
    model = Whole().eval()
    sensor = install(model, LAYERS, TOKENS, probes, SteeringBank((), {}, ()), dry_run(model))
    streams, stream = {EMBEDDINGS: hidden}, hidden
    with torch.no_grad():
        model(hidden)
        for layer, block in enumerate(Whole().eval().layers):
            stream = streams[layer] = block(stream)
    expected = probes.token_scores(at_blocks(streams))
    np.testing.assert_allclose(probes.add_up(sensor.parts.numpy()), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_batch_of_one_is_read_and_steered_alike(tapped, hidden, backend):
    """The Transformers backend has one dimension more: same scores, and what is added reaches the model's own
    tensor.
    """
    model, sensor, probes, steering = tapped
    sensor.coefficients[2] = torch.tensor([1.5, 1.0, 1.0, 0.5])
    streams, expected = by_hand(hidden, steering, sensor.coefficients[:TOKENS])
    found = run(model, backend, hidden[None].clone())
    torch.testing.assert_close(found, expected[None])
    served = probes.add_up(sensor.parts[:TOKENS].numpy())
    np.testing.assert_allclose(served, probes.token_scores(at_blocks(streams)), rtol=1e-5, atol=1e-5)
