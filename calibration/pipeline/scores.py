"""Scores by name: what each probe and each control gave the prompts of a split."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
from safetensors.numpy import load_file, save_file

from calibration.fitting.logit_scale import apply
from calibration.pipeline.kept import Codec
from calibration.prompts.template import EncodedPrompts
from calibration.recording.request_scores import RequestScores
from calibration.recording.stage_file import written_whole
from probes.manifest import Platt


@dataclass(frozen=True, slots=True)
class Scored:
    """The scores of one split's prompts."""

    prompts: EncodedPrompts
    names: tuple[str, ...]
    """Of the probes, then of the control probes: the columns of `requests.scores`."""
    requests: RequestScores

    def by(self, names: Sequence[str]) -> npt.NDArray[np.float32]:
        """Return the scores `[N, len(names)]` of these probes."""
        return np.ascontiguousarray(self.requests.scores[:, [self.names.index(name) for name in names]])

    def harmless(self, names: Sequence[str]) -> npt.NDArray[np.float32]:
        """Return the scores of the harmless prompts."""
        return self.by(names)[~self.prompts.harmful]

    def harmful(self, names: Sequence[str]) -> npt.NDArray[np.float32]:
        """Return the scores of the harmful prompts."""
        return self.by(names)[self.prompts.harmful]

    def mapped(self, maps: Sequence[Platt]) -> "Scored":
        """Return the same with the maps applied to the first names' scores; those of controls stay."""
        return replace(self, requests=replace(self.requests, scores=apply(maps, self.requests.scores)))


def _save(scores: RequestScores, path: Path) -> None:
    with written_whole(path) as staging:
        save_file({"scores": scores.scores, "refusal": scores.refusal}, staging)


def _load(path: Path) -> RequestScores:
    content = load_file(path)
    return RequestScores(content["scores"], content["refusal"])


REQUEST_SCORES = Codec(".safetensors", _save, _load)
