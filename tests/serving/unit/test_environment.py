"""Variables of the environment that lead around the guard stop the start, and every variable of vLLM's was looked
at.
"""

import os

import pytest
import vllm.envs

from probes.errors import ServingError
from serving.launch.environment import NEEDED, REFUSED, prepare_environment
from tests.serving.unit.variables import LEFT_ALONE


@pytest.fixture(autouse=True)
def bare(monkeypatch):
    """An environment without any of these, which the test leaves as it was."""
    for name in (*REFUSED, *NEEDED, "VLLM_NO_USAGE_STATS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("VLLM_NO_USAGE_STATS", "0")


@pytest.mark.parametrize("name", REFUSED)
def test_what_leads_around_the_guard_is_refused(monkeypatch, name):
    """Off, or empty, it is as if unset; set to anything else it is named with the reason and the remedy."""
    for harmless in ("", "0", "false", "False"):
        monkeypatch.setenv(name, harmless)
        prepare_environment()
    monkeypatch.setenv(name, "1")
    with pytest.raises(ServingError, match=REFUSED[name]) as caught:
        prepare_environment()
    assert caught.value.field == name
    assert name in caught.value.remedy


@pytest.mark.parametrize("name", NEEDED)
def test_what_the_guard_needs_is_not_switched_off(monkeypatch, name):
    """The same for what is on by default and must stay so."""
    for harmless in ("", "1", "true"):
        monkeypatch.setenv(name, harmless)
        prepare_environment()
    monkeypatch.setenv(name, "0")
    with pytest.raises(ServingError) as caught:
        prepare_environment()
    assert caught.value.field == name


def test_no_usage_statistics_are_sent():
    """Whatever was said before."""
    prepare_environment()
    assert os.environ["VLLM_NO_USAGE_STATS"] == "1"


def test_a_script_for_sagemaker_is_refused(monkeypatch, tmp_path):
    """VLLM's server loads a file of that name, which may put itself in front of the guard's routes."""
    monkeypatch.setenv("SAGEMAKER_MODEL_PATH", str(tmp_path))
    prepare_environment()
    (tmp_path / "handlers.py").touch()
    prepare_environment()
    monkeypatch.setenv("CUSTOM_SCRIPT_FILENAME", "handlers.py")
    with pytest.raises(ServingError) as caught:
        prepare_environment()
    assert caught.value.field == str(tmp_path / "handlers.py")


def test_every_variable_of_the_installed_vllm_has_been_looked_at():
    """A new one fails here until someone has said what it does to the guard."""
    left_alone = {name for names in LEFT_ALONE.values() for name in names.split()}
    assert set(vllm.envs.environment_variables) - left_alone - REFUSED.keys() - NEEDED.keys() == set()
    assert left_alone & (REFUSED.keys() | NEEDED.keys()) == set()
