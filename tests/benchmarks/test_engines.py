"""Engines of one process compute with one copy of the weights, and make their steps in turn."""

import random
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from benchmarks.shared_weights import share
from benchmarks.stepper import _Batch, _in_lockstep
from serving.engine.wire import EXTRA, VERDICT


def layer(fill: float, width: int = 3) -> nn.Module:
    """Return a model of one linear layer with its weights packed for a kernel, as vLLM has them on a CPU."""
    model = nn.Sequential(nn.Linear(width, 2))
    nn.init.constant_(model[0].weight, fill)
    packed = model[0].weight.detach().clone()
    model[0].cpu_linear = lambda x: x @ packed.T
    return model


def test_models_of_one_name_share_parameters_and_packed_weights():
    first, second = layer(1.0), layer(2.0)
    share(first, "one")
    share(second, "one")
    assert second[0].weight.data_ptr() == first[0].weight.data_ptr()
    assert second[0].cpu_linear(torch.ones(3)).tolist() == [3.0, 3.0]


def test_another_model_keeps_its_own_and_a_wrong_one_is_refused():
    share(layer(1.0), "two")
    other = layer(5.0)
    share(other, "three")
    assert other[0].cpu_linear(torch.ones(3)).tolist() == [15.0, 15.0]
    with pytest.raises(RuntimeError, match="not a weight of the first"):
        share(layer(1.0, width=4), "two")


class Counting:
    """An engine that answers each of its requests with one token a step, and notes when it was asked."""

    def __init__(self, name: str, steps: int, turns: list[str]) -> None:
        self.name, self.left, self.turns = name, steps, turns

    def has_unfinished_requests(self) -> bool:
        return self.left > 0

    def step(self) -> list[SimpleNamespace]:
        self.left -= 1
        self.turns.append(self.name)
        carried = {EXTRA: {VERDICT: {"action": "allow"}}} if len(self.turns) <= 2 else None
        return [SimpleNamespace(request_id="0", kv_transfer_params=carried)]


def test_engines_take_turns_until_all_are_done_and_prefill_ends_with_the_first_token():
    turns: list[str] = []
    batches = {name: _Batch(Counting(name, steps, turns), {"0"}) for name, steps in (("a", 4), ("b", 2))}
    found = _in_lockstep(batches, random.Random(0))  # noqa: S311
    assert {frozenset(turns[:2]), frozenset(turns[2:4])} == {frozenset("ab")}
    assert turns[4:] == ["a", "a"]
    assert {name: (len(each["prefill"]), len(each["decode"])) for name, each in found.items()} == {
        "a": (1, 3),
        "b": (1, 1),
    }
    assert found["a"]["actions"] == {"allow": 1}
