"""Binding a policy to an artifact: what `decide.bind` needs, taken from where artifacts keep it."""

from typing import TYPE_CHECKING

import numpy as np

from guard.decide import BoundPolicy, Watched, bind
from guard.endings import OtherEndings
from guard.policy import Policy

if TYPE_CHECKING:  # an artifact brings torch, and deciding needs none
    from probes.artifact import Artifact


def bind_to(artifact: "Artifact", policy: Policy, *, pinned: bool = True) -> BoundPolicy:
    """Bind `policy` to `artifact`, whose combinations are at hand. Raises `PolicyError` as `bind` does.

    Not `pinned`, a policy that names another artifact is bound all the same: one that is being tuned.
    """
    from probes.artifact import BENIGN_SCORES

    manifest = artifact.manifest
    return bind(
        policy.with_combinations(manifest.combinations),
        [probe.name for probe in manifest.probes],
        np.asarray(artifact.tensors[BENIGN_SCORES].numpy()),
        escalating=manifest.escalating,
        steering=[vector.name for vector in manifest.steering],
        digest=manifest.digest if pinned else None,
        watched=_watched(artifact),
        others=_others(artifact),
    )


def _others(artifact: "Artifact") -> OtherEndings:
    from probes.artifact import BENIGN_SCORES

    probes = artifact.manifest.probes
    known = artifact.manifest.other_endings
    return OtherEndings(
        {ending: np.asarray(artifact.tensors[f"{BENIGN_SCORES}.{ending}"].numpy()) for ending in known},
        {ending: [probe.name for probe in probes if ending in probe.endings] for ending in known},
        [probe.name for probe in probes if not probe.readout.reads_one_token],
    )


def _watched(artifact: "Artifact") -> Watched | None:
    from probes.artifact import BENIGN_ANSWERS

    watches, escalating = artifact.manifest.watches, artifact.manifest.escalating
    if not watches:
        return None
    return Watched(
        [watch.name for watch in watches],
        np.asarray(artifact.tensors[BENIGN_ANSWERS].numpy()),
        [watch.name for watch in watches if watch.probe in escalating],
    )
