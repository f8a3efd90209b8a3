"""Steering operators in a real server do what the same operators do offline, to the steered request and to no other."""

import pytest
import torch

from probes.steering import SteeringBank, displacement
from tests.serving.planted import HARM_LAYER
from tests.serving.server import SERVED_NAME
from tests.serving.world import BENIGN, OBSERVER_KEY, TOKENS, answer, key, policy_text, steered_prompt

pytestmark = [pytest.mark.engine, pytest.mark.long, pytest.mark.timeout(600)]

NEIGHBOURS = BENIGN[:6]
TOLERANCE = 0.15
"""Of a log-probability: bfloat16 keeps 8 bits, as in test_invariants.py."""
SHADOW = {"extra_body": {"moderation": {"mode": "score"}}}
STRENGTHS = {"gated": 1.5, "map": 1.0, "turn": 1.0, "swap": 1.5}


@torch.no_grad()
def first_token(reference, artifact, messages, name=None):
    """A plain forward pass's greedy first token and its log-probability, steered at the last position by the
    operator.
    """
    bank = SteeringBank.from_artifact(artifact)
    strengths = torch.tensor([[STRENGTHS[name] if each == name else 0.0 for each in bank.names]])

    def steer(_module, _args, output):
        stream = output if isinstance(output, torch.Tensor) else output[0]
        delta = displacement(stream[0, -1:], strengths, bank.moves[HARM_LAYER])
        stream[0, -1:] += delta.to(stream.dtype)
        return output

    hook = reference.model.model.layers[HARM_LAYER].register_forward_hook(steer) if name else None
    try:
        logits = reference.model(torch.tensor([reference.token_ids(messages)])).logits[0, -1]
    finally:
        if hook:
            hook.remove()
    best = logits.float().log_softmax(dim=-1).max(dim=-1)
    return reference.tokenizer.decode([int(best.indices)]), float(best.values)


@pytest.fixture(scope="module", params=["eager", "compiled"])
def unguarded(request, start):
    """What a server without a guard answers, and the flags of its mode.

    Compiled is what is served unless told otherwise.
    """
    flags = ["--enforce-eager"] if request.param == "eager" else []
    with start(None, *flags) as server:
        return flags, {key(messages): answer(server.client(), messages) for messages in NEIGHBOURS}


@pytest.mark.parametrize("name", STRENGTHS)
def test_a_served_operator_is_the_offline_one_and_stays_in_its_row(unguarded, start, reference, artifact, name):
    """The steered request's first token is the offline operator's; its neighbours, follow-ups and shadows are
    untouched.
    """
    flags, expected = unguarded
    prompt = steered_prompt(reference, artifact)
    (aimed, logprob), (plain, _) = (first_token(reference, artifact, prompt, each) for each in (name, None))
    assert aimed != plain, "the planted vector does not move this prompt: nothing to test with"
    policy = policy_text(reference, artifact)
    chosen = policy.replace("vector: refusal, strength: 1.5", f"vector: {name}, strength: {STRENGTHS[name]}")
    with start(chosen, *flags) as server:
        observer = server.client(OBSERVER_KEY)
        reply = server.client().chat.completions.with_raw_response.create(
            model=SERVED_NAME, messages=prompt, max_tokens=TOKENS, temperature=0, logprobs=True
        )
        assert reply.headers["x-guardrail-decision"] == "steer"
        steered = reply.parse().choices[0]
        assert steered.logprobs.content[0].token.strip() == aimed.strip()
        assert steered.logprobs.content[0].logprob == pytest.approx(logprob, abs=TOLERANCE)
        assert {key(m): answer(server.client(), m) for m in NEIGHBOURS} == expected
        assert answer(observer, prompt, **SHADOW).startswith(plain.strip())
        for follow_up in NEIGHBOURS[:2]:
            grown = [*prompt, {"role": "assistant", "content": steered.message.content}, *follow_up]
            shared = answer(observer, grown, **SHADOW)
            fresh = answer(observer, grown, extra_body={**SHADOW["extra_body"], "cache_salt": key(grown)})
            assert shared == fresh
