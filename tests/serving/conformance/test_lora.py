"""Adapters: each is a model of its own, scored by its own probes or by none."""

import pytest

from serving.config import AdapterConfig
from tests.serving.adapter import AdaptedReference, make_adapter
from tests.serving.conformance.cast import Cast
from tests.serving.conformance.engine import engine
from tests.serving.conformance.modes import EAGER
from tests.serving.planted import naive_scores, planted_artifact

pytestmark = [pytest.mark.engine, pytest.mark.long, pytest.mark.timeout(900)]

# Merged into the weights, as the reference has it, an adapter is rounded once more than beside them.
TOLERANCE = 0.3
NAMES = ("benign0", "long0", "harmful0", "benign1", "turns0")


@pytest.fixture(scope="module")
def adapted(reference, tmp_path_factory):
    """An adapter with an artifact, its folder and what a plain pass of the adapted model reads."""
    folder = tmp_path_factory.mktemp("adapters")
    own = AdaptedReference(make_adapter(reference, folder / "known", seed=1))
    make_adapter(reference, folder / "unknown", seed=2)
    return folder, own, planted_artifact(own, folder / "artifact", adapter=folder / "known")


@pytest.fixture(scope="module", params=["v1", "v2"])
def played(request, reference, artifact, artifact_folder, adapted, tmp_path_factory):
    """Each prompt under the model itself and either adapter in one batch, then another adapter by a known one's
    name.
    """
    folder, _, own = adapted
    logs = tmp_path_factory.mktemp("lora")
    cast = Cast.of(reference, artifact, artifact_folder, logs)
    known = AdapterConfig(
        name="known",
        path=folder / "known",
        artifact=folder / "artifact",
        artifact_digest=own.manifest.digest,
    )
    guard = cast.guard.model_copy(update={"adapters": (known,)})
    loras = {
        "base": None,
        "known": ["known", 1, str(folder / "known")],
        "unknown": ["unknown", 2, str(folder / "unknown")],
        "disguised": ["known", 3, str(folder / "unknown")],
    }

    def requests(*subjects):
        return [
            {"id": f"{name}-{subject}", "prompt": cast.prompts[name], "step": step}
            | ({"lora": loras[subject]} if loras[subject] else {})
            for step, name in enumerate(NAMES)
            for subject in subjects
        ]

    flags = [*EAGER, "--enable-lora", "--max-loras", "3", "--max-lora-rank", "8"]
    found = {}
    for name, guarded in (("unguarded", None), ("guarded", guard)):
        with engine(logs / name, guarded, flags, v2=request.param == "v2") as running:
            found[name], _ = running.play(requests("base", "known", "unknown"))
            # vLLM tells adapters apart by name, so the two of one name never share a batch.
            found[name] |= running.play(requests("disguised"))[0]
    return cast, found


def test_each_is_scored_by_its_own_probes(played, adapted):
    """The model's prompts as ever, an adapter's as its own artifact has it, which is something else."""
    cast, found = played
    _, own, artifact = adapted
    for name in NAMES:
        base, known = (found["guarded"][f"{name}-{subject}"]["verdicts"][0] for subject in ("base", "known"))
        assert base["scores"] == pytest.approx(cast.expected(cast.prompts[name]), abs=0.15)
        expected = naive_scores(artifact, own.read(cast.prompts[name]))
        assert known["scores"] == pytest.approx(expected, abs=TOLERANCE)
        # By the other's probes it would be something else.
        assert known["scores"] != pytest.approx(
            naive_scores(cast.artifact, own.read(cast.prompts[name])), abs=TOLERANCE
        )


@pytest.mark.parametrize("subject", ["unknown", "disguised"])
def test_an_adapter_without_an_artifact_is_unscored(played, subject):
    """And blocked, as this policy has it; so is another adapter that is loaded under a known one's name."""
    for name in NAMES:
        outcome = played[1]["guarded"][f"{name}-{subject}"]
        assert [verdict["unscored"] for verdict in outcome["verdicts"]] == ["adapter"] * len(outcome["verdicts"])
        assert outcome["completions"]["0"]["tokens"] == []


def test_what_is_allowed_answers_as_without_a_guard(played):
    """Under the model itself and under the adapter."""
    _, found = played
    allowed = 0
    for name, outcome in found["guarded"].items():
        if outcome["verdicts"][0]["action"] == "allow":
            assert outcome["completions"] == found["unguarded"][name]["completions"], name
            allowed += 1
    assert allowed > len(NAMES)
