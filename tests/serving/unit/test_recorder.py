"""The recorder's taps keep the stream as it is, and prompts are gathered from whatever pieces they come in."""

import numpy as np
import pytest
import torch
from torch import nn

from serving.offline.recorder import Gathered, tap_streams
from serving.worker.tap import silence, silent

HIDDEN, LAYERS, TOKENS = 6, 3, 5
CONTENT = [2, 3, 6]
"""Positions of a prompt of nine tokens that are not the template's."""


class Block(nn.Module):
    """A block that hands on hidden and residual apart, as vLLM's do."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(HIDDEN, HIDDEN)

    def forward(self, hidden, residual):
        residual = hidden if residual is None else hidden + residual
        return self.linear(residual), residual


class Model(nn.Module):
    """Three blocks."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.ModuleList(Block() for _ in range(LAYERS))

    def forward(self, hidden):
        residual = None
        for block in self.layers:
            hidden, residual = block(hidden, residual)
        return hidden + residual


@pytest.mark.parametrize("backend", ["eager", "aot_eager", "inductor"])
def test_taps_keep_every_block_s_stream(backend):
    """What is kept is hidden plus residual after each block, compiled with no graph break too; other rows stay."""
    torch.compiler.reset()
    model, hidden = Model().eval(), torch.randn(TOKENS, HIDDEN, generator=torch.Generator().manual_seed(1))
    streams = tap_streams(model, LAYERS, HIDDEN, TOKENS + 2, lambda: model(torch.ones(TOKENS, HIDDEN)))
    run = model if backend == "eager" else torch.compile(model, backend=backend, fullgraph=True)
    with torch.no_grad():
        run(hidden)
        here, residual, expected = hidden, None, []
        for block in Model().eval().layers:
            here, residual = block(here, residual)
            expected.append(here + residual)
    torch.testing.assert_close(streams.values[:TOKENS], torch.cat(expected, dim=1))
    assert not streams.values[TOKENS:].any()
    assert not silent(streams.marks[:TOKENS]).any()
    silence(streams.marks)
    assert silent(streams.marks).all()
    assert silent(streams.values).sum() == (TOKENS + 2) * LAYERS


@pytest.mark.parametrize("pieces", [[9], [4, 5], [8, 1], [1] * 9])
def test_a_prompt_in_pieces_is_the_prompt_whole(pieces):
    """Whatever the chunks, each place and the mean over the content are those of the whole prompt."""
    streams = torch.randn(9, LAYERS * HIDDEN, generator=torch.Generator().manual_seed(2))
    gathered = Gathered(2, (0, 3, 20, "content"), [[], CONTENT], LAYERS, HIDDEN)
    before = 0
    for piece in pieces:
        gathered.add(1, before, 9, streams[before : before + piece])
        before += piece
    found, whole = gathered.tensors(), streams.view(9, LAYERS, HIDDEN)
    for layer in range(LAYERS):
        assert torch.equal(found[f"0.{layer}"][1], whole[8, layer])
        assert torch.equal(found[f"3.{layer}"][1], whole[5, layer])
        assert torch.equal(found[f"20.{layer}"][1], whole[0, layer])
        np.testing.assert_allclose(found[f"content.{layer}"][1], whole[CONTENT, layer].mean(dim=0), atol=1e-6)


def test_a_prompt_that_did_not_finish_is_no_number():
    """Half a prompt leaves NaN where it was not read, which no calibration goes on with; so does one never seen."""
    gathered = Gathered(2, (0, "content"), [CONTENT, CONTENT], LAYERS, HIDDEN)
    gathered.add(0, 0, 9, torch.ones(4, LAYERS * HIDDEN))
    assert all(tensor.isnan().all() for tensor in gathered.tensors().values())
