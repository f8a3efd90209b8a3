"""Methods and studies are found by their entry points: this project's own, and those of any installed package."""

import re
import sys
from pathlib import Path

import numpy as np
import pytest
import typer
from typer.testing import CliRunner

from calibration import cli, registry
from calibration.pipeline.calibrate import calibrate
from calibration.pipeline.settings import Settings
from calibration.prompts.splits import SPLITS, read_splits
from calibration.report.evidence import Evidence
from guard.binding import bind_to
from guard.policy_file import parse_policy
from guard.verdict import Action
from probes.artifact import BENIGN_SCORES, HARMFUL_SCORES, Artifact
from probes.errors import CalibrationError
from tests.own_package import write_package

CALIBRATION = Path(registry.__file__).parent


@pytest.fixture
def install(tmp_path, monkeypatch):
    """Install a package of one module, as CONTRIBUTING shows it or of another `text`; returns what does it."""

    def put(module="own_probe", text=None, package="own"):
        monkeypatch.syspath_prepend(write_package(tmp_path / package, module, text))
        sys.modules.pop(module, None)  # another test's
        forget()

    def forget():
        registry.methods.cache_clear()
        registry.studies.cache_clear()

    forget()
    yield put
    forget()


@pytest.mark.parametrize(("word", "kind"), [("METHOD", registry.methods), ("STUDY", registry.studies)])
def test_every_method_and_study_of_the_package_is_registered(word, kind):
    """One file and one line: a value that has no entry point would be dead code that looks alive."""
    named = {
        name
        for path in CALIBRATION.rglob("*.py")
        for name in re.findall(rf'^{word} = \w+\(\s*"(\w+)"', path.read_text(), re.MULTILINE)
    }
    assert named == set(kind())
    assert len({each.rank for each in kind().values()}) == len(kind())


def test_a_method_as_contributing_shows_it_is_fitted_certified_and_decides(install, planted, splits, tmp_path):
    """In a package of its own, without a line changed here: in the artifact, by a certified threshold, in a policy."""
    install()
    assert list(registry.methods())[-1] == "contrast"
    assert "contrast" in registry.plain()
    files = [splits[split] for split in SPLITS]
    calibrate(planted.folder, read_splits(*files), tmp_path / "artifact", Settings(only=("contrast",), forms=0))
    artifact = Artifact.load(tmp_path / "artifact")
    assert [probe.name for probe in artifact.manifest.probes] == ["contrast"]
    rule = "{name: loud, action: block, when: {contrast: {above: {target_fpr: 0.01}}}}"
    bound = bind_to(artifact, parse_policy(f"{{name: own, version: '1', rules: [{rule}]}}"))
    harmless, harmful = (artifact.tensors[name].numpy()[:, 0] for name in (BENIGN_SCORES, HARMFUL_SCORES))
    blocked = [[bound.judge([score]).action is Action.BLOCK for score in scores] for scores in (harmless, harmful)]
    assert np.mean(blocked[0]) <= 0.01
    assert np.mean(blocked[1]) > 0.5


def test_a_study_as_contributing_shows_it_is_in_the_report(install, planted, splits, tmp_path):
    """Beside a method of the project's, by its name."""
    install("own_study")
    files = [splits[split] for split in SPLITS]
    settings = Settings(only=("harmfulness_direction", "prompt_lengths"), forms=0)
    calibrate(planted.folder, read_splits(*files), tmp_path / "artifact", settings)
    found = {study.name: study.finding for study in Evidence.of(Artifact.load(tmp_path / "artifact")).studies}
    assert "tokens on average" in found["prompt_lengths"]


def test_the_list_names_it(install, monkeypatch):
    """`foreguard calibrate --list` shows every method and study."""
    install()
    monkeypatch.setenv("COLUMNS", "200")
    app = typer.Typer()
    app.command()(cli.calibrate)
    shown = CliRunner().invoke(app, ["--list"], catch_exceptions=False)
    assert shown.exit_code == 0
    assert "contrast" in shown.output
    assert all(name in shown.output for name in (*registry.methods(), *registry.studies()))


def test_an_entry_point_that_is_no_method_names_its_package(install):
    """Whoever installed it learns which package to mend."""
    install(text="METHOD = 3\n")
    with pytest.raises(CalibrationError, match="'contrast' of own is no Method"):
        registry.methods()


def test_two_packages_with_one_name_are_refused(install):
    """Which of the two were fitted would be up to chance."""
    install()
    install(package="other")
    with pytest.raises(CalibrationError, match="both have a method 'contrast'"):
        registry.methods()
