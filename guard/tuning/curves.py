"""A score in an operator's own traffic over calibration's benign and harmful prompts, on the same bins, for drawing."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from guard.bound_rule import Columns
from guard.decide import score_columns
from guard.policy import Policy

if TYPE_CHECKING:  # an artifact brings torch
    from probes.artifact import Artifact

Floats = npt.NDArray[np.float64]
_TAIL = 0.001


@dataclass(frozen=True, slots=True, eq=False)
class Curves:
    """Histograms of one score on B bins. The first and the last bin hold what lies beyond them, too."""

    edges: Floats
    """`[B + 1]`, ascending."""
    own: npt.NDArray[np.int64]
    """`[B]`: how many of the operator's decisions."""
    benign: Floats
    """`[B]`: share of calibration's benign prompts. All zero where the artifact has none of this score."""
    harmful: Floats
    """`[B]`: share of its harmful prompts."""

    @property
    def own_shares(self) -> Floats:
        """`[B]`: share of the operator's decisions."""
        return self.own / max(int(self.own.sum()), 1)


def curves(own: Floats, benign: Floats, harmful: Floats, bins: int = 60) -> Curves:
    """Return histograms of one score on the same bins: of own traffic `[N]`, calibration's benign and harmful prompts.

    Scores that are no finite number are left out. Bins are of one width and reach from the least 0.1 % quantile of the
    three to the greatest 99.9 % quantile.
    """
    finite = [each[np.isfinite(each)] for each in (own, benign, harmful)]
    ends = [np.quantile(each, (_TAIL, 1 - _TAIL)) for each in finite if len(each)]
    low, high = (float(min(e[0] for e in ends)), float(max(e[1] for e in ends))) if ends else (0.0, 1.0)
    if high <= low:
        low, high = low - 0.5, high + 0.5
    edges = np.linspace(low, high, bins + 1)
    counts = [np.histogram(np.clip(each, low, high), edges)[0].astype(np.int64) for each in finite]
    shares = [each / max(int(each.sum()), 1) for each in counts[1:]]
    return Curves(edges, counts[0], shares[0], shares[1])


def calibration_columns(artifact: "Artifact", policy: Policy) -> tuple[Columns, Columns]:
    """Return calibration's benign `[N]` and harmful `[M]` scores by probe and combination of the policy.

    Raises `PolicyError` for a combination of probes that the artifact does not have.
    """
    from probes.artifact import BENIGN_SCORES, HARMFUL_SCORES

    probes = [probe.name for probe in artifact.manifest.probes]
    combined = policy.with_combinations(artifact.manifest.combinations)
    benign, harmful = (
        score_columns(combined, probes, artifact.tensors[name].numpy()) for name in (BENIGN_SCORES, HARMFUL_SCORES)
    )
    return benign, harmful
