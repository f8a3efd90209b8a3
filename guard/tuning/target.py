"""From a false-positive rate to a threshold: certified on the operator's own labels, or only bounded by all traffic."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from guard.store.label import Label
from guard.threshold import Threshold, certify, minimum_negatives
from guard.tuning.even import even
from guard.tuning.recent import Recent
from probes.errors import CalibrationError


@dataclass(frozen=True, slots=True)
class Target:
    """The threshold of one score for a false-positive rate that was asked for."""

    target_fpr: float
    confidence: float
    certified: Threshold | None
    """The lowest threshold that the even benign labels certify; None where they are too few."""
    benign: int
    """Benign labels with a score."""
    even: int
    """Those that remain as an even sample, and so can certify."""
    unknown: int
    """Those whose chance of having been picked is not known, and so cannot."""
    needed: int
    """Even benign labels that it takes at least."""
    bounded: float
    """An uncertified threshold from all traffic, without labels: at most the share `target_fpr` of all decisions is
    above it. Where harmful prompts are above it at least as often as benign ones, the share of benign ones is no more.
    The number is that of this sample and has no confidence. NaN without traffic.
    """
    traffic: int
    """Decisions with a score."""

    @property
    def missing(self) -> int:
        """How many more even benign labels are needed; 0 where there are enough."""
        return max(self.needed - self.even, 0)


def target(recent: Recent, scores: npt.NDArray[np.float64], target_fpr: float, confidence: float = 0.95) -> Target:
    """Return the threshold of `scores` `[N]`, which are those of the decisions in `recent`, for a rate to keep.

    Decisions whose score is no finite number have no part. Scores of a probe are `recent.columns[name]`; those of a
    combination as a policy has it, `guard.tuning.judged.columns_for(recent, rules)[name]`. The promise holds for one
    rate that was chosen beforehand, for traffic like that of which the labels are. Raises `CalibrationError` for a rate
    or a confidence that is not between 0 and 1.
    """
    needed = minimum_negatives(target_fpr, confidence)
    prompts = np.isfinite(scores) & (recent.judged != "answer")
    benign = prompts & (recent.labels == Label.BENIGN)
    # Thinned among all labels, so that the sample is even whatever the labels say.
    labelled = np.flatnonzero(prompts & (recent.labels != None))  # noqa: E711 - of each element
    sample = even(recent.keys[labelled], recent.chances[labelled], recent.sources[labelled])
    rows = labelled[sample.stays]
    rows = rows[benign[rows]]
    certified = certify(scores[rows], target_fpr, confidence) if len(rows) >= needed else None
    return Target(
        target_fpr=target_fpr,
        confidence=confidence,
        certified=certified,
        benign=int(np.count_nonzero(benign)),
        even=len(rows),
        unknown=int(np.count_nonzero(benign & ~np.isfinite(recent.chances))),
        needed=needed,
        bounded=bounded(scores[prompts], target_fpr),
        traffic=int(np.count_nonzero(prompts)),
    )


def bounded(scores: npt.NDArray[np.float64], share: float) -> float:
    """Return the lowest of `scores` `[N]` that at most the given share of them is above; NaN where N is 0."""
    if not 0.0 < share < 1.0:
        raise CalibrationError(
            f"{share} is not between 0 and 1", field="target_fpr", remedy="give a share such as 0.01"
        )
    if not len(scores):
        return float("nan")
    above = int(np.floor(share * len(scores) * (1 + 1e-12)))
    return float(np.sort(scores)[len(scores) - 1 - above])
