"""Scores are those of the serving arithmetic on the model's own hidden states."""

import numpy as np
import pytest
import torch
from tiny import HIDDEN, LAYERS, make_prompts, write_prompts

from calibration.evaluation.controls import random_probes
from calibration.fitting.bank import bank_of
from calibration.fitting.fitted import Fitted, FittedProbe, load_fitted, save_fitted
from calibration.fitting.logit_scale import apply, fold
from calibration.model.refusal_metric import find_refusal_tokens, first_token_log_probs, mean_kl, refusal_metric
from calibration.prompts.batching import make_batch
from calibration.prompts.prompt_file import load_prompts
from calibration.prompts.template import encode_prompts
from calibration.recording.request_scores import score_prompts
from probes.errors import CalibrationError, ModelError
from probes.fingerprint import Fingerprint
from probes.manifest import Platt, Probe
from probes.readout import Readout
from probes.template import whole

IDENTITY = Fingerprint(
    architecture="x",
    num_layers=LAYERS,
    hidden_size=HIDDEN,
    config="",
    weights="",
    tokenizer="",
    chat_template="",
    dtype="float32",
)
READOUTS = [Readout(), Readout(offset=2), Readout(kind="mean"), Readout(kind="max"), Readout(kind="swim", window=4)]


@pytest.fixture
def encoded(tokenizer, tmp_path):
    """Forty prompts."""
    return encode_prompts(tokenizer, load_prompts(write_prompts(tmp_path / "p.jsonl", make_prompts(40, 8))), 128)


def make_bank(readouts):
    """Random probes over two blocks, one for each readout."""
    generator = torch.Generator().manual_seed(0)
    probes = [
        FittedProbe(
            Probe(name=f"p{index}", method="random", layers=(0, 1), readout=readout, bias=0.5),
            torch.randn(2, 1, HIDDEN, generator=generator),
        )
        for index, readout in enumerate(readouts)
    ]
    return bank_of(IDENTITY, probes)


@pytest.mark.parametrize("readouts", [READOUTS, READOUTS[:2]], ids=["all tokens", "last only"])
def test_scores_are_linear_readings_of_hugging_face_hidden_states(chat, encoded, readouts):
    """Each score equals the readout of `sum_l hidden_states[l + 1] . w_l + b`, computed one prompt at a time."""
    bank = make_bank(readouts)
    found = score_prompts(chat, bank, encoded).scores
    for row, ids in enumerate(encoded.token_ids[:15]):
        states = chat.model(input_ids=torch.tensor([ids]), output_hidden_states=True).hidden_states
        tokens = sum(states[tap.layer + 1][0] @ reading.matrix for tap, reading in bank.readings.items()).numpy()
        for column, readout in enumerate(readouts):
            wanted = readout.positions(whole(len(ids)))
            expected = readout.reduce(tokens[wanted.start : wanted.stop, [column]].astype(np.float32))[0] + 0.5
            assert found[row, column] == pytest.approx(expected, abs=1e-3)


@pytest.fixture
def nonlinear_probes():
    """Neurons of two blocks through a hidden layer, and an attention readout of the stream, in logits already."""
    generator = torch.Generator().manual_seed(1)
    specs = (
        Probe(
            name="neurons", method="m", site="mlp_neurons", width=48, layers=(0, 2), channels=3, head="mlp",
            readout=Readout(kind="max"), scale=0.5, bias=1.0,
        ),
        Probe(name="attends", method="m", layers=(1,), channels=4, readout=Readout(kind="attention")),
    )  # fmt: skip
    shapes = {name: shape for spec in specs for name, shape in spec.shapes(HIDDEN).items()}
    tensors = {name: torch.randn(*shape, generator=generator) for name, shape in shapes.items()}
    return [FittedProbe.of(spec, tensors) for spec in specs]


def test_neurons_and_heads_are_scored_by_their_formulas(chat, encoded, nonlinear_probes):
    """Each score equals one worked out token by token, one prompt at a time, from what the projections were given."""
    neurons, attends = nonlinear_probes
    found = score_prompts(chat, bank_of(IDENTITY, nonlinear_probes), encoded).scores
    seen = {}
    for layer, block in enumerate(chat.model.model.layers):
        block.mlp.down_proj.register_forward_hook(lambda _m, args, _o, layer=layer: seen.update({layer: args[0][0]}))
    for row, ids in enumerate(encoded.token_ids[:8]):
        with torch.no_grad():
            states = chat.model(input_ids=torch.tensor([ids]), output_hidden_states=True).hidden_states
        peaks = (seen[0] @ neurons.weight[0].T + seen[2] @ neurons.weight[1].T).max(0).values
        hidden = torch.relu(peaks + neurons.head["head_bias"])
        assert found[row, 0] == pytest.approx(0.5 * float(hidden @ neurons.head["head_weight"]) + 1.0, abs=1e-3)
        tokens = states[2][0] @ attends.weight[0].T
        looks = [tokens[:, 2 * head].softmax(0) @ tokens[:, 2 * head + 1] for head in range(2)]
        assert found[row, 1] == pytest.approx(float(sum(looks)), abs=1e-3)


def test_a_probe_of_another_number_of_neurons_is_refused(chat, encoded, nonlinear_probes):
    """The error names the probe and both numbers."""
    probe = nonlinear_probes[0]
    wide = FittedProbe(probe.spec.model_copy(update={"width": 50}), torch.randn(2, 3, 50), probe.head)
    with pytest.raises(ModelError, match="block 0 has 48 neurons, not 50") as caught:
        score_prompts(chat, bank_of(IDENTITY, [wide]), encoded)
    assert caught.value.field == "probes.neurons.width"


def test_folding_into_logits_maps_every_score(chat, encoded, nonlinear_probes):
    """Whatever the readout and head, the folded probe's scores are the map of its scores before: no order changes."""
    maps = [Platt(slope=3.0, intercept=-0.5), Platt(slope=0.25, intercept=2.0)]
    before = score_prompts(chat, bank_of(IDENTITY, nonlinear_probes), encoded).scores
    after = score_prompts(chat, bank_of(IDENTITY, fold(nonlinear_probes, maps)), encoded).scores
    np.testing.assert_allclose(after, apply(maps, before), rtol=1e-5, atol=1e-5)


def test_fitted_probes_survive_their_file(nonlinear_probes, tmp_path):
    """Weights of several channels and heads come back, each with its probe."""
    save_fitted(Fitted(probes=tuple(nonlinear_probes)), tmp_path / "f.safetensors")
    for back, probe in zip(load_fitted(tmp_path / "f.safetensors").probes, nonlinear_probes, strict=True):
        assert back.spec == probe.spec
        assert back.tensors().keys() == probe.tensors().keys()
        assert all(torch.equal(back.tensors()[name], tensor) for name, tensor in probe.tensors().items())


def test_controls_of_any_probe_are_linear(nonlinear_probes):
    """Random directions where the probe reads, as wide as what it reads, and scored like any other probe."""
    for probe in nonlinear_probes:
        controls = random_probes(probe.spec, HIDDEN)
        bank_of(IDENTITY, controls)
        assert {tuple(each.weight.shape[1:]) for each in controls} == {(1, probe.spec.width or HIDDEN)}
        assert {(each.spec.site, each.spec.layers, each.spec.head) for each in controls} == {
            (probe.spec.site, probe.spec.layers, "sum")
        }
        assert {name: t.shape for each in controls for name, t in each.tensors().items()} == {
            name: shape for each in controls for name, shape in each.spec.shapes(HIDDEN).items()
        }


def test_a_score_that_is_not_a_number_names_the_prompt(chat, encoded):
    """A model that overflows is reported, not scored."""
    chat.blocks[0].register_forward_hook(lambda _b, _a, output: output * float("nan"))
    with pytest.raises(CalibrationError, match=r"prompt p.jsonl:1: a score is NaN"):
        score_prompts(chat, make_bank(READOUTS), encoded)


def test_first_token_probabilities_are_in_file_order(chat, encoded):
    """Batching by length shuffles the prompts; the result does not."""
    found = first_token_log_probs(chat, encoded)
    for row in (0, 7, 39):
        alone = chat.last_logits(make_batch(encoded.token_ids, [row], chat.device)).log_softmax(-1)[0]
        torch.testing.assert_close(found[row], alone, atol=1e-4, rtol=1e-4)


def test_refusal_tokens_are_those_that_start_answers_to_harmful_prompts():
    """Token 1 starts most refusals, token 2 a few; token 0 starts answers to both; token 3 is too rare to count."""
    starts = [1] * 60 + [2] * 20 + [0] * 18 + [3] * 2 + [0] * 97 + [2] * 3
    log_probs = torch.nn.functional.one_hot(torch.tensor(starts), 5).float().log()
    harmful = np.arange(200) < 100
    assert find_refusal_tokens(log_probs, harmful) == (1, 2)
    assert find_refusal_tokens(log_probs[harmful].repeat(2, 1), harmful) == ()


def test_the_refusal_metric_is_the_log_odds_of_its_tokens():
    """`log P_R - log(1 - P_R)`, and finite at the ends."""
    probabilities = torch.tensor([[0.5, 0.25, 0.25], [0.1, 0.1, 0.8], [1.0, 0.0, 0.0], [0.0, 0.0, 1.0]])
    metric = refusal_metric(probabilities.log(), (0, 1))
    np.testing.assert_allclose(metric[:2], [np.log(3), np.log(0.25)], rtol=1e-6)
    assert np.isfinite(metric).all()


def test_kl_is_torchs():
    """The mean divergence agrees with torch.nn.functional.kl_div, and is zero of a distribution from itself."""
    before, after = torch.randn(2, 6, 9).log_softmax(-1)
    expected = torch.nn.functional.kl_div(after, before, log_target=True, reduction="batchmean")
    assert mean_kl(before, after) == pytest.approx(float(expected), rel=1e-5)
    assert mean_kl(before, before) == 0.0
