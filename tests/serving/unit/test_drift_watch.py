"""What the policy reads is watched for drift: told in metrics and in the state folder, until an operator says so."""

import json
import os

import numpy as np
import pytest
import torch
from prometheus_client import CollectorRegistry

from guard.drift.exposition import DriftMetrics
from guard.journal import Decision
from guard.policy_file import parse_policies
from guard.rollout import InForce, Rollout
from guard.verdict import Unscored
from probes.artifact import BENIGN_SCORES, HARMFUL_SCORES, Artifact
from probes.fingerprint import Fingerprint
from probes.manifest import Manifest, Probe
from serving.admin.drift_desk import DriftDesk
from serving.api.drift_watch import DriftWatch

POLICY = """
name: p
version: "1"
combine: {both: {harm: 1.0, other: 1.0}}
rules:
  - {name: r, action: flag, when: {both: {above: 9}}}
"""


@pytest.fixture
def artifact():
    """An artifact of two probes, each with 2,000 benign scores about 0."""
    digests = dict.fromkeys(("config", "weights", "tokenizer", "chat_template"), "")
    fingerprint = Fingerprint(architecture="A", num_layers=1, hidden_size=2, dtype="float32", **digests)
    probes = tuple(Probe(name=name, method="m", layers=(0,)) for name in ("harm", "other"))
    benign = torch.from_numpy(np.random.default_rng(0).normal(size=(2000, 2)).astype(np.float32))
    weights = {f"probe.{probe.name}.weight": torch.ones(1, 1, 2) for probe in probes}
    scores = {BENIGN_SCORES: benign, HARMFUL_SCORES: torch.ones(3, 2)}
    return Artifact(Manifest(name="a", created="", fingerprint=fingerprint, probes=probes), weights | scores)


class Watched:
    """A process that is watched, and what it tells."""

    def __init__(self, artifact, state):
        self.artifact, self.state = artifact, state
        self.registry = CollectorRegistry()
        self.in_force = InForce(self.rollout(POLICY))
        self.watch = DriftWatch(self.in_force, [artifact], DriftMetrics(self.registry), state)
        self._random = np.random.default_rng(1)

    def rollout(self, text):
        """The policies of a file."""
        return Rollout.bind(parse_policies(text), self.artifact, {})

    def see(self, number, mean=0.0, **about):
        """Let the process decide so many prompts, whose scores are about this mean."""
        bound = self.in_force.current.base.model
        for scores in self._random.normal(mean, size=(number, 2)):
            verdict = bound.judge(scores.tolist())
            self.watch.record(Decision(verdict, bound.policy, **about))
        self.watch.look()

    def alarm(self, probe, dimension="", stratum=""):
        """Whether this is told as drift; None where it is not watched."""
        labels = {"adapter": "", "probe": probe, "dimension": dimension, "stratum": stratum}
        return self.registry.get_sample_value("foreguard_drift_alarm", labels)


@pytest.fixture
def watched(artifact, tmp_path):
    """A process that is watched."""
    return Watched(artifact, tmp_path)


def test_what_the_policy_reads_is_watched(watched):
    """The combination, and not the probes that no rule asks about."""
    watched.see(100)
    assert watched.alarm("both") == 0
    assert watched.alarm("harm") is None


def test_a_shift_is_told_and_which_route_moved(watched, caplog):
    """In the metrics, the log and the state folder; the route whose scores moved has the shift."""
    watched.see(2000, route="/v1/messages")
    assert watched.alarm("both") == 0
    watched.see(3000, mean=0.7, route="/v1/messages")
    watched.see(1000, route="/v1/completions")
    assert watched.alarm("both") == 1
    assert watched.alarm("both", "route", "/v1/messages") == 1
    assert watched.alarm("both", "route", "/v1/completions") == 0
    assert "drifted" in caplog.text
    told = json.loads((watched.state / "drift" / f"{os.getpid()}.json").read_text())
    [moved] = [each for each in told["moved"] if each["dimension"] == "route"]
    assert moved["contributions"][0]["name"] == "/v1/messages"
    assert sum(each["share"] for each in moved["contributions"]) == pytest.approx(1)


def test_an_operator_s_word_has_it_begin_anew(watched):
    """In every process that finds it."""
    watched.see(2000, mean=1.0)
    assert watched.alarm("both") == 1
    desk = DriftDesk(watched.state)
    assert [each["pid"] for each in desk.processes()] == [os.getpid()]
    desk.acknowledge()
    watched.see(0)
    assert watched.alarm("both") == 0
    watched.see(10)
    [process] = desk.processes()
    assert process["drift"]["decisions"] == 10


def test_a_policy_that_reads_other_scores_is_watched_anew(watched):
    """One that reads the same goes on: a threshold moves no score."""
    watched.see(2000, mean=1.0)
    watched.in_force.current = watched.rollout(POLICY.replace("above: 9", "above: 8"))
    watched.see(10)
    assert watched.alarm("both") == 1
    watched.in_force.current = watched.rollout(POLICY.replace("both: {above", "harm: {above"))
    watched.see(10)
    assert watched.alarm("harm") == 0


def test_a_policy_that_flags_some_benign_prompts_is_not_drift(watched):
    """What is usual is the share of calibration's benign prompts that it flags; twice as many are an alarm."""
    often = POLICY.replace("above: 9", "above: 1.8")  # one in ten of them: 1.28 standard deviations of a sum of two
    watched.in_force.current = watched.rollout(often)
    watched.see(0)
    watched.see(4000)

    def rate():
        return watched.registry.get_sample_value("foreguard_drift_rate", {"rate": "flags"})

    assert rate() < 1
    watched.see(2000, mean=0.5)
    assert rate() == 1


def test_a_policy_that_flags_everything_is_watched_all_the_same(watched):
    """No rate is too high to be usual."""
    watched.in_force.current = watched.rollout(POLICY.replace("above: 9", "above: -99"))
    watched.see(0)
    watched.see(50)
    assert watched.alarm("both") == 0


def test_prompts_without_scores_are_counted(watched):
    """Too many of them are an alarm of their own."""
    bound = watched.in_force.current.base.model
    watched.see(200)
    for _ in range(50):
        watched.watch.record(Decision(bound.judge(Unscored.MISSING), bound.policy))
    watched.watch.give_up()
    watched.watch.look()
    assert watched.registry.get_sample_value("foreguard_drift_rate", {"rate": "unscored"}) == 1


async def test_without_a_state_folder_metrics_tell(artifact):
    """Nothing is written anywhere, and the watch ends."""
    watched = Watched(artifact, None)
    watched.watch.begin()
    watched.see(100)
    assert watched.alarm("both") == 0
    await watched.watch.end()


async def test_a_process_that_ends_is_heard_no_more(watched):
    """Its file goes with it."""
    watched.see(10)
    watched.watch.begin()
    await watched.watch.end()
    assert DriftDesk(watched.state).processes() == []


def number_seen(state):
    """How many prompts the process tells to have decided."""
    [told] = DriftDesk(state).processes()
    return told["drift"]["decisions"]


async def test_the_next_process_goes_on(artifact, tmp_path, caplog):
    """From what the last one kept, whatever its pid was; an alarm that stood stands again."""
    first = Watched(artifact, tmp_path)
    first.see(3000)
    first.see(600, mean=1.5)
    assert first.alarm("both") == 1.0
    await first.watch.end()
    second = Watched(artifact, tmp_path)
    second.watch.look()
    assert (number_seen(tmp_path), second.alarm("both")) == (3600, 1.0)


async def test_one_that_was_killed_leaves_its_place(artifact, tmp_path):
    """What it last kept is taken up, once the kernel lets go of its lock; two processes at once have a place each."""
    first, beside = Watched(artifact, tmp_path), Watched(artifact, tmp_path)
    first.see(1000)
    first.watch.keep()
    beside.see(10)
    assert first.watch._place.path != beside.watch._place.path
    first.see(500)
    first.watch._place.lock.release()  # as the kernel does where a process is killed
    second = Watched(artifact, tmp_path)
    second.watch.look()
    assert number_seen(tmp_path) == 1000


@pytest.mark.parametrize("changed", ["artifact", "damaged", "acknowledged"])
async def test_evidence_of_other_conditions_is_not_taken_up(artifact, tmp_path, caplog, changed):
    """Another artifact, a file that was cut off, an operator's word: watched anew, and the log says why."""
    first = Watched(artifact, tmp_path)
    first.see(1000)
    await first.watch.end()
    [kept] = (tmp_path / "drift" / "kept").glob("*.json")
    if changed == "damaged":
        kept.write_bytes(kept.read_bytes()[:200])
    elif changed == "acknowledged":
        DriftDesk(tmp_path).acknowledge()
    else:
        benign = artifact.tensors[BENIGN_SCORES] + 1
        artifact = Artifact(artifact.manifest, dict(artifact.tensors) | {BENIGN_SCORES: benign})
    with caplog.at_level("WARNING"):
        second = Watched(artifact, tmp_path)
        second.watch.look()
    assert number_seen(tmp_path) == 0
    assert "begins anew" in caplog.text


def test_a_novelty_probe_s_share_is_watched(artifact):
    """More of the traffic beyond calibration's 95 % is an alarm of its own; the usual share is none."""
    unusual = artifact.manifest.probes[1].model_copy(update={"role": "escalates"})
    probes = (artifact.manifest.probes[0], unusual)
    told = Watched(Artifact(artifact.manifest.model_copy(update={"probes": probes}), dict(artifact.tensors)), None)
    labels = {"adapter": "", "probe": "other"}

    def value(name):
        return told.registry.get_sample_value(f"foreguard_drift_{name}", labels)

    told.see(3000)
    assert value("out_of_distribution_alarm") == 0.0
    assert value("out_of_distribution") == pytest.approx(0.05, abs=0.02)
    told.see(1500, mean=1.0)
    assert value("out_of_distribution_alarm") == 1.0
    assert value("out_of_distribution") > 0.1
