"""vLLM's own example of a KV connector, which stores prompts on disk: what it holds is no verdict, and nothing
steered.
"""

import json
import shutil

import pytest

from tests.serving.conformance.cast import Cast, near
from tests.serving.conformance.engine import engine
from tests.serving.conformance.modes import EAGER

pytestmark = [pytest.mark.engine, pytest.mark.long, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def cast(reference, artifact, artifact_folder, tmp_path_factory):
    return Cast.of(reference, artifact, artifact_folder, tmp_path_factory.mktemp("connectors"))


@pytest.fixture(scope="module")
def played(cast, tmp_path_factory):
    """Every prompt twice in a guarded engine, then in an unguarded one with its store, and without."""
    logs, store = tmp_path_factory.mktemp("engines"), tmp_path_factory.mktemp("store")
    extra = {"shared_storage_path": str(store)}
    transfer = {"kv_connector": "ExampleConnector", "kv_role": "kv_both", "kv_connector_extra_config": extra}
    # It stores what a prompt's first step computes: all of it.
    flags = [*EAGER, "--max-num-batched-tokens", "4096", "--kv-transfer-config", json.dumps(transfer)]
    requests = [{"id": name, "prompt": prompt, "step": 1} for name, prompt in cast.prompts.items()]
    emptied = {"reset": "idle", "step": 0}
    with engine(logs / "guarded", cast.guard, flags) as running:
        found = {"cold": running.play(requests), "stored": running.play([emptied, *requests])}
    with engine(logs / "unguarded", None, flags) as running:
        found["loaded"] = running.play(requests)
        shutil.rmtree(store)
        store.mkdir()
        found["computed"] = running.play([emptied, *requests])
    return found


def test_the_store_is_used_where_nothing_is_to_be_scored(played):
    """The unguarded engine loads what the guarded one stored, which itself loads nothing."""
    loaded = {name: events.get("loaded", 0) for name, (_, events) in played.items()}
    assert loaded["loaded"] > 0
    assert {loaded[name] for name in ("cold", "stored", "computed")} == {0}


@pytest.mark.parametrize("run", ["cold", "stored"])
def test_every_prompt_has_the_scores_of_a_pass_of_it_alone(played, cast, run):
    """Although the store has its keys and values."""
    for name, prompt in cast.prompts.items():
        verdict = played[run][0][name]["verdicts"][0]
        assert verdict["unscored"] is None
        assert verdict["scores"] == near(cast.expected(prompt)), name
        assert verdict["action"] == cast.action(prompt)


def test_nothing_steered_is_in_the_store(played, cast):
    """What is loaded from it answers as what is computed, the prompt that was steered among them."""
    for name in cast.prompts:
        loaded, computed = (played[run][0][name]["completions"]["0"]["tokens"] for run in ("loaded", "computed"))
        assert loaded == computed, name
    steered = played["cold"][0]["steered"]["completions"]["0"]["tokens"]
    assert steered != played["computed"][0]["steered"]["completions"]["0"]["tokens"]
