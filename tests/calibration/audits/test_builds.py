"""Two builds of a model: what was done to the second is what is named, and nothing else is."""

import hashlib
import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import typer
from planted_head import CARRIER, lone_word_prompts, make_carrier_model
from tiny import make_model, make_prompts, write_prompts
from transformers import AutoModelForCausalLM
from typer.testing import CliRunner

from calibration import cli
from calibration.audits.builds.comparison import compare_builds
from calibration.audits.builds.reading import Build
from calibration.audits.builds.rounding import ONE_UNIT, rounded_anew
from calibration.audits.builds.verdict import judge, moved_heads
from calibration.audits.builds.weights import head_weight_changes, neuron_weight_changes, written_direction
from calibration.model.attention_heads import Head
from calibration.model.chat_model import ChatModel
from calibration.prompts.prompt_file import load_prompts
from probes.errors import ModelError, PromptError

LAB = Path(__file__).parents[3] / "examples" / "lab"


@pytest.fixture(scope="module")
def carrier(tokenizer, tmp_path_factory):
    """The folder of the model whose head 2 of block 0 carries refusals."""
    folder = tmp_path_factory.mktemp("carrier")
    make_carrier_model(tokenizer)[0].save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def prompts(tmp_path_factory):
    """Forty prompts for it."""
    return write_prompts(tmp_path_factory.mktemp("prompts") / "p.jsonl", lone_word_prompts(40, 3))


@pytest.fixture(scope="module")
def lab_prompts(tmp_path_factory):
    """The first 24 plain harmful and plain harmless prompts of the lab's validation file."""
    lines = [json.loads(line) for line in (LAB / "prompts" / "validation.jsonl").read_text().splitlines()]
    kinds = [[line for line in lines if line["source"] == source] for source in ("plain_harmful", "plain_harmless")]
    return write_prompts(tmp_path_factory.mktemp("lab") / "p.jsonl", [line for kind in kinds for line in kind[:24]])


def edited(folder, target, edit):
    """Save the model of `folder` to `target` after `edit(model)`; return `target`."""
    shutil.copytree(folder, target)
    model = AutoModelForCausalLM.from_pretrained(folder)
    with torch.no_grad():
        edit(model)
    model.save_pretrained(target)
    return target


def zero_head(head):
    """An edit that takes a head's output weights."""

    def edit(model):
        model.model.layers[head.block].self_attn.o_proj.weight[:, 8 * head.index : 8 * head.index + 8] = 0

    return edit


def test_a_model_and_itself_refuse_alike(carrier, prompts):
    """Nothing moved: every difference is zero, and the floor is not."""
    found = compare_builds(carrier, carrier, load_prompts(prompts))
    verdict = judge(found)
    assert verdict.sentence.startswith("the two builds refuse alike")
    assert verdict.moved == ()
    assert not found.changed.ships.any()
    assert not found.changed.neurons_harmful.any()
    assert found.written is None
    assert found.refused[0].value == 1.0
    assert found.floor.ships > 0
    assert found.floor.refusal_gap > 0
    assert found.floor.neurons.max() > 0


def test_a_head_that_carries_refusals_is_named_when_it_is_zeroed(carrier, prompts, tmp_path):
    """Its Ships fall to nothing, its weights moved and no other head's did, and refusals are gone."""
    found = compare_builds(carrier, edited(carrier, tmp_path / "b", zero_head(CARRIER)), load_prompts(prompts))
    verdict = judge(found)
    assert (
        verdict.sentence == "refusals were removed: of 20 harmful prompts the first build refuses 100%, the second 0%"
    )
    assert moved_heads(found) == [CARRIER]
    assert any(f"{CARRIER} (" in part for part in verdict.moved)
    assert [found.heads[row] for row in np.flatnonzero(found.head_weights > found.floor.weights)] == [CARRIER]
    assert not found.neuron_weights.any()


def test_a_head_that_carries_nothing_moves_no_alarm(carrier, prompts, tmp_path):
    """Its weights are seen to have moved; the verdict is that the builds refuse alike."""
    other = Head(1, 1)
    found = compare_builds(carrier, edited(carrier, tmp_path / "b", zero_head(other)), load_prompts(prompts))
    assert [found.heads[row] for row in np.flatnonzero(found.head_weights > found.floor.weights)] == [other]
    assert judge(found).moved == ()


def test_bfloat16_is_rounding(carrier, prompts, tmp_path):
    """A build saved in half the bytes is the same build: nothing moved beyond the floor, of which it is a part."""
    found = compare_builds(
        carrier, edited(carrier, tmp_path / "b", lambda model: model.bfloat16()), load_prompts(prompts)
    )
    assert judge(found).moved == ()
    assert 0 < found.head_weights.max() <= found.floor.weights
    assert found.neuron_weights.max() <= found.floor.weights
    assert "weights" in found.differing


def test_refusals_that_were_added_are_so_called(carrier, prompts, tmp_path):
    """The other way round the same two builds give the opposite verdict."""
    found = compare_builds(edited(carrier, tmp_path / "b", zero_head(CARRIER)), carrier, load_prompts(prompts))
    assert judge(found).sentence.startswith("refusals were added")


def test_another_chat_template_is_an_alarm(carrier, prompts, tmp_path):
    """Equal weights under another template are not asked the same."""
    shutil.copytree(carrier, tmp_path / "b")
    template = tmp_path / "b" / "chat_template.jinja"
    template.write_text(template.read_text() + "<|user|>")
    verdict = judge(compare_builds(carrier, tmp_path / "b", load_prompts(prompts)))
    assert verdict.moved == (verdict.sentence,)
    assert verdict.sentence.startswith("the chat templates differ")


def test_the_trained_lab_model_is_told_from_its_base(lab_prompts):
    """Refusals are gone, the direction and the heads they hang on with them."""
    found = compare_builds(LAB / "aligned", LAB / "base", load_prompts(lab_prompts))
    verdict = judge(found)
    assert verdict.sentence.startswith("refusals were removed")
    assert any(part.startswith("the refusal direction moved") for part in verdict.moved)
    assert any(part.startswith("safety heads moved") for part in verdict.moved)
    assert found.refused[1].value == 0


def test_the_lab_model_is_told_from_itself_without_its_refusal_direction(lab_prompts, tmp_path):
    """Orthogonalised weights (arXiv 2406.11717): one direction left all that the blocks write, and it is refusal's."""
    file = load_prompts(lab_prompts)
    direction = direction_of(file)

    def orthogonalise(model):
        layers = model.model.layers
        for matrix in (part for layer in layers for part in (layer.self_attn.o_proj, layer.mlp.down_proj)):
            exact = matrix.weight.float()
            matrix.weight.copy_(exact - torch.outer(direction, direction @ exact))
        embedding = model.model.embed_tokens.weight
        embedding.copy_(embedding.float() - torch.outer(embedding.float() @ direction, direction))

    found = compare_builds(LAB / "aligned", edited(LAB / "aligned", tmp_path / "b", orthogonalise), file)
    verdict = judge(found)
    assert verdict.sentence.startswith("refusals were removed")
    assert any(part.startswith("one direction was taken out") for part in verdict.moved)
    assert abs(found.written.direction @ direction.numpy()) > 0.99
    assert found.written.kept < 0.05


def direction_of(file):
    """The lab model's unit difference in means after block 1, whose ablation stops its refusals."""
    from calibration.audits.builds.comparison import _questions
    from calibration.audits.builds.difference import refusal_directions
    from calibration.audits.builds.reading import read_build
    from calibration.prompts.template import encode_prompts

    build = Build.of(ChatModel.load(LAB / "aligned"))
    reading = read_build(build, _questions(encode_prompts(build.chat.tokenizer, file, build.chat.context)), "lab")
    return torch.nn.functional.normalize(torch.from_numpy(refusal_directions(reading)[1]).float(), dim=0)


def test_rounding_moves_every_weight_by_a_unit_at_most_and_puts_them_back(carrier):
    """The floor's copy differs by up to one unit in bfloat16's last place; afterwards model and file are as before."""
    before = hashlib.sha256((carrier / "model.safetensors").read_bytes()).hexdigest()
    chat = ChatModel.load(carrier)
    exact = {name: parameter.clone() for name, parameter in chat.model.named_parameters()}
    with rounded_anew(chat, 0):
        for name, parameter in chat.model.named_parameters():
            moved = (parameter - exact[name]).abs()
            assert (moved <= exact[name].abs() * ONE_UNIT * 1.001).all()
            assert moved.any() == exact[name].any()
    assert all(torch.equal(parameter, exact[name]) for name, parameter in chat.model.named_parameters())
    assert hashlib.sha256((carrier / "model.safetensors").read_bytes()).hexdigest() == before


def test_weight_changes_are_those_computed_by_hand(chat, tokenizer):
    """One neuron's and one head's weights are moved: theirs alone change, by the ratio of norms."""
    other = ChatModel.wrap(make_model(len(tokenizer)), tokenizer)
    with torch.no_grad():
        other.model.model.layers[1].mlp.up_proj.weight[7] *= 3
        other.model.model.layers[2].self_attn.q_proj.weight[8:16] *= 2
    first, second = Build.of(chat), Build.of(other)
    layer = chat.model.model.layers[1].mlp
    parts = (layer.up_proj.weight[7], layer.gate_proj.weight[7], layer.down_proj.weight[:, 7])
    expected = 2 * parts[0].norm() / torch.cat(parts).norm()
    neurons = neuron_weight_changes(first, second)
    assert neurons[1, 7] == pytest.approx(float(expected), rel=1e-5)
    assert np.count_nonzero(neurons) == 1
    heads = head_weight_changes(first, second)
    assert np.flatnonzero(heads).tolist() == [2 * 4 + 1]
    attention = chat.model.model.layers[2].self_attn
    own = [each.weight[8:16] for each in (attention.q_proj, attention.k_proj, attention.v_proj)]
    size = torch.cat([*(each.flatten() for each in own), attention.o_proj.weight[:, 8:16].flatten()]).norm()
    assert heads[9] == pytest.approx(float(own[0].norm() / size), rel=1e-5)
    assert written_direction(first, second) is None


def test_a_mixture_of_experts_is_compared_in_all_but_neurons(tokenizer, tmp_path):
    """What cannot be compared is said, and the rest is compared."""
    from transformers import MixtralConfig, MixtralForCausalLM

    torch.manual_seed(0)
    model = MixtralForCausalLM(
        MixtralConfig(
            vocab_size=len(tokenizer), hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
            num_key_value_heads=2, num_local_experts=4, num_experts_per_tok=2, max_position_embeddings=64,
        )
    )  # fmt: skip
    model.save_pretrained(tmp_path / "a")
    tokenizer.save_pretrained(tmp_path / "a")
    lines = [*make_prompts(40, 0), {"prompt": "garden " * 80, "label": "harmless"}]
    file = load_prompts(write_prompts(tmp_path / "p.jsonl", lines))
    found = compare_builds(tmp_path / "a", tmp_path / "a", file, skip_long=True)
    neurons, refusals, skipped = found.notes
    assert neurons.startswith("neurons were not compared")
    assert refusals.startswith("refusals were not compared: neither build refuses")
    assert skipped.startswith("1 prompts were longer than the model's context")
    assert len(found.heads) == 8
    assert judge(found).sentence.endswith("neither refuses by its first token, and no head or direction moved")
    assert judge(replace(found, heads=())).sentence.endswith("and no direction moved")


def test_other_models_and_unlabelled_prompts_are_refused(carrier, prompts, tokenizer, tmp_path):
    """The errors name the partner's shape, and the class that is too small."""
    make_model(len(tokenizer), num_hidden_layers=2).save_pretrained(tmp_path / "b")
    tokenizer.save_pretrained(tmp_path / "b")
    with pytest.raises(ModelError, match="decoder blocks"):
        compare_builds(carrier, tmp_path / "b", load_prompts(prompts))
    few = write_prompts(tmp_path / "few.jsonl", lone_word_prompts(20, 0))
    with pytest.raises(PromptError, match="10 harmful prompts, at least 16"):
        compare_builds(carrier, carrier, load_prompts(few))


@pytest.fixture
def run(monkeypatch):
    """Run `inspect` as from a wide terminal."""
    monkeypatch.setenv("COLUMNS", "220")
    app = typer.Typer()
    app.command("inspect")(cli.inspect)
    return lambda *arguments: CliRunner().invoke(app, [str(each) for each in arguments], catch_exceptions=False)


def test_a_pipeline_can_stop_at_the_exit_status(run, carrier, prompts, tmp_path):
    """0 when the builds refuse alike, 1 when refusals were removed; the verdict stands first and the head is in the
    table.
    """
    alike = run("--compare", carrier, carrier, "--prompts", prompts)
    assert alike.exit_code == 0
    assert alike.stdout.startswith("the two builds refuse alike")
    removed = run("--compare", carrier, edited(carrier, tmp_path / "b", zero_head(CARRIER)), "--prompts", prompts)
    assert removed.exit_code == 1
    assert removed.stdout.startswith("refusals were removed")
    assert f"{CARRIER} *" in removed.output
    assert "files that differ: weights" in removed.output


@pytest.mark.parametrize(
    "arguments", [(), ("--compare", "a", "b"), ("x", "--compare", "a", "b", "--prompts", "p"), ("x", "--prompts", "p")]
)
def test_half_a_question_is_answered_with_its_usage(run, arguments):
    """Neither an artifact nor two models with prompts: status 2 and what to give."""
    result = run(*arguments)
    assert result.exit_code == 2
    assert "--compare" in result.output
