"""Hooks see what passes, change what they are told to, and leave nothing behind."""

from pathlib import Path

import pytest
import torch
from torch import nn

from calibration.model import hooks
from calibration.model.hooks import after_call, before_call, on_input, on_output, together
from probes.errors import ModelError

GIVEN = torch.arange(6.0).reshape(1, 3, 2)


class Doubling(nn.Module):
    """Hands on twice what it is given, and something beside it."""

    def forward(self, hidden_states, beside=None):
        return 2 * hidden_states, beside


class Bare(nn.Module):
    """Hands on a tensor alone."""

    def forward(self, hidden_states):
        return hidden_states + 1


class Silent(nn.Module):
    """Hands on no tensor."""

    def forward(self, hidden_states):
        return {"states": hidden_states}


def test_an_output_is_read_or_changed_and_what_stands_beside_it_stays():
    """Of a module that hands on a tuple and of one that hands on a tensor."""
    double, bare, seen = Doubling(), Bare(), []
    with on_output(double, seen.append), on_output(bare, lambda stream: stream * 10):
        out, beside = double(GIVEN, beside="b")
        assert torch.equal(bare(GIVEN), (GIVEN + 1) * 10)
    assert torch.equal(seen[0], out)
    assert beside == "b"
    with on_output(double, lambda stream: stream + 1):
        assert torch.equal(double(GIVEN)[0], 2 * GIVEN + 1)


@pytest.mark.parametrize("call", [lambda module: module(GIVEN), lambda module: module(hidden_states=GIVEN)])
def test_an_input_is_changed_however_it_is_given(call):
    """By place, or by name as some families do."""
    module = Doubling()
    with on_input(module, lambda stream: stream + 1):
        assert torch.equal(call(module)[0], 2 * (GIVEN + 1))
    assert torch.equal(call(module)[0], 2 * GIVEN)


def test_calls_are_seen_whole():
    """All arguments before, module and output after."""
    module, before, after = Doubling(), [], []
    with (
        before_call(module, lambda args, kwargs: before.append((args, kwargs))),
        after_call(module, lambda *call: after.append(call)),
    ):
        module(GIVEN, beside="b")
    assert before == [((GIVEN,), {"beside": "b"})]
    assert after[0][0] is module
    assert after[0][2][1] == "b"


def test_nothing_is_left_behind_whatever_happens():
    """An exception in the block, or in the pass itself, takes the hooks with it."""
    modules = [Doubling(), Bare()]
    with pytest.raises(KeyboardInterrupt), together(on_output(module, lambda _: None) for module in modules):
        raise KeyboardInterrupt
    with pytest.raises(ModelError, match="Silent gave no tensor"), on_output(silent := Silent(), lambda _: None):
        silent(GIVEN)
    for module in (*modules, silent):
        assert not module._forward_hooks
        assert not module._forward_pre_hooks


def test_no_other_file_registers_hooks():
    """One owner: five ways to hook one matrix once made a pass within a pass."""
    package = Path(hooks.__file__).parents[1]
    own = Path(hooks.__file__)
    assert not [path for path in package.rglob("*.py") if path != own and ".register_forward" in path.read_text()]
