"""Errors say where, what and what to do, and keep saying it on the far side of a process boundary."""

import inspect
import pickle

import pytest

from probes import errors
from probes.errors import ForeguardError

KINDS = [kind for _, kind in inspect.getmembers(errors, inspect.isclass) if issubclass(kind, ForeguardError)]


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("protocol", [0, pickle.HIGHEST_PROTOCOL])
def test_errors_survive_pickling(kind, protocol):
    """Type, problem, field and remedy come back: vLLM sends a worker's error to its parent by pickle."""
    error = kind("it is\nbroken", field="a.b", remedy="mend it")
    back = pickle.loads(pickle.dumps(error, protocol))  # noqa: S301 (our own bytes)
    assert type(back) is kind
    assert (back.problem, back.field, back.remedy) == ("it is\nbroken", "a.b", "mend it")
    assert str(back) == str(error)


def test_message_names_field_problem_and_remedy():
    """What a person reads in a log has all three."""
    assert str(ForeguardError("is wrong", field="policy", remedy="mend it")) == "policy: is wrong\n  remedy: mend it"


def test_tree_is_the_documented_one():
    """Catching `ArtifactError` catches all three of its kinds, and `TooFewNegatives` is a calibration error."""
    assert {kind.__name__ for kind in errors.ArtifactError.__subclasses__()} == {
        "ArtifactCorrupt",
        "ArtifactMismatch",
        "SchemaTooNew",
    }
    assert issubclass(errors.TooFewNegatives, errors.CalibrationError)
    assert all(kind.__name__ in errors.__doc__ for kind in KINDS)
