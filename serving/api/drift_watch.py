"""Watching for drift in one API process: of the scores that the policy reads, against calibration's benign ones.

A sink of the journal. Every five seconds it publishes what it has found, tells it in the state folder, and looks
whether an operator has acknowledged the alarms. Every half a minute it keeps its evidence there, from which the next
process goes on. When the policy comes to read other scores, all is watched anew.
"""

import asyncio
import json
import logging
import os
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path

import numpy as np

from guard.decide import BoundPolicy, score_columns
from guard.drift.exposition import DriftMetrics
from guard.drift.kept import Conditions, Place, take_place
from guard.drift.novelty import novelty_reference
from guard.drift.reference import Reference, references
from guard.drift.settings import DriftSettings
from guard.drift.sink import Compared, DriftSink
from guard.drift.snapshot import DriftSnapshot
from guard.journal import Decision
from guard.metrics import MODEL_ITSELF
from guard.rollout import InForce, Rollout
from probes.artifact import BENIGN_SCORES, Artifact
from serving.state import ACKNOWLEDGED, DRIFT

logger = logging.getLogger("vllm.foreguard.drift")

_EVERY_S = 5.0
_KEPT_EVERY_S = 30.0
_KEPT = "kept"
"""Folder of what processes keep over a restart, in that of what they tell."""
_CONFIDENCE = 0.99
"""With which a novelty probe's share out of distribution is known from calibration's prompts."""
_MOST_FLAGS = 0.5
"""Where a policy flags more than half of what is benign, that itself is worth an alarm."""

_Watched = Mapping[str, Sequence[str]]
"""By adapter, the scores that the policies read."""


class DriftWatch:
    """Watches this process's part of the traffic."""

    def __init__(
        self, in_force: InForce, artifacts: Sequence[Artifact], metrics: DriftMetrics, state: Path | None
    ) -> None:
        """`artifacts` are the model's and then its adapters'; `state` is the state folder, if there is one."""
        self._in_force = in_force
        self._artifacts = artifacts
        self._metrics = metrics
        self._folder = state and state / DRIFT
        self._watched: _Watched = {}
        self._sink, self._compared = DriftSink({}), Compared({})
        self._place: Place | None = None
        self._kept_at = time.monotonic()
        self._acknowledged = self._acknowledgement()
        self._is_drifted = False
        self._task: asyncio.Task[None] | None = None
        self._follow()

    def record(self, decision: Decision) -> None:
        """Take in a decision."""
        self._sink.record(decision)

    def give_up(self) -> None:
        """Take in that a prompt ended before its verdict came."""
        self._sink.give_up()

    def begin(self) -> None:
        """Tell from now on."""
        self._task = asyncio.create_task(self._watch())

    async def end(self) -> None:
        """Tell no longer."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        await asyncio.to_thread(self.keep)
        if self._place is not None:
            self._place.leave()
        if self._folder is not None:
            with suppress(OSError):
                self._file(self._folder).unlink()

    def keep(self) -> None:
        """Keep the evidence for the process that comes next. Where that fails, it is logged."""
        if self._place is None:
            return
        self._kept_at = time.monotonic()
        try:
            self._place.keep(self._conditions(), self._sink.state())
        except OSError as error:
            logger.warning("drift's evidence could not be kept: %s", error)

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(_EVERY_S)
            try:
                self.look()
                if time.monotonic() - self._kept_at >= _KEPT_EVERY_S:
                    await asyncio.to_thread(self.keep)
            except Exception:
                # Whatever failed, requests are guarded as ever; what is found is told the next time.
                logger.exception("drift could not be told")

    def look(self) -> None:
        """Publish what was found; begin anew where the policy reads other scores, or an operator said so."""
        self._follow()
        if (acknowledged := self._acknowledgement()) != self._acknowledged:
            self._acknowledged = acknowledged
            self._sink.acknowledge()
        snapshot = self._sink.snapshot()
        self._metrics.publish(snapshot)
        self._tell(snapshot)

    def _follow(self) -> None:
        rollout, usual = self._in_force.current, _benign_flags(self._in_force.current, self._artifacts[0])
        if (watched := _watched(rollout)) != self._watched:
            self._watched = watched
            self._compared = _compared(rollout, watched, self._artifacts)
            self._sink = DriftSink(self._compared)
            self._sink.expect_flags(usual)
            self._go_on()
        self._sink.expect_flags(usual)

    def _go_on(self) -> None:
        """Take a place among what processes keep, and go on from what is in it, where that was made alike."""
        if self._folder is None:
            return
        if self._place is not None:
            self._place.leave()
        try:
            self._place, state = take_place(self._folder / _KEPT, self._conditions())
        except OSError as error:
            self._place = None
            logger.warning("drift's evidence cannot be kept over a restart: %s", error)
            return
        if state is not None:
            self._sink.restore(state)

    def _conditions(self) -> Conditions:
        return Conditions(
            artifacts=[each.manifest.digest for each in self._artifacts],
            references=self._compared.digests,
            settings=asdict(DriftSettings()),
            acknowledged=self._acknowledged,
        )

    def _tell(self, snapshot: DriftSnapshot) -> None:
        if snapshot.drifted and not self._is_drifted:
            logger.error(
                "traffic has drifted from what calibration saw: foreguard_drift_* and the state folder say how"
            )
        self._is_drifted = snapshot.drifted
        if self._folder is not None:
            self._folder.mkdir(parents=True, exist_ok=True)
            path = self._file(self._folder)
            path.with_suffix(".new").write_text(json.dumps(snapshot.to_json()))
            path.with_suffix(".new").replace(path)

    def _acknowledgement(self) -> float:
        try:
            return (self._folder / ACKNOWLEDGED).stat().st_mtime if self._folder else 0.0
        except OSError:
            return 0.0

    @staticmethod
    def _file(folder: Path) -> Path:
        return folder / f"{os.getpid()}.json"


def _watched(rollout: Rollout) -> _Watched:
    """Return the scores that rules on prompts read, in any of the policies."""
    found: dict[str, set[str]] = {}
    for each in rollout.sets:
        for adapter, bound in ((MODEL_ITSELF, each.model), *each.adapters.items()):
            found.setdefault(adapter, set()).update(score for rule in bound.rules for score in rule.reads)
    return {adapter: sorted(scores) for adapter, scores in found.items()}


def _benign_flags(rollout: Rollout, artifact: Artifact) -> float:
    """Return the share of the model's benign prompts that the policies do not allow: of all, the largest."""
    benign = np.asarray(artifact.tensors[BENIGN_SCORES].numpy())
    shares = [0.0]
    for bound in (each.model for each in rollout.sets if len(benign)):
        columns = score_columns(bound.policy, bound.probes, benign)
        shares.append(float(np.mean(bound.severities(columns) > 0)))
    # Rounded, so that two policies that hardly differ are watched as one.
    return min(round(max(shares), 3), _MOST_FLAGS)


def _compared(rollout: Rollout, watched: _Watched, artifacts: Sequence[Artifact]) -> Compared:
    """Return what scores are compared with; one that several policies combine otherwise is the first one's."""
    found: dict[str, dict[str, Reference]] = {}
    novelty: dict[str, dict[str, Reference]] = {}
    combined: dict[str, Mapping[str, Mapping[str, float]]] = {}
    for (adapter, names), artifact in zip(watched.items(), artifacts, strict=True):
        columns: dict[str, np.ndarray[tuple[int], np.dtype[np.float64]]] = {}
        combined[adapter] = {}
        benign = np.asarray(artifact.tensors[BENIGN_SCORES].numpy())
        for each in rollout.sets:
            bound: BoundPolicy = each.adapters[adapter] if adapter else each.model
            columns = score_columns(bound.policy, bound.probes, benign) | columns
            combined[adapter] = {**bound.policy.combine, **combined[adapter]}
        found[adapter] = references(names, np.stack([columns[name] for name in names], axis=1)) if names else {}
        novelty[adapter] = {
            name: novelty_reference(columns[name], DriftSettings().novel_above, _CONFIDENCE)
            for name in artifact.manifest.escalating
            if len(benign)
        }
    return Compared(found, novelty=novelty, combined=combined)
