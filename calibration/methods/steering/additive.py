"""Vectors that are added: one pair of prompts, the mean over many, and a set against everything.

- ActAdd (arXiv 2308.10248): `h(prompt+) - h(prompt-)` of a single pair.
- CAA (arXiv 2312.06681): the mean of that difference over pairs that differ in the behaviour and in little else.
- Mean-centring (arXiv 2312.03813): mean of the target set minus mean of a generic set, here all training prompts, which
  takes out what all activations share.

All are read at the prompt's last position, and added there and after it. Our pairs are found, not written: each refused
prompt goes with the answered one that is most like it in its words (TF-IDF), so that the topic cancels.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from sklearn.feature_extraction.text import TfidfVectorizer

from calibration.fitting.fitted import FittedSteering
from calibration.fitting.training_set import Rows, TrainingSet
from calibration.methods.steering.contrast import SteeringContrast, Streams


@dataclass(frozen=True, slots=True)
class StreamPairs:
    """Streams `[N, D]` of refused prompts and, row by row, of the answered prompts most like them."""

    refused: Streams
    answered: Streams
    likeness: npt.NDArray[np.float64]
    """Cosine of their TF-IDF vectors `[N]`."""

    @classmethod
    def of(cls, contrast: SteeringContrast) -> "StreamPairs":
        """Pair every refused prompt; an answered one may serve several."""
        texts = [_texts(contrast.training, rows) for rows in (contrast.refused, contrast.answered)]
        partners, likeness = nearest(texts[0], texts[1])
        return cls(contrast.streams(contrast.refused), contrast.streams(contrast.answered)[partners], likeness)


def fit_additive(contrast: SteeringContrast, pairs: StreamPairs) -> list[FittedSteering]:
    """Return vectors `actadd`, `caa` and `centred`."""
    differences, closest = pairs.refused - pairs.answered, int(pairs.likeness.argmax())
    generic = contrast.streams(contrast.training.fit).mean(axis=0)
    return [
        contrast.vector(
            "actadd",
            "activation difference of one pair",
            {"vector": differences[closest]},
            evidence={"pair_likeness": float(pairs.likeness[closest])},
        ),
        contrast.vector(
            "caa",
            "mean activation difference over pairs",
            {"vector": differences.mean(axis=0)},
            evidence={"pairs": float(len(differences)), "pair_likeness": float(pairs.likeness.mean())},
        ),
        contrast.vector(
            "centred", "mean of refused minus mean of all prompts", {"vector": pairs.refused.mean(axis=0) - generic}
        ),
    ]


def nearest(texts: Sequence[str], others: Sequence[str]) -> tuple[Rows, npt.NDArray[np.float64]]:
    """Return for each text the index of the most similar other one, and the cosine of their TF-IDF vectors."""
    vectorizer = TfidfVectorizer(sublinear_tf=True).fit([*texts, *others])
    likeness = (vectorizer.transform(texts) @ vectorizer.transform(others).T).toarray()
    return likeness.argmax(axis=1), likeness.max(axis=1)


def _texts(training: TrainingSet, rows: Rows) -> list[str]:
    return [training.prompts.prompts[row].text for row in rows]
