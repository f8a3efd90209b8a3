"""Methods and studies are found by their entry points: this project's own, and those of any installed package."""

import re
import sys
from pathlib import Path

import numpy as np
import pytest
import typer
from typer.testing import CliRunner

from calibration import cli, registry
from calibration.pipeline import SPLITS, Settings, calibrate
from guard.binding import bind_to
from guard.policy_file import parse_policy
from guard.verdict import Action
from probes.artifact import BENIGN_SCORES, HARMFUL_SCORES, Artifact
from probes.errors import CalibrationError

CALIBRATION = Path(registry.__file__).parent

OWN = '''"""Probe `contrast`: a method of somebody else's package."""

import torch

from calibration.fitting.contract import Method
from calibration.fitting.fitted import Fitted, FittedProbe
from probes.manifest import Probe
from probes.readout import Readout


def fit(training):
    layer = training.chat.num_layers - 1
    features, labels = training.features(layer, 0, training.fit), training.harmful[training.fit]
    weight = torch.as_tensor(features[labels].mean(0) - features[~labels].mean(0))
    spec = Probe(name="contrast", method="difference in means", layers=(layer,), readout=Readout(kind="last"))
    return Fitted(probes=(FittedProbe(spec, weight[None, None].float()),))


METHOD = Method("contrast", fit, plain=True, refits=True)
'''


@pytest.fixture
def install(tmp_path, monkeypatch):
    """Install a package whose `contrast` is an entry point of the methods; returns the function that does it."""

    def put(text=OWN, package="own"):
        info = tmp_path / package / f"{package}-1.0.dist-info"
        info.mkdir(parents=True)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text(f"[{registry.METHODS}]\ncontrast = {package}_probe:METHOD\n")
        (info.parent / f"{package}_probe.py").write_text(text)
        monkeypatch.syspath_prepend(info.parent)
        sys.modules.pop(f"{package}_probe", None)  # another test's
        registry.methods.cache_clear()

    registry.methods.cache_clear()
    yield put
    registry.methods.cache_clear()


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


def test_a_package_s_own_method_is_fitted_certified_and_decides(install, planted, splits, tmp_path):
    """Beside the project's, without a line changed here: in the artifact, by a certified threshold, in a policy."""
    install()
    assert list(registry.methods())[-1] == "contrast"
    assert "contrast" in registry.plain()
    done = calibrate(
        planted.folder,
        *(splits[split] for split in SPLITS),
        tmp_path / "artifact",
        Settings(only=("contrast",), forms=0),
    )
    assert [probe.name for probe in done.manifest.probes] == ["contrast"]
    artifact = Artifact.load(tmp_path / "artifact")
    rule = "{name: loud, action: block, when: {contrast: {above: {target_fpr: 0.01}}}}"
    bound = bind_to(artifact, parse_policy(f"{{name: own, version: '1', rules: [{rule}]}}"))
    harmless, harmful = (artifact.tensors[name].numpy()[:, 0] for name in (BENIGN_SCORES, HARMFUL_SCORES))
    blocked = [[bound.judge([score]).action is Action.BLOCK for score in scores] for scores in (harmless, harmful)]
    assert np.mean(blocked[0]) <= 0.01
    assert np.mean(blocked[1]) > 0.5


def test_the_list_names_it(install, monkeypatch):
    """`foreguard calibrate --list` shows each method with the first line of its file."""
    install()
    monkeypatch.setenv("COLUMNS", "200")
    app = typer.Typer()
    app.command()(cli.calibrate)
    shown = CliRunner().invoke(app, ["--list"], catch_exceptions=False)
    assert shown.exit_code == 0
    assert "a method of somebody else's package" in " ".join(shown.output.split())
    assert all(name in shown.output for name in (*registry.methods(), *registry.studies()))


def test_an_entry_point_that_is_no_method_names_its_package(install):
    """Whoever installed it learns which package to mend."""
    install("METHOD = 3\n")
    with pytest.raises(CalibrationError, match="'contrast' of own is no Method"):
        registry.methods()


def test_two_packages_with_one_name_are_refused(install):
    """Which of the two were fitted would be up to chance."""
    install()
    install(package="other")
    with pytest.raises(CalibrationError, match="both have a method 'contrast'"):
        registry.methods()
