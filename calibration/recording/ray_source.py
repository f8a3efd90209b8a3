"""Past one machine: shards read, and prompts scored, by Ray Data actors, one model replica each, for the process that
asked.

The plan of shards is made before anyone reads, each shard is read by one replica with as many threads as this process
has, and its content goes into the file of its number: on machines of one kind the files are those of one process, byte
for byte. Scores are, too: they are had from the same batches. Ray restarts a worker that dies and gives its shards to
another.
"""

import json
import os
import threading
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load, save

from calibration.model.chat_model import ChatModel
from calibration.prompts.progress import track
from calibration.prompts.template import EncodedPrompts
from calibration.recording.activations import read_shard
from calibration.recording.places import Where
from calibration.recording.request_scores import RequestScores, plan_scoring, score_batches
from calibration.recording.shards import Shard, Tensors
from probes.artifact import Artifact
from probes.errors import CalibrationError, ModelError
from probes.fingerprint import Fingerprint, fingerprint
from probes.scoring import ProbeBank

Order = dict[str, Any]

_BATCHES = 4
"""Batches that a worker scores before it answers."""
_OUTLIVING = {"iter_threaded": 30, "Prefetcher": 0.2}
"""Threads that outlive a closed iterator, and seconds to wait for each: the one that asks soon ends, the one that is
asked stays parked for ever and needs only to have parked (ray/data/_internal/block_batching/util.py, Ray 2.60)."""


@dataclass(frozen=True, slots=True)
class Replica:
    """What every worker loads: the same model, in the same precision, or it refuses."""

    model: str
    """Folder or Hugging Face id, as every machine of the cluster can find it."""
    dtype: str
    device: str
    arithmetic: str
    """What the process that asks computes in: torch's name of it."""
    identity: Fingerprint
    threads: int

    def load(self) -> ChatModel:
        """Load the model. Raises `ModelError` where this machine's files are another model's."""
        torch.set_num_threads(self.threads)
        found = fingerprint(Path(self.model), dtype=None if self.dtype == "auto" else self.dtype)
        if found != self.identity:
            raise ModelError(
                "a machine of the Ray cluster has another model under this name",
                field=self.model,
                remedy="put the same model folder at the same path on every machine",
            )
        arithmetic: torch.dtype = getattr(torch, self.arithmetic)
        return ChatModel.load(Path(self.model), dtype=self.dtype, device=self.device, arithmetic=arithmetic)


@dataclass(frozen=True, slots=True)
class RayCluster:
    """The source that spreads its shards over a Ray cluster. One at a time in a process: Ray has one connection."""

    address: str
    """As `ray.init` takes it: `auto`, `host:port`, or `local` for workers on this machine only."""
    replica: Replica

    def read(
        self, prompts: EncodedPrompts, where: Sequence[Where], shards: Sequence[Shard]
    ) -> Iterator[tuple[Shard, Tensors]]:
        """Yield the shards as they are finished. Raises `CalibrationError` where Ray is missing or not reached."""
        by_index = {shard.index: shard for shard in shards}
        orders = [_order(shard.index, prompts, shard.batches, where=list(where)) for shard in shards]
        for index, tensors in self._carried_out(orders, None):
            yield by_index[index], tensors | {"rows": torch.tensor(by_index[index].rows)}

    def score(
        self, prompts: EncodedPrompts, probes: Artifact, refusal_tokens: Sequence[int], title: str
    ) -> RequestScores:
        """Score the prompts in the batches of one process, a worker some of them at a time.

        Raises `CalibrationError` where Ray is missing or not reached, or a score is not a number.
        """
        found = RequestScores.empty(len(prompts.prompts), len(probes.manifest.probes))
        plan = plan_scoring(prompts)
        pieces = [plan[first : first + _BATCHES] for first in range(0, len(plan), _BATCHES)]
        orders = [_order(i, prompts, piece, tokens=list(refusal_tokens)) for i, piece in enumerate(pieces)]
        for index, part in track(self._carried_out(orders, probes), title, total=len(orders)):
            rows = [row for batch in pieces[index] for row in batch]
            found.put(rows, RequestScores(part["scores"].numpy(), part["refusal"].numpy()))
        found.require_finite(prompts)
        return found

    def _carried_out(self, orders: Sequence[Order], probes: Artifact | None) -> Iterator[tuple[int, Tensors]]:
        """Yield each order's number and what a worker answered, as they are finished."""
        if not orders:
            return
        with _connected(self.address) as ray:
            # One block for each order, made here: an operator that cut them up would wait for CPUs that the workers
            # hold.
            finished = ray.data.from_items(list(orders), override_num_blocks=len(orders)).map_batches(
                _Worker,
                batch_size=1,
                fn_constructor_args=(self.replica, probes),
                **_resources(ray, self.replica, len(orders)),
            )
            # Closed before Ray is left: an iterator collected afterwards stops its workers through a connection of its
            # own.
            with closing(iter(finished.iter_rows())) as rows:
                for row in rows:
                    if row["error"]:
                        raise ModelError(**json.loads(row["error"]))
                    yield int(row["index"]), load(row["content"])


class _Worker:
    """A Ray Data actor: loads the model once, then reads or scores the prompts that it is given."""

    def __init__(self, replica: Replica, probes: Artifact | None) -> None:
        self._replica = replica
        self._bank = ProbeBank.from_artifact(probes) if probes else None
        self._chat: ChatModel | None = None

    def __call__(self, orders: dict[str, Any]) -> dict[str, Any]:
        content, problem = np.empty(1, dtype=object), ""
        try:
            content[0] = save(self._carry_out(json.loads(str(orders["order"][0]))))
        except ModelError as error:
            # Sent as data: of an exception Ray hands on the text, and the person would get a page of Ray's own frames.
            content[0] = b""
            problem = json.dumps({"problem": error.problem, "field": error.field, "remedy": error.remedy})
        return {"index": orders["index"], "content": content, "error": np.array([problem])}

    def _carry_out(self, order: dict[str, Any]) -> Tensors:
        if self._chat is None:
            self._chat = self._replica.load()
        token_ids, batches = order["token_ids"], tuple(map(tuple, order["batches"]))
        if self._bank is None:
            return read_shard(self._chat, token_ids, order["where"], Shard(0, batches))
        parts = [part for _, part in score_batches(self._chat, self._bank, token_ids, batches, order["tokens"])]
        return {
            name: torch.from_numpy(np.concatenate([getattr(part, name) for part in parts]))
            for name in ("scores", "refusal")
        }


def _order(index: int, prompts: EncodedPrompts, batches: Sequence[Sequence[int]], **what: Any) -> Order:
    """Return what a worker needs to know of some batches: their own prompts only, numbered from 0."""
    rows = [row for batch in batches for row in batch]
    places = iter(range(len(rows)))
    order = {
        "batches": [[next(places) for _ in batch] for batch in batches],
        "token_ids": [prompts.token_ids[row] for row in rows],
    }
    return {"index": index, "order": json.dumps(order | what)}


def _resources(ray: Any, replica: Replica, most: int) -> dict[str, Any]:
    """Return Ray Data's options: one replica per GPU, or per machine where the model runs on CPUs."""
    on_gpu = replica.device != "cpu"
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    workers = sum(int(node.get("GPU", 0)) if on_gpu else int(node.get("CPU", 0) >= 1) for node in nodes)
    if not workers:
        kind = "GPU" if on_gpu else "CPU"
        raise CalibrationError(
            f"the Ray cluster has no {kind}", field="--ray", remedy=f"add machines with a {kind}, or correct --device"
        )
    return {
        "compute": ray.data.ActorPoolStrategy(size=min(workers, most)),
        "num_gpus": 1 if on_gpu else 0,
        "num_cpus": 0 if on_gpu else 1,
    }


@contextmanager
def _connected(address: str) -> Iterator[Any]:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is to leave the cluster
    os.environ.setdefault("RAY_ENABLE_AUTO_CONNECT", "0")  # nothing connects by itself, to a cluster nobody named
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise CalibrationError(
            "Ray is not installed", field="--ray", remedy="install `foreguard[ray]` here and on every machine"
        ) from error
    try:
        ray.init(address=address, log_to_driver=False, logging_level="ERROR")
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise CalibrationError(
            f"no Ray cluster answers at {address}: {error}",
            field="--ray",
            remedy="start one (`ray start --head`), name its address, or use `--ray local`",
        ) from error
    ray.data.DataContext.get_current().enable_progress_bars = False
    try:
        yield ray
    finally:
        _wait_for_prefetching()
        ray.shutdown()


def _wait_for_prefetching() -> None:
    """Wait for the threads that fetch rows ahead: Ray ends the whole process when one of them finds it disconnected."""
    for name, seconds in _OUTLIVING.items():
        for thread in [thread for thread in threading.enumerate() if thread.name == name]:
            thread.join(seconds)
