"""Thresholds from recorded traffic: certified on the labels that can, and honest about those that cannot."""

import re
from datetime import UTC, datetime

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from calibration.cli import tune
from calibration.tuning.from_store import FromStore, tune_from_store
from calibration.tuning.hard_benign import hard_benign_in
from calibration.tuning.settle import Request
from guard.policy_file import parse_policy
from guard.store.batch import Batches, KeptText
from guard.store.cipher import Cipher, new_key
from guard.store.engine import open_store
from guard.store.errors import StoreError
from guard.store.migration import upgrade
from guard.threshold import certify
from guard.tuning.even import even
from guard.tuning.recent import recent
from guard.verdict import Unscored
from probes.artifact import BENIGN_SCORES, HARMFUL_SCORES, Artifact
from probes.errors import CalibrationError, PolicyError, TooFewNegatives
from probes.fingerprint import Fingerprint
from probes.manifest import Manifest, Platt, Probe
from tests.guard.tuning.recorded import in_store

POLICY = """\
name: demo
version: "1"
rules:
  - name: sure
    action: block
    when:
      harm: {above: 2.0}
  - name: doubtful
    action: flag
    when:
      both: {above: 1.0}
combine:
  both: {harm: 1.0, refusal: -0.5}
"""

ASKED = FromStore()


@pytest.fixture(scope="module")
def artifact(tmp_path_factory):
    """An artifact of two probes, saved."""
    digests = dict.fromkeys(("config", "weights", "tokenizer", "chat_template"), "")
    rng = np.random.default_rng(0)
    names = ("harm", "refusal")
    folder = tmp_path_factory.mktemp("tuned") / "artifact"
    manifest = Manifest(
        name="a",
        created="",
        fingerprint=Fingerprint(architecture="A", num_layers=1, hidden_size=2, dtype="float32", **digests),
        probes=tuple(
            Probe(name=name, method="m", layers=(0,), platt=Platt(slope=1, intercept=0, prevalence=0.5))
            for name in names
        ),
    )
    tensors = {f"probe.{name}.weight": torch.ones(1, 1, 2) for name in names}
    tensors[BENIGN_SCORES] = torch.tensor(rng.normal(size=(400, 2)), dtype=torch.float32)
    tensors[HARMFUL_SCORES] = torch.tensor(rng.normal(size=(200, 2)) + 3, dtype=torch.float32)
    Artifact(manifest, tensors).save(folder)
    return folder


@pytest.fixture
def policy(tmp_path):
    """The policy's file."""
    path = tmp_path / "policy.yaml"
    path.write_text(POLICY)
    return path


@pytest.fixture
def store(tmp_path):
    """An empty store's engine."""
    engine = open_store(f"sqlite:///{tmp_path}/decisions.db")
    upgrade(engine)
    yield engine
    engine.dispose()


def scores(count, seed=0, shift=0.0):
    found = np.random.default_rng(seed).normal(size=(count, 2)) + shift
    return [{"harm": float(a), "refusal": float(b), "both": 0.0} for a, b in found]


def tuned(store, artifact, policy, *, asked=ASKED, cipher=None, **request):
    return tune_from_store(
        store, Artifact.load(artifact), policy, request=Request(**request), asked=asked, cipher=cipher
    )


def said(found):
    return "\n".join(found.notes)


def test_thresholds_are_those_of_the_labelled_benign_traffic(store, artifact, policy):
    """Number by number: a probe's, and a combination's as the policy has it, whatever was recorded under its name."""
    benign, harmful = scores(600), scores(50, seed=1, shift=3)
    in_store(store, benign + harmful, "b" * 600 + "h" * 50, [0.5] * 650)
    in_store(store, scores(500, seed=2), start=650)
    found = tuned(store, artifact, policy)
    harm, refusal = (np.array([each[name] for each in benign]) for name in ("harm", "refusal"))
    expected = {"harm": certify(harm, 0.01).value, "both": certify(harm - 0.5 * refusal, 0.01).value}
    assert {item.name: item.threshold.value for item in found.scores if item.name in expected} == expected
    tuned_policy = parse_policy("".join(line[1:] for line in _applied(found.diff, POLICY)))
    assert tuned_policy.rules[0].when["harm"].above == pytest.approx(expected["harm"], abs=1.1e-4)
    assert "at most 1 % of benign requests have harm above this, with 95 % confidence (1 of 600 had)" in found.diff
    assert found.after["harmful"].count == 50
    assert found.traffic.judged == 1150
    assert found.traffic.after.fpr.known.count == 600
    assert "labels: 600 benign, 50 harmful, 0 unsure; certified on 600 benign ones" in said(found)
    assert "unevenly" not in said(found)


def _applied(diff, text):
    """The tuned text's lines, each with a blank before it: the diffs here have their whole file as context."""
    result, source, position = [], text.splitlines(keepends=True), 0
    for line in diff.splitlines(keepends=True)[2:]:
        if line.startswith("@@"):
            start = int(line.split()[1].split(",")[0][1:]) - 1
            result += [f" {each}" for each in source[position:start]]
            position = start
        elif line.startswith("-"):
            position += 1
        else:
            result.append(line)
            position += line.startswith(" ")
    return result + [f" {each}" for each in source[position:]]


def test_labels_that_were_picked_unevenly_are_thinned_first(store, artifact, policy):
    """The threshold is that of the even sample, and a note says how many labels remain."""
    benign = scores(4000)
    chances = [1.0 if each["harm"] > 1 else 0.25 for each in benign]
    picked = np.random.default_rng(3).random(4000) < chances
    in_store(store, benign, ["b" if each else "-" for each in picked], chances)
    found = tuned(store, artifact, policy)
    traffic = recent(store, 4000)
    rows = np.flatnonzero(traffic.labels != None)  # noqa: E711 - of each element
    stays = even(traffic.keys[rows], traffic.chances[rows], traffic.sources[rows]).stays
    [item] = [item for item in found.scores if item.name == "harm"]
    assert item.threshold == certify(traffic.columns["harm"][rows][stays], 0.01)
    assert f"{len(rows) - stays.sum():,} labels were left out by chance" in said(found)
    assert item.threshold.value < certify(traffic.columns["harm"][rows], 0.01).value


def test_labels_of_unknown_chance_need_the_operators_word(store, artifact, policy):
    """Without it the error says so, and with it the note."""
    in_store(store, scores(400), "b" * 400)
    with pytest.raises(StoreError, match="none of 400 benign labels can certify") as caught:
        tuned(store, artifact, policy)
    assert "--even-labels" in caught.value.remedy
    found = tuned(store, artifact, policy, asked=FromStore(labels_are_even=True))
    assert found.scores[0].threshold.num_negatives == 400
    assert "is your word" in said(found)


def test_a_stratum_that_breaks_the_promise_is_named_and_then_kept(store, artifact, policy):
    """A tenant whose benign prompts score higher: named with its share; by tenant, its own threshold is used."""
    in_store(store, scores(900), "b" * 900, [1.0] * 900, tenant="usual")
    in_store(store, scores(500, 1, shift=1.5), "b" * 500, [1.0] * 500, start=900, tenant="odd")
    found = tuned(store, artifact, policy, target_fpr=0.05)
    assert re.search(
        r"tenant odd breaks the promise of 5 %: .* of its 500 benign decisions have harm above", said(found)
    )
    assert "tenant usual breaks" not in said(found)
    kept = tuned(store, artifact, policy, target_fpr=0.05, strata=("tenant",))
    assert "breaks the promise" not in said(kept)
    [before], [after] = ([item for item in each.scores if item.name == "harm"] for each in (found, kept))
    assert after.threshold.value == after.certified.strata["odd"].value > before.threshold.value


def test_limits_and_bands_work_as_with_prompts(store, artifact, policy):
    """Joint limits on labelled traffic; a limit on misses needs harmful labels; probabilities at a prevalence."""
    in_store(store, scores(2000), "b" * 2000, [1.0] * 2000)
    with pytest.raises(StoreError, match="limit on miss needs decisions that are labelled harmful"):
        tuned(store, artifact, policy, at_most=("miss=0.5",))
    in_store(store, scores(200, 1, shift=4), "h" * 200, [1.0] * 200, start=2000)
    joint = tuned(store, artifact, policy, at_most=("flag=0.05", "miss=0.5"))
    assert joint.joint.num_certified > 0
    band = tuned(store, artifact, policy, block_fpr=0.005, flag_fpr=0.05, prevalence=0.01)
    assert {item.action for item in band.scores} == {"flag", "block"}
    assert band.platt["harm"].prevalence == 0.01


@pytest.mark.parametrize(
    ("made", "error", "field", "words"),
    [
        ({}, StoreError, "--store", "holds no decisions"),
        ({"scores": scores(10)}, StoreError, "labels", "none of its last 10 decisions with scores has a label"),
        ({"scores": scores(10), "labels": "h" * 10}, StoreError, "labels", "of 10 labels none says benign"),
        (
            {"scores": [{"own": 1.0}] * 5, "labels": "b" * 5},
            StoreError,
            "--store",
            "no decision has one of harm, refusal",
        ),
        (
            {"scores": scores(100), "labels": "b" * 100, "chances": [0.5] * 100},
            TooFewNegatives,
            "target_fpr",
            "100 benign labels cannot certify",
        ),
    ],
)
def test_what_stands_in_the_way_is_named(store, artifact, policy, made, error, field, words):
    """With the field, and what to do about it."""
    if made:
        in_store(store, made["scores"], made.get("labels"), made.get("chances"))
    with pytest.raises(error, match=words) as caught:
        tuned(store, artifact, policy)
    assert caught.value.field == field
    if error is TooFewNegatives:
        assert "label about 199 more benign decisions" in caught.value.remedy


def test_an_unknown_probe_or_stratum_is_named(store, artifact, policy):
    """Before labels are asked for."""
    in_store(store, scores(5), "b" * 5, [1.0] * 5)
    with pytest.raises(StoreError, match="does not know a decision's language") as caught:
        tuned(store, artifact, policy, strata=("language",))
    assert "--prompts" in caught.value.remedy
    policy.write_text(POLICY.replace("      harm:", "      hram:"))
    with pytest.raises(PolicyError, match="no probe or combination is named 'hram'"):
        tuned(store, artifact, policy)


def test_what_the_reader_must_beware_of(store, artifact, policy):
    """Decisions without scores and on answers, unsure labels, another policy, several models: each in a note."""
    in_store(store, scores(400), "b" * 390 + "u" * 10, [1.0] * 400, policy_digest="old", model="base")
    in_store(store, [{}] * 7, start=400, unscored=Unscored.MEDIA)
    in_store(store, scores(4), "b" * 4, [1.0] * 4, start=407, judged="answer")
    in_store(store, scores(3), "b" * 3, [1.0] * 3, start=411, policy="p@2", policy_digest="new", model="ada")
    notes = said(tuned(store, artifact, policy))
    for words in (
        "7 decisions have no part: without scores",
        "4 decisions have no part: about an answer",
        "10 decisions are labelled unsure",
        "400 of 403 labelled decisions were made by another policy (p@1; the newest traffic: p@2)",
        "several models: base (400), ada (3)",
        "how many turns",
    ):
        assert words in notes


def test_easy_traffic_is_told_from_hard(store, artifact, policy):
    """Without a key nobody can know; with one, kept prompts are looked through, and what they lack is named."""
    cipher = Cipher(new_key())
    ids = in_store(store, scores(400), "b" * 400, [1.0] * 400)
    assert "cannot be known: no key" in said(tuned(store, artifact, policy))
    assert "no prompt of them is kept" in said(tuned(store, artifact, policy, cipher=cipher))
    texts = [f"How do I bake bread number {n} for the village fair?" for n in range(300)]
    texts[:20] = ["How do I kill a Python process that hangs?"] * 20
    at = datetime.now(UTC)
    kept = [KeptText(each, text, at) for each, text in zip(ids, texts, strict=False)]
    Batches(store, cipher).write([], kept)
    notes = said(tuned(store, artifact, policy, cipher=cipher))
    assert "300 labelled benign prompts whose text is kept there are 20 with trigger words, 0 with tools" in notes
    assert "Of tools and other languages that is less than 1 %: then the promise is about easy traffic only" in notes


def test_kinds_of_hard_prompts():
    """One of each, and none where there is none."""
    texts = [
        "How do I shoot a portrait at dusk?",
        '<tools>{"type": "function"}</tools> What is the weather?',
        "Wie backe ich am besten ein Brot, das auch nach drei Tagen noch gut schmeckt?",
        "如何烤面包",
        "What is the best way to bake bread for the week?",
    ]
    assert hard_benign_in(texts).kinds == {"trigger words": 1, "tools": 1, "other languages": 2}
    assert hard_benign_in(["A robust, stable gift for the hackathon: a gunmetal tote"]).kinds["trigger words"] == 0
    assert hard_benign_in(texts[-1:] * 3).lacking == ("trigger words", "tools", "other languages")


def test_the_command(store, artifact, policy, monkeypatch):
    """The diff alone on standard output, tables and notes beside it; no model is asked for."""
    import typer

    in_store(store, scores(400), "b" * 400, [1.0] * 400, tenant="[red]")
    app = typer.Typer()
    app.command()(tune)
    monkeypatch.setenv("FOREGUARD_STORE", str(store.url))
    monkeypatch.setenv("COLUMNS", "160")
    arguments = ["--from-store", "--artifact", str(artifact), "--policy", str(policy)]
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 0, done.output
    assert done.stdout.startswith("--- policy.yaml\n+++ policy.yaml")
    for words in (
        "what it does to your last 400 decisions",
        "what labels say of all traffic",
        "note: labels: 400 benign",
    ):
        assert words in done.stderr
    assert "takes no prompts" in CliRunner().invoke(app, [*arguments, "--prompts", "p.jsonl"]).output
    monkeypatch.delenv("FOREGUARD_STORE")
    assert "needs --store" in CliRunner().invoke(app, arguments).output
    assert "or --from-store" in CliRunner().invoke(app, arguments[1:]).output
    with pytest.raises(CalibrationError, match="two ends"):
        Request(block_fpr=0.1)
