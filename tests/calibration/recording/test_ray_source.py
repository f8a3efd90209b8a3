"""A Ray cluster of two workers records what one process records, byte for byte, and a killed worker loses nothing."""

import gc
import os
import signal
import sys
import threading
import time
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from brief import BRIEF
from tiny import make_prompts, write_prompts

from calibration.fitting.bank import uncertified
from calibration.fitting.fitted import FittedProbe
from calibration.pipeline.calibrate import calibrate
from calibration.prompts.prompt_file import load_prompts
from calibration.prompts.splits import read_splits
from calibration.prompts.template import encode_prompts
from calibration.recording import shards
from calibration.recording.activations import InProcess, record
from calibration.recording.ray_source import RayCluster, Replica
from calibration.recording.request_scores import score_prompts
from probes.artifact import Artifact
from probes.errors import CalibrationError, ModelError
from probes.fingerprint import fingerprint
from probes.manifest import Probe
from probes.readout import Readout
from probes.scoring import ProbeBank

pytestmark = [pytest.mark.timeout(300), pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::FutureWarning")]
WHERE = (0, 2, "content")


def started(start):
    """Start a part of a cluster. Ray waits 30 s for each, too few on a busy machine, so there are three attempts."""
    for _ in range(2):
        with suppress(Exception):
            return start()
    return start()


@pytest.fixture(scope="module")
def cluster():
    """Two machines of one CPU each, and a head that computes nothing."""
    os.environ |= {"RAY_USAGE_STATS_ENABLED": "0", "RAY_ENABLE_AUTO_CONNECT": "0"}  # read when Ray is imported
    from ray.cluster_utils import Cluster

    cluster = started(partial(Cluster, True, head_node_args={"num_cpus": 0, "include_dashboard": False}))
    for _ in range(2):
        started(partial(cluster.add_node, num_cpus=1, object_store_memory=100 << 20))
    yield cluster
    cluster.shutdown()


@pytest.fixture
def source(cluster, planted):
    """The cluster's workers, with the planted model."""
    return RayCluster(cluster.address, replica_of(planted.folder))


def replica_of(folder, **changes):
    settings = {
        "dtype": "auto",
        "device": "cpu",
        "arithmetic": "float32",
        "identity": fingerprint(folder),
        "threads": torch.get_num_threads(),
    }
    return Replica(str(folder), **(settings | changes))


def connected():
    """Whether this process has a connection to a cluster, once everything left behind is collected."""
    import ray

    gc.collect()
    return ray.is_initialized()


@pytest.fixture
def prompts(planted_chat, tmp_path, monkeypatch):
    """A hundred and twenty prompts, in a dozen shards."""
    monkeypatch.setattr(shards, "_SHARD_BYTES", 10 * 4 * 3 * 32 * len(WHERE))
    lines = write_prompts(tmp_path / "p.jsonl", make_prompts(120, 3))
    return encode_prompts(planted_chat.tokenizer, load_prompts(lines), 128)


def test_two_workers_record_what_one_process_records(source, planted_chat, prompts, tmp_path):
    """Every shard's file is the same, to the byte."""
    alone = record(planted_chat, prompts, WHERE, tmp_path / "alone")
    spread = record(planted_chat, prompts, WHERE, tmp_path / "spread", source=source)
    assert len(alone.shards) >= 12
    assert [path.read_bytes() for path in spread.shards] == [path.read_bytes() for path in alone.shards]


def workers(cluster):
    """The processes of this cluster that hold a replica now."""
    session = str(Path(cluster.head_node.get_session_dir_path()))
    return [
        process.pid
        for process in psutil.process_iter(["cmdline"])
        if (process.info["cmdline"] or [""])[0].startswith("ray::MapWorker") and belongs(process, session)
    ]


def belongs(process, session):
    """Whether a raylet of the session is among the process's parents."""
    try:
        return any(session in " ".join(parent.cmdline()) for parent in process.parents())
    except psutil.Error:
        return False


def kill_the_first(cluster, killed):
    """Kill the first replica as soon as it is there: it has shards to read and has read none."""
    while not (alive := workers(cluster)):
        time.sleep(0.05)
    os.kill(alive[0], signal.SIGKILL)
    killed.append(alive[0])


def test_a_killed_worker_loses_nothing(cluster, source, planted_chat, prompts):
    """SIGKILL to a replica before its first shard, and to another after: each shard still comes once, the same."""
    plan = shards.plan_shards(prompts.lengths.tolist(), planted_chat.num_layers * 32 * len(WHERE))
    expected = {shard.index: tensors for shard, tensors in InProcess(planted_chat).read(prompts, WHERE, plan)}
    killed = []
    killer = threading.Thread(target=kill_the_first, args=(cluster, killed))
    killer.start()
    reading = source.read(prompts, WHERE, plan)
    shard, tensors = next(reading)
    found = {shard.index: tensors}
    killer.join()
    victims = [pid for pid in workers(cluster) if pid not in killed]
    assert killed
    assert victims
    os.kill(victims[0], signal.SIGKILL)
    for shard, tensors in reading:
        assert shard.index not in found
        found[shard.index] = tensors
    assert found.keys() == expected.keys()
    for index, tensors in expected.items():
        assert all(torch.equal(found[index][name], tensor) for name, tensor in tensors.items())


def test_two_workers_score_what_one_process_scores(source, planted, planted_chat, prompts):
    """The same batches, so the same bits: of probes with one product and with a readout, and of the model's own
    refusal.
    """
    readouts = {"end": Readout(), "worst": Readout(kind="max")}
    specs = [Probe(name=name, method="planted", layers=(1,), readout=each) for name, each in readouts.items()]
    probes = uncertified(
        fingerprint(planted.folder), [FittedProbe(spec, planted.direction[None, None]) for spec in specs]
    )
    found = source.score(prompts, probes, (5, 6), "scoring")
    alone = score_prompts(planted_chat, ProbeBank.from_artifact(probes), prompts, refusal_tokens=(5, 6))
    np.testing.assert_array_equal(found.scores, alone.scores)
    np.testing.assert_array_equal(found.refusal, alone.refusal)


@pytest.mark.long
def test_the_artifact_is_the_one_process_artifact(cluster, brief, planted, splits, tmp_path):
    """A whole calibration with `ray` gives the tensors and the report of a calibration without."""
    out = tmp_path / "artifact"
    done = calibrate(planted.folder, read_splits(**splits), out, replace(BRIEF, ray=cluster.address))
    alone, spread = Artifact.load(brief[1]), Artifact.load(out)
    assert alone.tensors.keys() == spread.tensors.keys()
    assert all(torch.equal(alone.tensors[name], tensor) for name, tensor in spread.tensors.items())
    same = {"created": "", "digest": ""}
    assert done.manifest.model_copy(update=same) == brief[0].manifest.model_copy(update=same)


def test_a_machine_with_another_model_is_refused(cluster, planted, planted_chat, prompts):
    """A replica whose files are not the driver's stops the run, by its own error and not Ray's."""
    other = fingerprint(planted.folder).model_copy(update={"weights": "0" * 64})
    source = RayCluster(cluster.address, replica_of(planted.folder, identity=other))
    plan = shards.plan_shards(prompts.lengths.tolist(), planted_chat.num_layers * 32 * len(WHERE))
    with pytest.raises(ModelError, match="another model under this name"):
        list(source.read(prompts, WHERE, plan))
    assert not connected()


def test_a_reading_that_is_given_up_leaves_no_connection(source, planted_chat, prompts):
    """Whoever stops after the first shard can connect again at once, to this cluster or to another."""
    plan = shards.plan_shards(prompts.lengths.tolist(), planted_chat.num_layers * 32 * len(WHERE))
    reading = source.read(prompts, WHERE, plan)
    next(reading)
    reading.close()
    assert not connected()


def test_without_ray_or_without_a_cluster_the_error_says_what_to_do(
    cluster, planted, planted_chat, prompts, monkeypatch
):
    """No package, no cluster at the address, no GPU in it: each is named with its remedy."""
    plan = shards.plan_shards(prompts.lengths.tolist(), planted_chat.num_layers * 32 * len(WHERE))
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(CalibrationError, match="not installed") as caught:
        next(RayCluster("auto", replica_of(planted.folder)).read(prompts, WHERE, plan))
    assert "foreguard[ray]" in caught.value.remedy
    monkeypatch.undo()
    with pytest.raises(CalibrationError, match="no Ray cluster answers"):
        next(RayCluster("auto:nonsense", replica_of(planted.folder)).read(prompts, WHERE, plan))
    assert not connected()
    with pytest.raises(CalibrationError, match="has no GPU"):
        next(RayCluster(cluster.address, replica_of(planted.folder, device="cuda")).read(prompts, WHERE, plan))
