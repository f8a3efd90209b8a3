"""A server with a LoRA adapter that has an artifact of its own: probes, pin, self-test and metrics."""

from dataclasses import replace

import pytest

from probes.artifact import Artifact
from serving.offline.process import free_port, guarded_command
from tests.serving.adapter import AdaptedReference, make_adapter
from tests.serving.lab import MODEL
from tests.serving.planted import naive_scores, planted_artifact
from tests.serving.server import FLAGS, SERVED_NAME, served
from tests.serving.world import BENIGN, OBSERVER_KEY, policy_text, scores_of

pytestmark = [pytest.mark.engine, pytest.mark.long, pytest.mark.timeout(300)]

# Merged into the weights, as the reference has it, an adapter is rounded once more than beside them.
TOLERANCE = 0.3
EXTRA_PROBE = "own_harm"


def with_one_more_probe(artifact: Artifact) -> Artifact:
    """Return the artifact with a probe that the model's lacks: its first one once more, by another name."""
    manifest, tensors = artifact.manifest, dict(artifact.tensors)
    first = manifest.probes[0]
    tensors[f"probe.{EXTRA_PROBE}.weight"] = tensors[f"probe.{first.name}.weight"]
    for kind in ("scores.harmless", "scores.harmful"):
        tensors[kind] = tensors[kind][:, [*range(len(manifest.probes)), 0]]
    more = {
        "probes": (*manifest.probes, first.model_copy(update={"name": EXTRA_PROBE})),
        "canary": manifest.canary | {EXTRA_PROBE: manifest.canary[first.name]},
    }
    return replace(artifact, manifest=manifest.model_copy(update=more), tensors=tensors)


@pytest.fixture(scope="module")
def adapted(reference, tmp_path_factory):
    """The adapter's folder, what a plain pass of the adapted model reads, its artifact and that one's folder."""
    folder = tmp_path_factory.mktemp("adapter")
    own = AdaptedReference(make_adapter(reference, folder / "lora", seed=1))
    planted = planted_artifact(own, folder / "planted", adapter=folder / "lora")
    with_one_more_probe(planted).save(folder / "artifact")
    return folder / "lora", own, Artifact.load(folder / "artifact"), folder / "artifact"


@pytest.fixture(scope="module")
def server(reference, artifact, artifact_folder, adapted, cache_root, tmp_path_factory):
    """A server whose policy pins both artifacts."""
    lora, _, own, folder = adapted
    port, work = free_port(), tmp_path_factory.mktemp("adapters")
    pins = f"\nartifact: '{artifact.manifest.digest}'\nadapters: {{polite: '{own.manifest.digest}'}}\n"
    (work / "policy.yaml").write_text(policy_text(reference, artifact) + pins)
    flags = [*FLAGS, "--enforce-eager", "--enable-lora", "--max-lora-rank", "8", "--lora-modules", f"polite={lora}"]
    command = guarded_command(MODEL, artifact_folder, work / "policy.yaml", port, flags)
    command[command.index("--") : command.index("--")] = ["--adapter", f"polite={folder}"]
    with served(command, port, work / "log", {"VLLM_CACHE_ROOT": str(cache_root)}) as running:
        yield running


def observed(server, model, messages):
    """Return the served scores of a prompt to the model or its adapter."""
    reply = server.client(OBSERVER_KEY).chat.completions.create(
        model=model,
        messages=messages,
        max_tokens=1,
        temperature=0,
        extra_body={"moderation": {"model": "guard", "mode": "score"}},
    )
    return scores_of(reply)


def test_the_self_test_compared_both(server):
    """Each with its own artifact's scores of the canary: nothing is said of one that keeps none."""
    assert "guard ready" in server.log.read_text()
    assert "keeps no scores" not in server.log.read_text()


def test_each_is_scored_by_its_own_probes_and_counted_for_itself(server, reference, artifact, adapted):
    """The adapter's artifact has a probe more than the model's: it is scored, shown and counted for itself."""
    _, own, own_artifact, _ = adapted
    for messages in BENIGN[:3]:
        base, polite = observed(server, SERVED_NAME, messages), observed(server, "polite", messages)
        assert base == pytest.approx(naive_scores(artifact, reference.read(reference.token_ids(messages))), abs=0.15)
        expected = naive_scores(own_artifact, own.read(own.token_ids(messages)))
        assert EXTRA_PROBE in polite
        assert polite == pytest.approx(expected, abs=TOLERANCE)
        assert polite != pytest.approx(base, abs=TOLERANCE)
    assert server.metric("foreguard_score_count", probe="harm", adapter="") == 3
    assert server.metric("foreguard_score_count", probe="harm", adapter="polite") == 3
    assert server.metric("foreguard_score_count", probe=EXTRA_PROBE) == 3
    assert server.metric("foreguard_threshold", rule="harmful", probe="harm", adapter="polite") != 0
    assert server.metric("foreguard_errors_total") == 0
