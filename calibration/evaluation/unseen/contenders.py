"""Contenders: the probes and controls that meet sources they have not seen, each fitted on what a fold leaves.

Probes that are chosen by interventions on the model (the refusal direction) are not among them: each family would cost
a whole selection.
"""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from safetensors.numpy import load_file, save_file

from calibration.evaluation.sentence_embedding import SentenceEncoder
from calibration.evaluation.unseen.left_out import LeftOut
from calibration.fitting.bag_of_words import tfidf_scores
from calibration.fitting.contract import Method
from calibration.fitting.fitted import FittedProbe
from calibration.fitting.training_set import Rows, TrainingSet
from calibration.methods.classifiers.linear_classifiers import fit_logistic
from calibration.methods.tokens.token_level import score_rows
from calibration.model.refusal_metric import refusal_metrics
from calibration.recording.places import place_of
from calibration.recording.stage_file import written_whole
from probes.errors import CalibrationError
from probes.scoring import ProbeBank, score_of

TFIDF, EMBEDDING, REFUSAL = "tfidf", "sentence_embedding", "first_token_refusal"
CONTROLS = (TFIDF, EMBEDDING, REFUSAL)

Scores = npt.NDArray[np.floating]


@dataclass(frozen=True, slots=True)
class ControlInputs:
    """What controls need of all training prompts, worked out once."""

    embeddings: npt.NDArray[np.float32] | None
    """`[N, E]`; none where they were not asked for, or no encoder is installed."""
    refusal: npt.NDArray[np.float64] | None
    """The model's own refusal metric `[N]`; none where it does not refuse."""

    @classmethod
    def of(
        cls, training: TrainingSet, refusal_tokens: Sequence[int], path: Path, *, embed: bool = True
    ) -> "ControlInputs":
        """Ask the model how it would begin to answer each prompt, and `embed` them; what lies at `path` is not done
        again.
        """
        if not path.exists():
            asked: dict[str, npt.NDArray[np.floating]] = {}
            encoder = SentenceEncoder.load() if embed else None
            if encoder:
                asked["embeddings"] = encoder.encode([prompt.text for prompt in training.prompts.prompts])
            if refusal_tokens:
                asked["refusal"] = refusal_metrics(training.chat, training.prompts, refusal_tokens)
            with written_whole(path) as staging:
                # safetensors refuses an empty file, and there may be nothing to ask.
                save_file(asked or {"nothing": np.zeros(1)}, staging)
        found = load_file(path)
        return cls(found.get("embeddings"), found.get("refusal"))


def even_combination(methods: Sequence[Method], names: Collection[str]) -> dict[str, float]:
    """Return weights, in sum 1, that share out evenly by what probes read (`Method.reads`), among the probes `names`.

    Errors of probes that read different things are least alike, and no choice is made that traffic could prove wrong.
    Where all read the same, there is nothing to average: no weights.
    """
    kinds: dict[str, list[str]] = {}
    for method in methods:
        for name, what in method.reads.items():
            if name in names:
                kinds.setdefault(what, []).append(name)
    if len(kinds) < 2:
        return {}
    return {name: 1 / (len(kinds) * len(own)) for own in kinds.values() for name in own}


def probe_scores(fold: LeftOut, method: Method, rows: Rows) -> dict[str, Scores]:
    """Fit a method on what the fold leaves; return its probes' scores `[N]` on the training prompts `rows`, by name."""
    return dict(_scored(fold.training, method.fit(fold.training).probes, rows))


def control_scores(fold: LeftOut, beside: ControlInputs, rows: Rows) -> dict[str, Scores]:
    """Return the same of the controls."""
    training, learned = fold.training, np.concatenate([fold.training.fit, fold.training.select])
    scores: dict[str, Scores] = {TFIDF: tfidf_scores(training.prompts.subset(learned), training.prompts.subset(rows))}
    if beside.embeddings is not None:
        linear = fit_logistic(beside.embeddings[learned], training.harmful[learned])
        scores[EMBEDDING] = linear(beside.embeddings[rows])
    if beside.refusal is not None:
        scores[REFUSAL] = beside.refusal[rows]
    return scores


def _scored(training: TrainingSet, probes: Sequence[FittedProbe], rows: Rows) -> Iterator[tuple[str, Scores]]:
    """Yield probes' names and scores: from what is recorded, and those that need every token from one more pass."""
    for probe in filter(_is_recorded, probes):
        yield probe.spec.name, recorded_scores(training, probe)[rows]
    others = [probe for probe in probes if not _is_recorded(probe)]
    if others:
        scores = score_rows(training, others, rows)
        yield from ((probe.spec.name, column) for probe, column in zip(others, scores.T, strict=True))


def _is_recorded(probe: FittedProbe) -> bool:
    return place_of(probe.spec.readout) is not None and probe.spec.site == "resid_post"


def recorded_scores(training: TrainingSet, probe: FittedProbe) -> npt.NDArray[np.float64]:
    """Return a probe's scores `[N]` on all training prompts, from their recorded activations."""
    where = place_of(probe.spec.readout)
    if where is None or not _is_recorded(probe):
        raise CalibrationError(
            f"readout {probe.spec.readout.kind} at {probe.spec.site} cannot be had from what is recorded",
            field=probe.spec.name,
            remedy="score the prompts with `score_rows`, which passes them through the model",
        )
    parts = [
        training.project(layer, where, row.double().numpy().T)
        for layer, row in zip(probe.spec.layers, probe.weight, strict=True)
    ]
    [head] = ProbeBank.of([probe.spec], probe.tensors()).heads
    return score_of(probe.spec, np.sum(parts, axis=0), head)
