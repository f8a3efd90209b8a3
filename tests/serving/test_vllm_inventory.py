"""Somebody has decided about every route and every request field of vLLM: docs/inventory.md, against vLLM itself."""

import json
import subprocess
import sys

import pytest

from tests.serving.inventory import OPTIONAL, PAGE, ROOT, inventory, shown_on

DECIDED = inventory()


@pytest.fixture(scope="module")
def vllm():
    """What vLLM offers: `tests/serving/vllm_surface.py`."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.serving.vllm_surface"], cwd=ROOT, capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])


def test_the_page_is_about_the_installed_vllm(vllm):
    """Its lists are one version's; the tests that it names were run with that one."""
    assert f"vLLM {'.'.join(vllm['version'].split('.')[:2])}" in PAGE.read_text()


def test_every_route_is_decided_about(vllm):
    """A route that is not on the page fails, and one that is there no longer."""
    decided = {route for routes in DECIDED.routes.values() for route in routes}
    found = set(vllm["all"])
    assert (found - decided, decided - found) == (set(), set())


def test_what_is_there_by_default_is_not_called_optional(vllm):
    """Nobody has decided about a default route by taking it for one that a flag adds."""
    assert set(DECIDED.routes[OPTIONAL]) & set(vllm["default"]) == set()


def test_every_generating_route_names_what_its_body_is(vllm):
    """The class that vLLM reads the body as: its fields are those that are decided about."""
    unlike = {}
    for route, kinds in DECIDED.generating.items():
        read_as = set(vllm["bodies"].get(route, ())) or set(kinds)
        if set(kinds) != read_as:
            unlike[route] = (kinds, read_as)
    assert unlike == {}


def test_every_field_is_decided_about(vllm):
    """Of each class that a generating request is read as, or holds: none is missing on the page, and none is made
    up.
    """
    asked = {name for kinds in DECIDED.generating.values() for kind in kinds for name in vllm["inner"][kind]}
    undecided = {kind: sorted(set(vllm["fields"][kind]) - set(DECIDED.decided(kind))) for kind in asked}
    assert {kind: names for kind, names in undecided.items() if names} == {}
    on_page = {kind for kinds in DECIDED.fields.values() for kind in kinds}
    gone = {kind: sorted(set(DECIDED.decided(kind)) - set(vllm["fields"].get(kind, ()))) for kind in on_page}
    assert {kind: names for kind, names in gone.items() if names} == {}


@pytest.mark.parametrize(("what", "heading"), [("keys", "Keys"), ("headers", "Headers")])
def test_every_key_and_header_that_no_class_declares_is_decided_about(vllm, what, heading):
    """Read off vLLM's sources: the one that stands in for a chat's messages is declared nowhere."""
    found, decided = set(vllm[what]), DECIDED.read(heading)
    assert (found - decided, decided - found) == (set(), set())


def test_a_new_route_and_a_new_field_are_noticed(vllm):
    """The comparison itself: with one more of each, it fails."""
    assert "POST /v1/new" not in {route for routes in DECIDED.routes.values() for route in routes}
    with pytest.raises(AssertionError):
        test_every_route_is_decided_about(vllm | {"all": [*vllm["all"], "POST /v1/new"]})
    fields = vllm["fields"] | {"CompletionRequest": [*vllm["fields"]["CompletionRequest"], "tell_me_all"]}
    with pytest.raises(AssertionError):
        test_every_field_is_decided_about(vllm | {"fields": fields})


@pytest.mark.parametrize(("file", "test"), sorted(shown_on("inventory.md") | shown_on("security.md")))
def test_the_tests_that_the_pages_name_are_there(file, test):
    """Whoever reads that something is shown can go and look."""
    assert f"def {test}" in (ROOT / file).read_text()
