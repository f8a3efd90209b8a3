"""Engines of one process compute with one copy of the weights, and make their steps in turn."""

import random
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from benchmarks.cost.shared_weights import share
from benchmarks.cost.stepper import _begin, _in_lockstep
from serving.wire import EXTRA, VERDICT


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
    """An engine that answers each of its requests with one token a step, and notes when it was asked and of how
    many.
    """

    def __init__(self, name: str, turns: list[str]) -> None:
        self.name, self.turns = name, turns
        self.left: dict[str, int] = {}
        self.begun: set[str] = set()
        self.under_way: list[int] = []

    def add_request(self, name: str, prompt: dict, params) -> None:
        assert prompt["prompt_token_ids"] == [7]
        self.left[name] = params.max_tokens

    def has_unfinished_requests(self) -> bool:
        return bool(self.left)

    def step(self) -> list[SimpleNamespace]:
        self.turns.append(self.name)
        self.under_way.append(len(self.left))
        new = self.left.keys() - self.begun
        self.begun |= new
        verdict = {EXTRA: {VERDICT: {"action": "allow"}}}
        outputs = [
            SimpleNamespace(request_id=name, finished=left == 1, kv_transfer_params=verdict if name in new else None)
            for name, left in self.left.items()
        ]
        self.left = {name: left - 1 for name, left in self.left.items() if left > 1}
        return outputs


def asked(*lengths: int) -> list:
    """Return requests of so many tokens out."""
    return [([7], length, {}) for length in lengths]


def test_engines_take_turns_until_all_are_done_and_prefill_ends_with_the_first_token():
    turns: list[str] = []
    batches = {name: _begin(Counting(name, turns), 0, asked(length), None) for name, length in (("a", 4), ("b", 2))}
    found = _in_lockstep(batches, random.Random(0))  # noqa: S311
    assert {frozenset(turns[:2]), frozenset(turns[2:4])} == {frozenset("ab")}
    assert turns[4:] == ["a", "a"]
    assert {name: (len(each["prefill"]), len(each["decode"])) for name, each in found.items()} == {
        "a": (1, 3),
        "b": (1, 1),
    }
    assert found["a"]["actions"] == {"allow": 1}


def test_requests_arrive_as_others_end():
    """Two are under way until none are left to come, and a step is a prefill's when one of them has no token yet."""
    engine = Counting("a", [])
    found = _in_lockstep({"a": _begin(engine, 0, asked(1, 3, 2, 1, 2), 2)}, random.Random(0))  # noqa: S311
    assert engine.under_way == [2, 2, 2, 2, 1]
    assert (len(found["a"]["prefill"]), len(found["a"]["decode"])) == (3, 2)
    assert found["a"]["actions"] == {"allow": 5}
