"""The commands teach their use, do their work end to end, and say how to go on when stopped."""

import json
import subprocess
import sys

import pytest
import typer
from tiny import make_prompts, write_prompts
from typer.testing import CliRunner

from calibration import cli
from probes.errors import CalibrationError

POLICY = 'name: p\nversion: "1"\nrules:\n  - {name: r, action: flag, when: {stack: {above: {target_fpr: 0.01}}}}\n'


@pytest.fixture(scope="module")
def app():
    """The commands under one frame."""
    application = typer.Typer()
    for command in (cli.calibrate, cli.evaluate, cli.tune, cli.inspect, cli.report):
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
    result = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    assert "written to" in result.output
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


def test_tune_prints_thresholds_and_a_diff(run, artifact, planted, tmp_path):
    """Benign prompts alone suffice: recall then comes from the artifact's own harmful scores."""
    benign = write_prompts(tmp_path / "benign.jsonl", make_prompts(320, 11, harmful_share=0))
    policy = tmp_path / "policy.yaml"
    policy.write_text(POLICY)
    result = run("tune", "--model", planted.folder, "--artifact", artifact, "--policy", policy, "--prompts", benign)
    assert result.stdout.startswith("--- policy.yaml")
    assert "at most 0 of 320" in result.stderr
    assert policy.read_text() == POLICY


def test_ctrl_c_says_how_to_go_on(run, planted, splits, tmp_path, monkeypatch):
    """The exit status is that of an interrupt, and the message names the kept work."""
    from calibration.model import ChatModel

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
