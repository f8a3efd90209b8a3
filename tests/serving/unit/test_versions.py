"""What is made up for where versions of vLLM differ, on objects as the earlier ones have them."""

from types import SimpleNamespace

import pytest
import torch
from vllm.model_executor.layers.fusion import quant_activation
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.outputs import AsyncModelRunnerOutput, ModelRunnerOutput

from serving.core import versions
from serving.worker import down_projection
from serving.worker.pending_scores import PendingScores, ScoredOutput


@pytest.fixture
def before_027(monkeypatch):
    """The scheduler for 0.26 without the rest of one, and what it hands on: the tokens of each step, by request."""
    handed_on = []

    def update_from_output(_scheduler, _step, output):
        names = sorted(output.req_id_to_index, key=output.req_id_to_index.get)
        handed_on.append(dict(zip(names, output.sampled_token_ids, strict=True)))

    monkeypatch.setattr(Scheduler, "update_from_output", update_from_output)
    monkeypatch.setattr(Scheduler, "_preempt_request", lambda scheduler, request, timestamp: None)
    monkeypatch.setattr(Scheduler, "_free_request", lambda scheduler, request: None)
    scheduler = object.__new__(versions._DroppingBefore027)
    scheduler._stale_tokens = {}
    return scheduler, handed_on


def _request(in_flight):
    return SimpleNamespace(
        request_id="a", num_in_flight_tokens=in_flight, num_output_placeholders=2, async_tokens_to_discard=1
    )


def _come_back(scheduler, **num_tokens):
    names = list(num_tokens)
    output = ModelRunnerOutput(
        req_ids=names,
        req_id_to_index={name: index for index, name in enumerate(names)},
        sampled_token_ids=[[7] for _ in names],
        prompt_logprobs_dict={"a": torch.zeros(1)},
    )
    scheduler.update_from_output(SimpleNamespace(num_scheduled_tokens=num_tokens), output)
    return output


def test_what_was_under_way_is_dropped_in_version_026(before_027):
    """Every step that was scheduled before the request was taken back, and no later one; nobody else's tokens."""
    scheduler, handed_on = before_027
    request = _request(in_flight=5)
    scheduler._preempt_request(request, 0.0, drop_stale_output=True)
    assert (request.num_output_placeholders, request.async_tokens_to_discard) == (0, 0)
    outputs = [_come_back(scheduler, **step) for step in ({"b": 1, "a": 4}, {"b": 1}, {"a": 1, "b": 1}, {"a": 9})]
    assert handed_on == [{"b": [7], "a": []}, {"b": [7]}, {"a": [], "b": [7]}, {"a": [7]}]
    assert ["a" in output.prompt_logprobs_dict for output in outputs] == [False, True, False, True]


def test_what_is_to_be_delivered_is_in_version_026(before_027):
    """A request that vLLM itself takes back to make room keeps what it has under way, and so does one with nothing
    there.
    """
    scheduler, handed_on = before_027
    scheduler._preempt_request(_request(in_flight=1), 0.0)
    scheduler._preempt_request(_request(in_flight=0), 0.0, drop_stale_output=True)
    _come_back(scheduler, a=1)
    assert handed_on == [{"a": [7]}]


def test_a_request_that_ends_is_forgotten_in_version_026(before_027):
    """Its name may come back."""
    scheduler, handed_on = before_027
    scheduler._preempt_request(_request(in_flight=1), 0.0, drop_stale_output=True)
    scheduler._free_request(_request(in_flight=1))
    _come_back(scheduler, a=1)
    assert handed_on == [{"a": [7]}]


def test_log_probabilities_of_prompts_in_every_version():
    """Before 0.31 there are none of tokens that were asked for."""
    new = SimpleNamespace(prompt_logprobs_dict={"a": 1}, prompt_token_id_logprobs_dict={"b": 2})
    old = SimpleNamespace(prompt_logprobs_dict={"a": 1})
    assert versions.prompt_logprobs(new) == ({"a": 1}, {"b": 2})
    assert versions.prompt_logprobs(old) == ({"a": 1}, {})


def test_layers_that_take_quantised_input_in_every_version(monkeypatch):
    """Asked of vLLM, or before 0.30 of the layer."""
    layer, plain = torch.nn.Linear(1, 1), torch.nn.Linear(1, 1)
    quant_activation.expose_input_quant_key(layer, SimpleNamespace(input_quant_key=lambda: "fp8"))
    assert down_projection._takes_quantised(layer)
    assert not down_projection._takes_quantised(plain)
    monkeypatch.delattr(quant_activation, "get_input_quant_key", raising=False)
    layer.input_quant_key = "fp8"
    assert down_projection._takes_quantised(layer)
    assert not down_projection._takes_quantised(plain)


def test_an_output_with_scores_is_an_output_in_every_version():
    """From 0.33 on vLLM asks it for more than its tokens; whatever it must have is there."""

    class Output(AsyncModelRunnerOutput):
        def get_output(self):
            return ModelRunnerOutput(req_ids=[], req_id_to_index={})

        def get_kv_connector_output(self):
            return "saved"

    scored = ScoredOutput(Output(), [PendingScores.lost(None, ["a"])])
    assert scored.get_kv_connector_output() == "saved"
    assert scored.get_output().foreguard_scores == {"a": "sensor_error"}
