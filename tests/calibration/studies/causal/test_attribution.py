"""Attribution patching ranks the planted pathway first, agrees with exact patching, and its remedies remedy."""

import numpy as np
import pytest
import torch
from recorded import refusing_by, training_set
from scipy.stats import spearmanr
from tiny import make_model, make_prompts

from calibration.fitting.study import Skipped
from calibration.model.chat_model import ChatModel
from calibration.model.refusal_gradient import refusal_log_odds
from calibration.model.sites import Site, Sites
from calibration.prompts.batching import make_batch
from calibration.studies.causal.attribution import Part, _Differentiated, _estimate_batch, estimate, record
from calibration.studies.causal.attribution_study import attribution_study
from calibration.studies.causal.exact_patching import patch_exactly
from calibration.studies.causal.pairs import PromptPairs, contrast_pairs


@pytest.fixture(scope="module")
def pairs(training, found):
    """Prompt pairs of the planted model."""
    return contrast_pairs(training, training.refusal_tokens, 12)


@pytest.fixture(scope="module")
def sites(training, pairs):
    """Its sites."""
    return Sites.of(training.chat, next(pairs.batches(training, 12))[0])


def test_pairs_are_of_equal_length_and_opposite_kind(pairs):
    """Every prompt is used once, and a pair differs in its label alone."""
    assert len(pairs) == 12
    assert np.array_equal(pairs.harmful.lengths, pairs.harmless.lengths)
    assert pairs.harmful.harmful.all()
    assert not pairs.harmless.harmful.any()
    assert len({prompt.id for side in (pairs.harmful, pairs.harmless) for prompt in side.prompts}) == 24


def test_the_planted_pathway_is_ranked_first(training, found, pairs, sites):
    """Block 0's attention carries refusal to the last position: first among writers, its heads first among heads."""
    estimates = estimate(training, sites, pairs, training.refusal_tokens)
    writers = [part for part in estimates if part.kind in ("attention", "mlp")]
    heads = [part for part in estimates if part.kind == "head"]
    assert max(writers, key=lambda part: estimates[part].refined) == Part("attention", 0, 0)
    ranked = sorted(heads, key=lambda part: -estimates[part].refined)
    assert {part.layer for part in ranked[:3]} == {0}
    exact = patch_exactly(training, sites, pairs, training.refusal_tokens, [*writers, *heads])
    truth = [float(exact[part].abs().mean()) for part in exact]
    assert spearmanr(truth, [estimates[part].refined for part in exact]).statistic > 0.8
    assert max(writers, key=lambda part: float(exact[part].mean())) == Part("attention", 0, 0)


def test_exact_patching_of_the_last_stream_is_the_other_prompt(training, found, pairs, sites):
    """With the last block's stream at the last position from the harmless run, the harmless answer comes out."""
    part = Part("stream", training.chat.num_layers - 1, 0)
    lost = patch_exactly(training, sites, pairs, training.refusal_tokens, [part])[part].sort().values
    both = next(pairs.batches(training, 12))
    harmful, harmless = (refusal_log_odds(training.chat.last_logits(batch), training.refusal_tokens) for batch in both)
    torch.testing.assert_close(lost, (harmful - harmless).sort().values, atol=1e-4, rtol=1e-4)


@pytest.fixture(scope="module")
def saturated(tokenizer, tmp_path_factory):
    """A random model whose attention is nearly all on one token, pairs of its prompts, and tokens to be 'refusal'."""
    model = make_model(len(tokenizer), seed=4)
    with torch.no_grad():
        for layer in model.model.layers:
            layer.self_attn.q_proj.weight.mul_(5)
    training = training_set(
        ChatModel.wrap(model, tokenizer), tmp_path_factory.mktemp("saturated"), make_prompts(160, 3)
    )
    lengths = training.prompts.lengths
    fitting = lengths == np.bincount(lengths).argmax()
    sides = [np.flatnonzero(fitting & (training.harmful == label)) for label in (True, False)]
    count = min(map(len, sides))
    return training, PromptPairs(*(training.prompts.subset(side[:count]) for side in sides)), (7, 8, 9, 10)


def test_attention_computed_anew_is_nearer_than_a_saturated_gradient(saturated):
    """Pair by pair, a query's or key's effect is estimated with less error when its softmax is computed anew."""
    training, pairs, tokens = saturated
    assert len(pairs) >= 8
    ((harmful, harmless),) = pairs.batches(training, 64)
    sites = Sites.of(training.chat, harmful)
    run = _Differentiated(sites, harmful, tokens)
    changes = run.changes(record(sites, harmless))
    estimates = {way: run.estimates(changes, range(2), repaired=way) for way in (False, True)}
    parts = [Part(kind, layer, head) for kind in ("query", "key") for layer in range(3) for head in range(4)]
    exact = patch_exactly(training, sites, pairs, tokens, parts)
    errors = {
        way: sum(float((found[Site(part.kind, part.layer)][:, part.unit] - exact[part]).abs().mean()) for part in parts)
        for way, found in estimates.items()
    }
    assert errors[True] < 0.7 * errors[False]


def test_dropped_gradients_see_what_cancels(tokenizer):
    """A part whose direct effect a later layer takes back has a small plain gradient, and a larger refined one."""
    model = make_model(len(tokenizer), seed=5)
    with torch.no_grad():
        for layer in model.model.layers:
            layer.self_attn.o_proj.weight.zero_()
            layer.mlp.down_proj.weight.zero_()
    chat = ChatModel.wrap(model, tokenizer)
    scale = []
    chat.blocks[1].register_forward_pre_hook(lambda _block, args: scale.append(rms(args[0])))
    # Block 1's attention takes away all but a thousandth of the stream that it sees.
    chat.blocks[1].self_attn.register_forward_hook(
        lambda _module, _args, kwargs, output: (-0.999 * kwargs["hidden_states"] * scale.pop(), *output[1:]),
        with_kwargs=True,
    )
    batch, other = (make_batch([[1, 2, token]], [0], chat.device) for token in (40, 50))
    found = _estimate_batch(Sites.of(chat, batch), batch, other, (7,), range(2))[Site("stream", 0)]
    assert found[2].max() > 10 * found[1].max()


def rms(stream):
    """What RMSNorm divides by."""
    return stream.pow(2).mean(dim=-1, keepdim=True).sqrt()


def test_the_study_names_its_sample(training, found):
    """Numbers of pairs and parts are in the finding; every kind of part is in the table."""
    (study,) = attribution_study(training, found)
    assert "12 pairs" in study.finding
    assert [row[0] for row in study.tables[0].rows] == [
        "query of head", "key of head", "head", "attention", "neuron", "MLP", "residual stream",
    ]  # fmt: skip
    assert study.charts[0].scatter
    with pytest.raises(Skipped, match="starts its answers to harmful prompts as"):
        attribution_study(refusing_by(training), found)
