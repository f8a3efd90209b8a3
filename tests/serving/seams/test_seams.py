"""vLLM's internals are where the guard expects them: in the installed version by reading and by importing it."""

import importlib
import inspect
import sysconfig
from pathlib import Path

import pytest

from tests.serving.seams.__main__ import seams, table
from tests.serving.seams.imported import imported
from tests.serving.seams.sources import Sources
from tests.serving.seams.table import SEAMS

INSTALLED = Sources(Path(sysconfig.get_path("purelib")))
ROOT = Path(__file__).parents[3]


@pytest.mark.parametrize("file", sorted({*SEAMS, *imported()}))
def test_every_seam_is_there(file):
    """Each name, attribute, parameter and call that one of our files rests on is in the installed vLLM's sources."""
    asked = [seam for needing, seam in seams() if needing == file]
    assert asked
    assert (ROOT / file).is_file()
    assert [miss for seam in asked if (miss := INSTALLED.misses(seam))] == []


def test_what_is_read_is_what_runs():
    """The reading finds what Python finds: every name, and every parameter, in the modules as imported."""
    compared = 0
    for words in dict.fromkeys(words for _, seam in seams() for words in seam.split(" or ")):
        if INSTALLED.misses(words):
            continue
        module, _, rest = words.partition(" ")
        name, _, parameters = rest.partition(" ->")[0].partition("(")
        place = importlib.import_module(module)
        owner, *attribute = name.split(".")
        found = getattr(place, owner, None) or importlib.import_module(f"{module}.{owner}")
        if attribute and not hasattr(found, attribute[0]):
            continue  # an attribute that its class sets in a method
        found = getattr(found, attribute[0]) if attribute else found
        if parameters:
            taken = inspect.signature(found).parameters
            assert {each.strip() for each in parameters.rstrip(")").split(",")} <= taken.keys(), words
        compared += 1
    assert compared > 100


@pytest.mark.parametrize(
    ("seam", "missing"),
    [
        ("vllm.there Base.inherited", None),
        ("vllm.there Child.inherited", None),
        ("vllm.there Child.field", None),
        ("vllm.there Child.given", None),
        ("vllm.there Child.run(a, c)", None),
        ("vllm.there Child.run -> called", None),
        ("vllm.through Child.inherited", None),
        ("vllm.through starred", None),
        ("vllm.there either", None),
        ("vllm.nowhere Name or vllm.there Base", None),
        ("vllm.nowhere Name", "vllm.nowhere has no Name"),
        ("vllm.there Nobody", "vllm.there has no Nobody"),
        ("vllm.there Child.missing", "Child has no missing"),
        ("vllm.there Child.run(c, a)", "Child.run takes self, a, b, c, not c, a"),
        ("vllm.there Child.run(d)", "Child.run takes self, a, b, c, not d"),
        ("vllm.there Child.run -> uncalled", "Child.run does not call uncalled"),
        ("vllm.nowhere One or vllm.nowhere Other", "vllm.nowhere has no One"),
    ],
)
def test_what_is_missing_is_named(tmp_path, seam, missing):
    """A module, a name, an attribute, a parameter or its place, a call: each can be missing, and inherited, and
    imported.
    """
    sources = Sources(_made(tmp_path))
    assert sources.misses(seam) == missing


def test_versions_in_a_table(tmp_path):
    """Each version has a line: how many seams it has, and the others by name."""
    lines = table([INSTALLED, Sources(_made(tmp_path))]).splitlines()
    assert lines[2].startswith("| 0.1.0 | ")
    assert "serving/core/gate.py: vllm.v1.core.sched.scheduler has no Scheduler" in lines[2]
    assert lines[3].startswith(f"| {INSTALLED.version()} | {len(seams())} of {len(seams())} | ")
    assert lines[3].endswith("| none |")


def _made(folder):
    package = folder / "vllm"
    package.mkdir()
    (folder / "vllm-0.1.0.dist-info").mkdir()
    (folder / "vllm-0.1.0.dist-info" / "METADATA").write_text("Name: vllm\nVersion: 0.1.0\n")
    (package / "__init__.py").touch()
    (package / "base.py").write_text("class Base:\n    def inherited(self): ...\n\ndef starred(): ...\n")
    (package / "through.py").write_text("from .there import Child\nfrom vllm.base import *\n")
    (package / "there.py").write_text(
        "from .base import Base as Own\n\n"
        "class Base(Own): ...\n\n"
        "class Child(Base):\n    field: int = 0\n\n    def __init__(self, given): self.given, self.other = given, 0\n\n"
        "    def run(self, a, b, *, c=0): self.called()\n\n"
        "try:\n    from fast import either\nexcept ImportError:\n    either = None\n"
    )
    return folder
