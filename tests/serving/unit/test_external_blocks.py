"""What a KV connector holds never stands in for a score, on vLLM's real scheduler: the worker's side alone is
played.
"""

import pytest
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.outputs import KVConnectorOutput

from probes.artifact import Artifact
from probes.errors import ServingError
from probes.readout import Readout
from tests.serving.conformance.block_store import BlockStore
from tests.serving.stepped import BLOCK, Stepped

PROMPT = list(range(5, 5 + 3 * BLOCK + 3))
WHOLE, LAST, BEFORE_LAST = Readout(kind="mean"), Readout(kind="last"), Readout(kind="last", offset=5)


class Run(Stepped):
    """With a connector, whose worker's side keeps nothing but names."""

    def __init__(self, guard, **settings):
        connector = {
            "kv_connector": "BlockStore",
            "kv_connector_module_path": "tests.serving.conformance.block_store",
            "kv_role": "kv_both",
            "kv_connector_extra_config": settings,
        }
        super().__init__(guard, kv_transfer_config=connector)

    def add(self, name, prompt=PROMPT, max_tokens=8):
        super().add(name, prompt, max_tokens)

    def step(self):
        """Return how many tokens of each request it computed, and its orders."""
        step, orders = super().step()
        for key, _ in step.kv_connector_metadata.saves:
            BlockStore.kept[key] = {}
        return step.num_scheduled_tokens, orders

    def _output(self, step, orders):
        output = super()._output(step, orders)
        output.kv_connector_output = KVConnectorOutput(finished_recving=step.kv_connector_metadata.awaited)
        return output


@pytest.fixture
def run(config, artifact, monkeypatch):
    """A maker of runs for a probe of a readout, with what an earlier request left in the store."""
    monkeypatch.setattr(BlockStore, "kept", {})

    def make(readout, **settings):
        made = Artifact.load(artifact)
        [probe] = made.manifest.probes
        probes = (probe.model_copy(update={"readout": readout}),)
        Artifact(made.manifest.model_copy(update={"probes": probes}), made.tensors).save(artifact)
        run = Run(config(), **settings)
        run.add("earlier", max_tokens=1)
        run.step()
        assert run.scheduler.reset_prefix_cache()
        return run

    return make


@pytest.mark.parametrize("own_time", [False, True])
def test_a_prompt_to_be_scored_is_computed_and_not_loaded(run, own_time):
    """The store has all but its last tokens; a mean over the prompt needs every one of them."""
    run = run(WHOLE, own_time=own_time)
    run.add("open")
    computed, orders = run.step()
    assert computed == {"open": len(PROMPT)}
    assert set(orders.due) == {"open"}
    assert orders.unknown == []


@pytest.mark.parametrize(("readout", "loads"), [(LAST, True), (BEFORE_LAST, False)])
def test_a_prompt_read_at_its_last_token_is_loaded_up_to_there(run, readout, loads):
    """That one is computed in any case; a few places before it begins what is in the store."""
    run = run(readout)
    run.add("open")
    computed, orders = run.step()
    assert computed == {"open": 3 if loads else len(PROMPT)}
    assert orders.unknown == (run.blocks("open")[:3] if loads else [])
    assert set(orders.due) == {"open"}


@pytest.mark.parametrize("own_time", [False, True])
def test_what_is_decided_loads_when_it_resumes(run, own_time):
    """Its score is known, and its blocks' scores are then not: from the step on that gives them to the load."""
    run = run(WHOLE, own_time=own_time)
    run.add("decided")
    run.step()
    run.scheduler.reset_prefix_cache(reset_running_requests=True)
    computed, orders = run.step()
    assert orders.unknown == run.blocks("decided")[:3]
    if own_time:
        assert not computed
        computed, orders = run.step()
        assert not orders
    assert computed == {"decided": 4}
    assert not orders.due


@pytest.mark.parametrize(("readout", "computes"), [(WHOLE, len(PROMPT)), (LAST, 3)])
def test_loaded_blocks_in_the_prefix_cache_are_no_ones_scores(run, readout, computes):
    """A prompt that needs them computes them anew, while the one that loaded them runs on; later ones find the new
    ones.
    """
    run = run(readout)
    run.add("decided")
    run.step()
    run.scheduler.reset_prefix_cache(reset_running_requests=True)
    run.step()
    loaded = run.blocks("decided")[:3]
    run.add("open")
    computed, _ = run.step()
    assert computed == {"decided": 1, "open": computes}
    assert run.blocks("decided")[:3] == loaded
    run.add("later")
    computed, orders = run.step()
    assert computed == {"decided": 1, "open": 1, "later": 3}
    assert run.blocks("later")[:3] == run.blocks("open")[:3]
    assert set(orders.due) == {"later"}


def test_a_block_that_is_computed_after_all_is_known(run):
    """Blocks that held what was loaded are used again for what is computed, and count as that."""
    run = run(WHOLE)
    run.add("decided", max_tokens=3)
    run.step()
    run.scheduler.reset_prefix_cache(reset_running_requests=True)
    while run.scheduler.has_unfinished_requests():
        run.step()
    assert run.scheduler.reset_prefix_cache()
    others = [range(at, at + blocks * BLOCK) for at, blocks in ((7, 15), (307, 15), (607, 15), (907, 15), (1207, 3))]
    assert sum(len(prompt) for prompt in others) == 63 * BLOCK, "all blocks are used again"
    for again in (False, True):
        for number, prompt in enumerate(others):
            run.add(f"other{number}-{again}", prompt, max_tokens=1)
        computed, _ = run.step()
    assert computed == {f"other{number}-True": BLOCK for number in range(len(others))}


def test_a_scheduler_that_does_not_ask_has_no_connector(run, monkeypatch):
    """VLLM before 0.28 looks into its prefix cache by itself: what a connector loaded there would pass for scored."""
    monkeypatch.delattr(Scheduler, "_get_local_prefix_cache_hit")
    with pytest.raises(ServingError, match="without asking the guard") as caught:
        run(WHOLE)
    assert caught.value.field == "--kv-transfer-config"
