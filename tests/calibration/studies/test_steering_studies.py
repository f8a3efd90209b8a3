"""Studies beside the served operators: neurons damped, experts forced, categories, and several vectors at once."""

import numpy as np
import pytest
import torch
from recorded import refusing_by, training_set
from scipy.special import rel_entr
from sklearn.metrics import roc_auc_score
from tiny import HARMFUL_WORDS, make_prompts
from transformers import MixtralConfig, MixtralForCausalLM, Qwen3MoeConfig, Qwen3MoeForCausalLM

from calibration.fitting.fitted import Fitted, FittedSteering
from calibration.fitting.study import Skipped
from calibration.methods.directions.refusal_direction import fit_refusal_direction
from calibration.model.chat_model import ChatModel
from calibration.studies.steering.dynamic_composition import compose, composition_study, schedule_of, truncated_kl
from calibration.studies.steering.expert_bias import (
    Choice,
    biased,
    biased_scores,
    expert_study,
    find_routers,
    rate_differences,
)
from calibration.studies.steering.neuron_damping import damped, damping, damping_study
from calibration.studies.steering.refusal_by_category import category_study, least_strength
from probes.manifest import SteeringVector

SIZES = {
    "hidden_size": 32,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "max_position_embeddings": 128,
}
MODELS = {
    "mixtral": lambda vocabulary: MixtralForCausalLM(
        MixtralConfig(vocab_size=vocabulary, num_local_experts=6, num_experts_per_tok=2, **SIZES)
    ),
    "qwen3_moe": lambda vocabulary: Qwen3MoeForCausalLM(
        Qwen3MoeConfig(
            vocab_size=vocabulary,
            num_experts=6,
            num_experts_per_tok=2,
            moe_intermediate_size=24,
            head_dim=8,
            norm_topk_prob=False,
            **SIZES,
        )
    ),
}


@pytest.fixture
def training(planted_chat, tmp_path):
    """Recorded prompts of the planted model."""
    return training_set(planted_chat, tmp_path, make_prompts(240, 0))


@pytest.fixture(params=MODELS)
def experts(request, tokenizer, tmp_path):
    """A random mixture of experts whose routers send harmful words to expert 4 of block 0, and its prompts."""
    torch.manual_seed(0)
    model = MODELS[request.param](len(tokenizer)).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim > 1:
                parameter.copy_(torch.randn(parameter.shape) * (1.0 if "embed" in name else 0.15))
    chat = ChatModel.wrap(model, tokenizer)
    words = [tokenizer.encode(f" {word}", add_special_tokens=False)[0] for word in HARMFUL_WORDS]
    axis = torch.nn.functional.normalize(torch.randn(32), dim=0)
    with torch.no_grad():
        embedding = model.get_input_embeddings().weight
        embedding.sub_(torch.outer(embedding @ axis, axis))
        embedding[words] = 6 * axis + 0.1 * torch.randn(len(words), 32)
        router = find_routers(chat)[0].weight
        router.sub_(torch.outer(router @ axis, axis))
        router[4] = 3 * axis
    return training_set(chat, tmp_path, make_prompts(80, 0))


def test_factors_are_one_minus_what_scikit_learn_s_auroc_is_above_chance():
    """By neuron, ties and all; neurons no better than chance keep their output."""
    rng = np.random.default_rng(0)
    harmful = rng.random(60) < 0.4
    peaks = np.round(rng.normal(size=(60, 20)) + np.outer(harmful, rng.normal(size=20)), 1)
    areas = np.array([roc_auc_score(harmful, column) for column in peaks.T])
    np.testing.assert_allclose(damping(peaks, harmful), np.where(areas > 0.5, 1 - 2 * (areas - 0.5), 1))
    assert damping(harmful[:, None].astype(float), harmful)[0] == 0


def test_damping_is_folding_the_factors_into_the_weights(planted_chat):
    """The hook gives the logits of a model whose down-projections were scaled by column; without it they are the old
    ones.
    """
    from calibration.prompts.batching import make_batch

    batch = make_batch([[1, 2, 40, 50, 3, 4]], [0], planted_chat.device)
    rng = np.random.default_rng(1)
    factors = [rng.random(module.weight.shape[1]) for module in planted_chat.down_projections()]
    plain = planted_chat.last_logits(batch)
    with damped(planted_chat, factors):
        hooked = planted_chat.last_logits(batch)
    assert torch.equal(planted_chat.last_logits(batch), plain)
    with torch.no_grad():
        for module, factor in zip(planted_chat.down_projections(), factors, strict=True):
            module.weight.mul_(torch.from_numpy(factor).float())
    torch.testing.assert_close(hooked, planted_chat.last_logits(batch), rtol=1e-4, atol=1e-4)
    assert not torch.allclose(hooked, plain)


def test_the_damping_study_says_what_was_measured(training):
    """One study with both sides of the trade; nothing for a model that does not refuse."""
    (study,) = damping_study(training, fit_refusal_direction(training))
    assert {row[0] for row in study.tables[0].rows} >= {"refused_harmful", "kl_harmless"}
    assert "neurons detect harm" in study.finding
    with pytest.raises(Skipped, match="starts its answers to harmful prompts as"):
        damping_study(refusing_by(training), Fitted())


def test_studies_of_neurons_say_what_a_mixture_of_experts_lacks(experts):
    """The reason is the one that the model itself gives to whoever asks for its neurons."""
    with pytest.raises(Skipped, match="no single down-projection"):
        damping_study(refusing_by(experts, 5), Fitted())


def test_the_expert_of_harm_is_found(experts):
    """The router that was made to send harmful words to expert 4 shows the greatest difference there."""
    routers = find_routers(experts.chat)
    assert len(routers) == 2
    differences = rate_differences(experts, routers)
    assert differences[0].argmax() == 4
    assert differences[0, 4] > 0.1
    assert np.abs(differences.sum(axis=1)).max() < 1e-9


def test_forced_and_shut_experts(experts):
    """Every token gets a forced expert and none a shut one; other routers, and the model afterwards, are as before."""
    from calibration.prompts.batching import make_batch

    chat, routers, chosen = experts.chat, find_routers(experts.chat), []
    batch = make_batch(experts.prompts.token_ids[:3], [0, 1, 2], chat.device)
    plain = chat.last_logits(batch)
    with biased(routers, [Choice(forced=(2,), shut=(4, 5)), Choice()]):
        handle = routers[0].register_forward_hook(lambda _m, _a, output: chosen.append(output))
        steered = chat.last_logits(batch)
        handle.remove()
    _, scores, indices = chosen[0]
    assert (indices == 2).any(dim=1).all()
    assert not torch.isin(indices, torch.tensor([4, 5])).any()
    assert (scores.sum(-1) <= 1 + 1e-5).all()
    assert not torch.equal(steered, plain)
    assert torch.equal(chat.last_logits(batch), plain)


def test_biased_scores_by_hand():
    """Forced: the greatest log-score plus epsilon; shut out: the least minus it; the rest keep their order."""
    logits = torch.tensor([[1.0, 3.0, 2.0, 0.0]])
    values, indices = biased_scores(logits, Choice(forced=(3,), shut=(1,)), 3)
    assert indices.tolist() == [[3, 2, 0]]
    log = logits[0].log_softmax(0)
    by_hand = torch.stack([log[0], log[3] - 0.1, log[2], log[1] + 0.1]).softmax(0)
    torch.testing.assert_close(values[0], by_hand[[3, 2, 0]])


def test_the_expert_study(experts, training):
    """It reports what forcing did; a dense model has none."""
    (study,) = expert_study(refusing_by(experts, 5), Fitted())
    assert (0, 4) in {row[:2] for row in study.tables[0].rows}
    with pytest.raises(Skipped, match="no mixture of experts"):
        expert_study(training, Fitted())


def test_categories_in_order_of_what_they_need(training):
    """Every category with enough prompts has its row, and the least strength is the first that refuses nine in ten."""
    found = fit_refusal_direction(training)
    studies = category_study(training, found)
    with pytest.raises(Skipped, match="no steering vector 'refusal'"):
        category_study(training, Fitted())
    for study in studies:
        assert all(row[1] >= 8 for row in study.tables[0].rows)
    odds = np.linspace(-1, 1, 10)
    assert least_strength({0.0: odds, 0.5: odds + 0.5, 1.0: odds + 0.95, 2.0: odds + 2}) == 1.0
    assert least_strength({0.0: odds}) is None


def test_without_vectors_there_is_nothing_to_compose(training):
    """The reason says so."""
    with pytest.raises(Skipped, match="no steering vector in the artifact"):
        composition_study(training, Fitted())


def test_truncated_kl_is_scipy_s_on_the_kept_tokens():
    """Over the union of both top halves, renormalised; equal distributions are at distance 0."""
    first, second = (torch.randn(30, generator=torch.Generator().manual_seed(s)).mul(2).log_softmax(0) for s in (0, 1))

    def top(values):
        order, total, kept = values.exp().argsort(descending=True).tolist(), 0.0, set()
        for token in order:
            if total >= 0.5:
                break
            kept.add(token)
            total += float(values[token].exp())
        return kept

    kept = sorted(top(first) | top(second))
    ours, theirs = (each[kept].double().exp().numpy() for each in (first, second))
    assert truncated_kl(first, second) == pytest.approx(
        rel_entr(ours / ours.sum(), theirs / theirs.sum()).sum(), rel=1e-6
    )
    assert truncated_kl(first, first) == 0


def test_composition_fades_where_steering_changes_nothing_more(training):
    """A vector that moves nothing gets no strength; one that does gets some, at most 2, and its schedule starts from
    1.
    """
    found = fit_refusal_direction(training)
    refusal = found.steering[0]
    idle = FittedSteering(
        SteeringVector(name="idle", method="m", layers=refusal.spec.layers, norm=1, cos_refusal=0),
        {"vector": torch.zeros_like(refusal.vector)},
    )
    harmless = training.prompts.token_ids[training.sample(training.select, harmful=False, most=1)[0]]
    alphas = compose(training.chat, harmless, (idle, refusal), steps=3)
    assert alphas.shape == (3, 2)
    assert np.abs(alphas[:, 0]).max() < 1e-6
    assert 0.1 < alphas[0, 1] <= 2
    assert max(schedule_of(alphas[:, 1])) == 1
    assert schedule_of(np.zeros(3)) == (0.0,)
    (study,) = composition_study(training, Fitted(steering=(idle, refusal)))
    assert [series.name for series in study.charts[0].series] == ["idle", "refusal"]
    idle_row, refusal_row = study.tables[0].rows
    assert max(refusal_row[1:]) == 1
    assert len(idle_row) == len(refusal_row)
