"""The commands teach their use, do their work end to end, and say how to go on when stopped."""

import json
import subprocess
import sys

import pytest
import torch
import typer
from tiny import make_prompts, write_prompts
from typer.testing import CliRunner

from calibration import cli
from probes.artifact import Artifact
from probes.errors import CalibrationError, ForeguardError

POLICY = 'name: p\nversion: "1"\nrules:\n  - {name: r, action: flag, when: {stack: {above: {target_fpr: 0.01}}}}\n'


@pytest.fixture(scope="module")
def app():
    """The commands under one frame."""
    application = typer.Typer()
    for command in (cli.calibrate, cli.compare, cli.evaluate, cli.tune, cli.inspect, cli.report):
        application.command(command.__name__)(command)
    return application


@pytest.fixture
def run(app, monkeypatch):
    """Run a command as from a wide terminal."""
    monkeypatch.setenv("COLUMNS", "200")
    return lambda *arguments: CliRunner().invoke(app, [str(argument) for argument in arguments], catch_exceptions=False)


@pytest.fixture(scope="module")
def artifact(app, planted, splits, tmp_path_factory):
    """An artifact made by the command."""
    folder = tmp_path_factory.mktemp("cli")
    files = [part for split, path in splits.items() for part in (f"--{split}", str(path))]
    arguments = ["calibrate", str(planted.folder), *files, "--out", str(folder / "a"), "--json", str(folder / "r.json")]
    also = [part for name in ("alignment_tax", "novelty_scores") for part in ("--also", name)]
    result = CliRunner().invoke(app, [*arguments, *also], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    assert "written to" in result.output
    assert "not asked" in result.output
    assert "alignment_tax" in result.output
    assert "--partner" in result.output
    assert json.loads((folder / "r.json").read_text())["split"] == "test"
    return folder / "a"


def test_inspect_shows_model_probes_vectors_and_data(run, artifact):
    """A person reads off what the artifact is for and what it is worth."""
    shown = run("inspect", artifact).output
    for word in ("LlamaForCausalLM", "harmfulness", "mean over tokens", "induce", "train.jsonl", "336"):
        assert word in shown


def test_report_writes_the_page_and_says_where(run, artifact, tmp_path):
    """The figures lie beside it."""
    result = run("report", artifact, "--out", tmp_path / "report")
    assert "report.html" in result.output.replace("\n", "")
    assert (tmp_path / "report" / "report.html").exists()
    assert (tmp_path / "report" / "roc.png").exists()


def test_a_report_that_would_stand_where_a_file_stands_is_refused(run, artifact, tmp_path):
    """The file is left alone, and the error names the option; as is a folder within a file."""
    (tmp_path / "taken").write_text("mine")
    for out in (tmp_path / "taken", tmp_path / "taken" / "report"):
        with pytest.raises(CalibrationError, match="cannot be made a folder") as caught:
            run("report", artifact, "--out", out)
        assert caught.value.field == "--out"
    assert (tmp_path / "taken").read_text() == "mine"


def test_evaluate_writes_the_report(run, artifact, planted, splits, tmp_path):
    """The table is shown and the whole report written."""
    result = run(
        "evaluate",
        "--model",
        planted.folder,
        "--artifact",
        artifact,
        "--prompts",
        splits["test"],
        "--json",
        tmp_path / "e.json",
    )
    assert "TPR at 1 % FPR" in result.output
    report = json.loads((tmp_path / "e.json").read_text())
    assert report["probes"]["stack"]["evaluation"]["num_harmless"] == 320
    assert "tfidf" not in report["controls"]


@pytest.fixture
def compare(run, artifact, planted, splits, tmp_path):
    """Compare the artifact with another one, under policies that block above some score."""

    def compare(new, *arguments, above=0.0, new_above=None):
        policies = {"policy": above, "new-policy": above if new_above is None else new_above}
        for name, limit in policies.items():
            text = POLICY.replace("{target_fpr: 0.01}", str(limit)).replace("action: flag", "action: block")
            (tmp_path / f"{name}.yaml").write_text(text)
        files = [part for name in policies for part in (f"--{name}", tmp_path / f"{name}.yaml")]
        sides = ("--old", planted.folder, artifact, "--new", planted.folder, new)
        return run("compare", *sides, *files, "--prompts", splits["test"], *arguments)

    return compare


def test_compare_passes_what_is_the_same(compare, artifact):
    """No flip, and status 0."""
    result = compare(artifact)
    assert result.exit_code == 0
    assert "no more than chance" in result.output
    assert "flips for the worse" in result.output


def test_compare_stops_what_is_worse(compare, artifact, tmp_path):
    """An artifact whose probe lost its weights finds nothing: each harmful request that passes now is listed."""
    loaded = Artifact.load(artifact)
    name = next(probe.name for probe in loaded.manifest.probes if probe.name == "stack")
    blind = {f"probe.{name}.weight": torch.zeros_like(loaded.tensors[f"probe.{name}.weight"])}
    Artifact(loaded.manifest, loaded.tensors | blind).save(tmp_path / "blind")
    result = compare(tmp_path / "blind", "--json", tmp_path / "flips.json")
    assert result.exit_code == 1
    assert "than chance explains" in result.output
    told = json.loads((tmp_path / "flips.json").read_text())
    assert told["harmful"]["num_stopped_after"] == 0
    assert told["harmful"]["num_negative"] == told["harmful"]["num_stopped_before"] > 50
    assert told["flips"][0]["for_the_worse"]


def test_compare_stops_at_so_many_lost(compare, artifact):
    """A policy with a higher threshold loses some; how many may be is the pipeline's to say."""
    worse = compare(artifact, "--alpha", 0.0001, "--most-lost", 0, new_above=1e9)
    assert worse.exit_code == 1
    assert compare(artifact, "--most-lost", 0, new_above=0.0).exit_code == 0


def test_tune_prints_thresholds_and_a_diff(run, artifact, planted, tmp_path):
    """Benign prompts alone suffice: recall then comes from the artifact's own harmful scores."""
    benign = write_prompts(tmp_path / "benign.jsonl", make_prompts(320, 11, harmful_share=0))
    policy = tmp_path / "policy.yaml"
    policy.write_text(POLICY)
    result = run("tune", "--model", planted.folder, "--artifact", artifact, "--policy", policy, "--prompts", benign)
    assert result.stdout.startswith("--- policy.yaml")
    assert "at most 0 of 320" in result.stderr
    assert policy.read_text() == POLICY


BAND = (
    'name: p\nversion: "1"\nrules:\n'
    "  - {name: sure, action: block, when: {stack: {above: 0}}}\n"
    "  - {name: doubtful, action: flag, when: {stack: {above: 0}}}\n"
)


@pytest.fixture
def tune(run, artifact, planted, tmp_path):
    """Run `tune` on prompts and a policy of one's own."""

    def tune(lines, *arguments, policy=BAND):
        (tmp_path / "policy.yaml").write_text(policy)
        prompts = write_prompts(tmp_path / "prompts.jsonl", lines)
        common = ("--model", planted.folder, "--artifact", artifact, "--policy", tmp_path / "policy.yaml")
        return run("tune", *common, "--prompts", prompts, *arguments)

    return tune


def test_tune_certifies_a_band_and_says_what_it_does(tune):
    """Both cuts, the shares of every action before and after, over-refusal, and what a threshold means at a
    prevalence.
    """
    lines = make_prompts(500, 12, harmful_share=0.1)
    hard = next(line["category"] for line in lines if line["label"] == "harmless")
    options = ("--block-fpr", 0.02, "--flag-fpr", 0.1, "--hard-benign", hard, "--prevalence", 0.001)
    result = tune(lines, *options)
    assert result.stdout.startswith("--- policy.yaml")
    assert result.stdout.count("+  # tuned: ") == 4
    assert "of hard benign" in result.stdout
    for words in (
        "block: at most 2.00%",
        "flag: at most 10.00%",
        "hard benign",
        "tuned",
        "at 0.001",
        "where 0.001 of traffic",
    ):
        assert words in result.stderr


def test_tune_keeps_joint_limits(tune):
    """By Learn then Test; the table gives every limit with what was measured and its p-value."""
    result = tune(make_prompts(900, 13, harmful_share=0.3), "--at-most", "block=0.03", "--at-most", "miss=0.3")
    assert "all at once: block at most 3 %, miss at most 30 %" in result.stdout
    for words in ("limits kept together", "p-value", "harmful requests allowed"):
        assert words in result.stderr


@pytest.mark.parametrize(
    ("harmful_share", "options", "words"),
    [
        (1, (), "holds no harmless prompts"),
        (0.5, (), "cannot certify a rate of 0.01"),
        (0, ("--target-fpr", 0), "not between 0 and 1"),
        (0, ("--confidence", 1), "not between 0 and 1"),
        (0, ("--block-fpr", 0.01), "a band has two ends"),
        (0, ("--block-fpr", 0.1, "--flag-fpr", 0.05), "is not less than"),
        (0, ("--block-fpr", 0.1, "--flag-fpr", 0.2, "--at-most", "flag=0.1"), "both say where"),
        (0, ("--at-most", "miss=0.2"), "needs harmful prompts"),
        (0, ("--at-most", "all=0.2"), "is not a limit"),
        (0, ("--at-most", "hard=0.2"), "no prompts to measure"),
        (0, ("--hard-benign", "nowhere"), "is named 'nowhere'"),
        (0, ("--prevalence", 2), "not between 0 and 1"),
        (0, ("--engine", "tensorrt"), "'tensorrt' is no engine"),
        (0, ("--engine-args", "--enforce-eager"), "no engine was named"),
    ],
)
def test_tune_refuses_what_makes_no_sense(tune, harmful_share, options, words):
    """A class that is missing, too few prompts, rates that are none, options that contradict each other."""
    with pytest.raises(ForeguardError, match=words) as caught:
        tune(make_prompts(320, 14, harmful_share=harmful_share), *options)
    assert caught.value.remedy


def test_tune_does_not_certify_on_prompts_that_shaped_the_probes(run, artifact, planted, splits, tmp_path):
    """Training prompts never; those of the validation split not for joint limits, whose settings they lay out."""
    (tmp_path / "policy.yaml").write_text(BAND)
    common = ("--model", planted.folder, "--artifact", artifact, "--policy", tmp_path / "policy.yaml")
    for split, options in (("train", ()), ("validation", ("--at-most", "block=0.05"))):
        with pytest.raises(ForeguardError, match=f"{split} prompts cannot certify"):
            run("tune", *common, "--prompts", splits[split], *options)
    benign = write_prompts(tmp_path / "benign.jsonl", make_prompts(320, 15, harmful_share=0))
    with pytest.raises(ForeguardError, match="holds no harmful prompts"):
        run("tune", *common, "--prompts", benign, "--harmful", benign)


def test_tune_tells_of_copies_and_of_rules_that_never_decide(tune):
    """Copies are no draws of their own; a flag that fires only where a block does is a slip."""
    lines = make_prompts(320, 16, harmful_share=0)
    rule, promise = "doubtful, action: flag, when: {stack: {above: 0}", "{target_fpr: 0.01}"
    idle = BAND.replace(rule, f"idle, action: flag, when: {{stack: {{above: {promise}}}")
    result = tune([*lines, *lines[:40]], policy=idle)
    assert "40 of 360 benign prompts are exact copies" in result.stderr.replace("\n", " ")
    assert "note: rule idle never decides: sure fires" in result.stderr


def test_tune_refuses_a_request_that_is_benign_in_one_file_and_harmful_in_another(tune, tmp_path):
    """It would certify the threshold and be missed by it: both lines are named, before a model is loaded."""
    benign = make_prompts(320, 17, harmful_share=0)
    harmful = [*make_prompts(20, 18, harmful_share=1), benign[7] | {"label": "harmful"}]
    attacks = write_prompts(tmp_path / "attacks.jsonl", harmful)
    with pytest.raises(ForeguardError, match=r"harmful here and harmless in prompts\.jsonl:8") as caught:
        tune(benign, "--harmful", attacks)
    assert caught.value.field == "attacks.jsonl:21"
    hard = write_prompts(tmp_path / "hard.jsonl", [harmful[3] | {"label": "harmless"}])
    with pytest.raises(ForeguardError, match=r"harmless here and harmful in prompts\.jsonl:321"):
        tune([*benign, harmful[3]], "--hard-benign", hard)


def test_tune_names_prompts_that_have_no_part(tune, tmp_path):
    """Harmful ones beside --harmful, and those of the other label in a file that was asked for one."""
    attacks = write_prompts(tmp_path / "attacks.jsonl", make_prompts(40, 19, harmful_share=0.5))
    lines = [*make_prompts(320, 20, harmful_share=0), *make_prompts(6, 21, harmful_share=1)]
    said = " ".join(tune(lines, "--harmful", attacks).stderr.split())
    assert "6 harmful prompts of prompts.jsonl are not used: recall is measured on those of --harmful" in said
    assert "20 harmless prompts of attacks.jsonl are not used: only its harmful ones were asked for" in said


def test_inspect_says_what_a_threshold_means_at_a_prevalence(run, artifact):
    """At one harmful request in a thousand, a score at the threshold is seldom harm."""
    assert "where 0.001 is harmful" in run("inspect", artifact, "--prevalence", 0.001).output
    assert "is harmful" not in run("inspect", artifact).output


def test_ctrl_c_says_how_to_go_on(run, planted, splits, tmp_path, monkeypatch):
    """The exit status is that of an interrupt, and the message names the kept work."""
    from calibration.model.chat_model import ChatModel

    def interrupt(_self, _batch):
        raise KeyboardInterrupt

    monkeypatch.setattr(ChatModel, "last_logits", interrupt)
    files = [part for split, path in splits.items() for part in (f"--{split}", path)]
    result = run("calibrate", planted.folder, *files, "--out", tmp_path / "a")
    assert result.exit_code == 130
    assert "same command again" in result.output


def test_the_commands_load_nothing_heavy():
    """`foreguard --help` imports this module: it must not wait for torch, transformers or scikit-learn."""
    heavy = ("torch", "transformers", "sklearn", "numpy")
    code = f"import sys, calibration.cli; print([name for name in {heavy} if name in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
