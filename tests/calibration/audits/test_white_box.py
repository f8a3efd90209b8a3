"""Attacks find what is there to find, on the very scores that serve, and say what they found with its sample size."""

import json

import numpy as np
import pytest
import torch
import typer
from tiny import HIDDEN, make_prompts, write_prompts
from transformers import OPTConfig, OPTForCausalLM
from typer.testing import CliRunner

from calibration import cli
from calibration.audits.attack.differentiable_score import activations_of, probe_score
from calibration.audits.attack.objective import Objective
from calibration.audits.attack.suffix_search import Effort, SuffixSearch, typeable_tokens
from calibration.audits.attack.white_box import attack_artifact
from calibration.fitting.fitted import FittedProbe
from calibration.model.chat_model import ChatModel
from calibration.prompts.batching import make_batch
from calibration.prompts.prompt_file import load_prompts
from calibration.prompts.template import encode_prompts, template_suffix
from calibration.recording.request_scores import score_prompts
from probes.artifact import Artifact
from probes.errors import ArtifactError, CalibrationError
from probes.manifest import Probe
from probes.scoring import ProbeBank

REFUSE = (5,)
EFFORT = Effort(length=4, steps=6, swaps=12)


@pytest.fixture(scope="module")
def artifact(calibrated):
    """The planted model's artifact."""
    return Artifact.load(calibrated[1])


@pytest.fixture(scope="module")
def prompts(planted, splits):
    """Eight harmful test prompts, encoded."""
    chat = ChatModel.load(planted.folder)
    encoded = encode_prompts(chat.tokenizer, load_prompts(splits["test"]), chat.context)
    return encoded.subset(np.flatnonzero(encoded.harmful)[:8])


def losses(chat, prompts, suffixes, objective):
    """Each prompt's loss with its suffix in place."""
    tail = len(template_suffix(chat.tokenizer))
    ids = [each[:-tail] + suffix + each[-tail:] for each, suffix in zip(prompts.token_ids, suffixes, strict=True)]
    with torch.no_grad():
        return objective.loss(chat, make_batch(ids, range(len(ids)), chat.device)).numpy()


def test_a_search_lowers_the_planted_metric(planted_chat, prompts):
    """Chosen words lower the refusal of every prompt at least as far as words drawn at random, and on average
    further.
    """
    search = SuffixSearch(planted_chat, prompts.token_ids, len(template_suffix(planted_chat.tokenizer)), EFFORT)
    objective = Objective("refusal", REFUSE)
    random, found = search.random(), search.run(objective)
    untouched = losses(planted_chat, prompts, [()] * 8, objective)
    by_chance, by_search = (losses(planted_chat, prompts, each, objective) for each in (random, found))
    assert (by_search <= by_chance + 1e-6).all()
    assert by_search.mean() < 0.7 * by_chance.mean()
    assert by_search.mean() < untouched.mean()


def test_a_search_lowers_the_score_of_a_neuron_probe(planted_chat, prompts):
    """A probe that reads neurons is attacked like any other: the gradient is that of the search's own pass."""
    spec = Probe(name="tried", method="drawn", site="mlp_neurons", width=48, layers=(0, 2))
    weight = torch.randn(2, 1, 48, generator=torch.Generator().manual_seed(4))
    search = SuffixSearch(planted_chat, prompts.token_ids, len(template_suffix(planted_chat.tokenizer)), EFFORT)
    objective = Objective("tried", REFUSE, FittedProbe(spec, weight), cut=-100.0)
    random, found = search.random(), search.run(objective)
    by_chance, by_search = (losses(planted_chat, prompts, each, objective) for each in (random, found))
    assert (by_search <= by_chance + 1e-6).all()
    assert by_search.mean() < by_chance.mean() - 1


def test_suffixes_are_words_that_can_be_typed(planted_chat):
    """As text and back they are the same tokens, also behind a word, and none is special."""
    tokenizer, tokens = planted_chat.tokenizer, typeable_tokens(planted_chat)
    suffix = tokens[:6].tolist()
    text = "paint" + tokenizer.decode(suffix)
    assert tokenizer(text, add_special_tokens=False).input_ids[-6:] == suffix
    assert not set(tokens.tolist()) & set(tokenizer.all_special_ids)


KINDS = [
    {"readout": {"kind": "last", "offset": 2}},
    {"readout": {"kind": "mean"}},
    {"readout": {"kind": "max"}, "channels": 3},
    {"readout": {"kind": "ema", "alpha": 0.3}},
    {"readout": {"kind": "swim", "window": 3}},
    {"readout": {"kind": "softmax", "temperature": 0.7}},
    {"readout": {"kind": "attention"}, "channels": 4},
    {"channels": 5, "head": "mlp"},
    {"channels": 3, "head": "mahalanobis", "layers": (1,)},
    {"channels": 4, "head": "mlp", "head_reads": "token", "readout": {"kind": "swim", "window": 3}},
    {"site": "mlp_neurons", "width": 48, "readout": {"kind": "mean"}},
]


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_the_differentiable_score_is_the_served_score(planted_chat, prompts, kind):
    """For every site, readout and head, the attacker's score is what `probes.scoring` gives."""
    ours, served = both_scores(planted_chat, prompts, kind)
    assert ours == pytest.approx(served, rel=1e-3, abs=1e-3)


def test_neurons_of_all_rows_in_one_matrix_are_told_apart(tokenizer, prompts):
    """OPT's MLP works on `[B * T, F]`: the attacker's score is the served one there, too."""
    config = OPTConfig(
        vocab_size=len(tokenizer), hidden_size=HIDDEN, num_hidden_layers=3, num_attention_heads=4, ffn_dim=48,
        word_embed_proj_dim=HIDDEN,
    )  # fmt: skip
    ours, served = both_scores(ChatModel.wrap(OPTForCausalLM(config), tokenizer), prompts, KINDS[-1])
    assert ours == pytest.approx(served, rel=1e-3, abs=1e-3)


def both_scores(chat, prompts, kind):
    """Scores of eight prompts on a probe drawn at random: the attacker's, and those of `probes.scoring`."""
    spec = Probe.model_validate(
        {"name": "tried", "method": "drawn", "layers": (0, 2), "scale": 1.5, "bias": 0.3} | kind
    )
    generator = torch.Generator().manual_seed(4)
    tensors = {name: torch.randn(shape, generator=generator) for name, shape in spec.shapes(HIDDEN).items()}
    probe = FittedProbe.of(spec, tensors)
    batch = make_batch(prompts.token_ids, range(8), chat.device)
    with torch.no_grad(), activations_of(chat, probe) as activations:
        chat.differentiable_logits(batch)
        ours = probe_score(probe, activations, batch).tolist()
    served = score_prompts(chat, ProbeBank.of([spec], tensors), prompts.subset(range(8))).scores[:, 0]
    return ours, served.tolist()


def test_the_command_reports_every_probe_asked_for(planted, calibrated, splits, tmp_path, monkeypatch):
    """Recall untouched, by chance and under attack, with n; and no suffix is written anywhere."""
    monkeypatch.setenv("COLUMNS", "220")
    application = typer.Typer()
    application.command("attack")(cli.attack)
    arguments = [
        "--model", planted.folder, "--artifact", calibrated[1], "--prompts", splits["test"], "--probe", "lda",
        "--probe", "tokens", "--num-prompts", 6, "--length", 4, "--steps", 3, "--swaps", 8, "--json", tmp_path / "a.json",
    ]  # fmt: skip
    result = CliRunner().invoke(application, [str(each) for each in arguments], catch_exceptions=False)
    study = json.loads((tmp_path / "a.json").read_text())
    (table,) = study["tables"]
    assert [row[0] for row in table["rows"]] == ["lda", "tokens"]
    assert {row[-1] for row in table["rows"]} == {6}
    assert all(row[4] <= row[1] for row in table["rows"])
    assert "answered and not flagged" in result.output
    assert not any(f" {word} " in json.dumps(study) for word in ("forge", "steal", "garden"))


def test_without_a_name_every_probe_is_attacked(planted, calibrated, splits, tmp_path):
    """Those that read neurons are among them."""
    application = typer.Typer()
    application.command("attack")(cli.attack)
    arguments = [
        "--model", planted.folder, "--artifact", calibrated[1], "--prompts", splits["test"], "--num-prompts", 2,
        "--length", 2, "--steps", 1, "--swaps", 2, "--json", tmp_path / "a.json",
    ]  # fmt: skip
    CliRunner().invoke(application, [str(each) for each in arguments], catch_exceptions=False)
    (table,) = json.loads((tmp_path / "a.json").read_text())["tables"]
    names = [row[0] for row in table["rows"]]
    assert names == [probe.name for probe in calibrated[0].manifest.probes]
    assert "neurons" in names


def test_what_cannot_be_attacked_is_refused(planted, artifact, splits, tmp_path):
    """An unknown probe, and prompts that show no refusal, are errors that name the remedy."""
    file = load_prompts(splits["test"])
    with pytest.raises(ArtifactError, match="no probe is named 'nothing'"):
        attack_artifact(planted.folder, artifact, file, probes=("nothing",), effort=EFFORT)
    lines = make_prompts(40, 21, harmful_share=0)
    mislabelled = [line | {"label": "harmful" if index % 2 else "harmless"} for index, line in enumerate(lines)]
    with pytest.raises(CalibrationError, match="nothing to attack"):
        attack_artifact(
            planted.folder, artifact, load_prompts(write_prompts(tmp_path / "m.jsonl", mislabelled)), effort=EFFORT
        )
