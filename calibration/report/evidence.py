"""Evidence: everything that a reviewer is shown about an artifact, kept inside it as `evidence.json`."""

from collections.abc import Sequence
from typing import Self

import numpy as np
import numpy.typing as npt
from pydantic import Field, ValidationError

from calibration.evaluation.evaluate import Report
from calibration.evaluation.separation import SeparationMap
from calibration.evaluation.unseen.unseen_sources import UnseenSources
from calibration.fitting.study import StudyResult
from calibration.methods.steering.dose_response import Dose
from calibration.recording.stage_file import Strict
from probes.artifact import Artifact
from probes.errors import ArtifactError

FILE = "evidence.json"
_DIGITS = 5


class SplitScores(Strict):
    """One probe's request scores on one split."""

    harmful: tuple[float, ...]
    harmless: tuple[float, ...]


class Evidence(Strict):
    """What calibration measured, beyond what a server needs."""

    report: Report
    separation: SeparationMap
    test_scores: dict[str, SplitScores]
    doses: dict[str, tuple[Dose, ...]]
    """By steering vector, strength ascending from 0."""
    studies: tuple[StudyResult, ...] = ()
    """What methods and studies found, in the order in which they ran."""
    not_asked: dict[str, str] = Field(default_factory=dict)
    """Studies that could not be asked of this model or of these prompts, by name, and why."""
    unseen: UnseenSources | None = None
    """Leave one source out, where it was asked for."""

    @classmethod
    def of(cls, artifact: Artifact) -> Self:
        """Read an artifact's evidence. Raises `ArtifactError` where it has none, or of another version."""
        try:
            return cls.model_validate_json(artifact.attachments[FILE])
        except KeyError as error:
            raise ArtifactError(
                "the artifact holds no evidence", field=FILE, remedy="calibrate again with this version of foreguard"
            ) from error
        except ValidationError as error:
            raise ArtifactError(
                f"the evidence is of another version of foreguard: {error.errors()[0]['msg']}",
                field=FILE,
                remedy="calibrate again with this version of foreguard",
            ) from error

    def to_file(self) -> bytes:
        """Return the content of `evidence.json`."""
        return (self.model_dump_json() + "\n").encode()


def split_scores(
    names: Sequence[str], scores: npt.NDArray[np.float32], harmful: npt.NDArray[np.bool_]
) -> dict[str, SplitScores]:
    """Return scores `[N, K]` with labels `[N]` by probe, rounded to what a plot can show."""
    rounded = np.round(scores.astype(np.float64), _DIGITS)
    return {
        name: SplitScores(
            harmful=tuple(rounded[harmful, column].tolist()), harmless=tuple(rounded[~harmful, column].tolist())
        )
        for column, name in enumerate(names)
    }
