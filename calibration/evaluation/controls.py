"""Controls: the cheap explanations that a probe has to beat before anyone should believe it."""

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
import torch

from calibration.evaluation.evaluate import ControlReport, control
from calibration.evaluation.sentence_embedding import PACKAGE, SentenceEncoder
from calibration.fitting.bag_of_words import tfidf_scores
from calibration.fitting.fitted import FittedProbe
from calibration.fitting.metrics import auroc
from calibration.fitting.training_set import NO_REFUSALS, TrainingSet
from calibration.methods.classifiers.linear_classifiers import fit_logistic
from calibration.prompts.template import EncodedPrompts
from calibration.recording.places import place_of, readout_at
from calibration.recording.request_scores import RequestScores
from probes.manifest import Probe

_NUM_DRAWS = 5
_SEED = 20_260
_MOST_EMBEDDED = 2000
"""Training prompts per class for the embedding's classifier, which has 384 numbers to learn."""
_RANDOM, _SHUFFLED = "control_random", "control_shuffled"


def random_probes(like: Probe, hidden_size: int) -> list[FittedProbe]:
    """Return linear probes in random directions that read where `like` reads."""
    generator = torch.Generator().manual_seed(_SEED)
    width = like.width or hidden_size
    return [
        FittedProbe(
            _linear(like, f"{_RANDOM}_{draw}", 0.0),
            torch.randn(len(like.layers), 1, width, generator=generator) / width**0.5,
        )
        for draw in range(_NUM_DRAWS)
    ]


def _linear(like: Probe, name: str, bias: float) -> Probe:
    readout = readout_at("content") if like.readout.kind == "attention" else like.readout
    plain = {"channels": 1, "head": "sum", "scale": 1.0, "readout": readout, "evidence": {}}
    return like.model_copy(update=plain | {"name": name, "bias": bias})


def shuffled_probes(like: Probe, training: TrainingSet) -> list[FittedProbe]:
    """Return logistic probes that read where `like` reads, fitted on labels shuffled among the prompts."""
    rng = np.random.default_rng(_SEED)
    where = place_of(like.readout)
    if where is None:
        raise ValueError(f"nothing is recorded of what {like.name!r} reads")
    rows = training.held(training.fit)
    features = training.features(like.layers[0], where, rows)
    probes = []
    for draw in range(_NUM_DRAWS):
        linear = fit_logistic(features, rng.permutation(training.harmful[rows]))
        spec = _linear(like, f"{_SHUFFLED}_{draw}", linear.bias)
        probes.append(FittedProbe(spec, torch.from_numpy(linear.weight.astype(np.float32))[None, None]))
    return probes


def report_controls(
    prompts: EncodedPrompts,
    scored: RequestScores,
    names: Sequence[str],
    *,
    train: EncodedPrompts | None = None,
    embed: bool = True,
) -> dict[str, ControlReport]:
    """Return every control that the arguments allow: `names` are the bank's columns, `train` gives TF-IDF its labels.

    `embed` asks for the sentence embedding, too, an encoder over every prompt: minutes on a CPU.
    """
    harmful = prompts.harmful
    reports = {
        "prompt_length": control("number of tokens", prompts.lengths.astype(np.float64), harmful),
        **_drawn(
            _RANDOM, "random directions, mean of 5, each taken in its better sense", scored.scores, names, harmful
        ),
        **_drawn(_SHUFFLED, "logistic on shuffled labels, mean of 5, better sense", scored.scores, names, harmful),
    }
    if embed and train is not None and (embedded := embedding_scores(train, prompts)) is not None:
        reports["sentence_embedding"] = control("all-MiniLM-L6-v2 embedding, logistic regression", embedded, harmful)
    if train is not None:
        reports["tfidf"] = control("words and word pairs, logistic regression", tfidf_scores(train, prompts), harmful)
    if np.isfinite(scored.refusal).all():
        reports["first_token_refusal"] = control(
            "the model's own first-token refusal log-odds", scored.refusal, harmful
        )
    return reports


def control_notes(reports: Mapping[str, ControlReport], *, embed: bool) -> list[str]:
    """Say which of the controls that training prompts allow could not be measured, and why."""
    notes = []
    if embed and "sentence_embedding" not in reports:
        notes.append(f"no control sentence_embedding: the Python package {PACKAGE} is not installed")
    if "first_token_refusal" not in reports:
        notes.append(f"no control first_token_refusal: {NO_REFUSALS}")
    return notes


def _drawn(
    prefix: str, what: str, scores: npt.NDArray[np.float32], names: Sequence[str], harmful: npt.NDArray[np.bool_]
) -> dict[str, ControlReport]:
    columns = [column for column, name in enumerate(names) if name.startswith(prefix)]
    if not columns:
        return {}
    areas = [auroc(scores[harmful, column], scores[~harmful, column]) for column in columns]
    mean = float(np.mean([max(area, 1 - area) for area in areas]))
    return {prefix.removeprefix("control_"): ControlReport(what=what, auroc=mean, tpr_at_fpr={})}


def embedding_scores(train: EncodedPrompts, prompts: EncodedPrompts) -> npt.NDArray[np.float64] | None:
    """Return scores `[N]` of `prompts` by their sentence embeddings, as learned from `train`; none without an
    encoder.
    """
    encoder = SentenceEncoder.load()
    if encoder is None:
        return None
    rng = np.random.default_rng(_SEED)
    sides = [rng.permutation(np.flatnonzero(train.harmful == label))[:_MOST_EMBEDDED] for label in (False, True)]
    learned = train.subset(np.sort(np.concatenate(sides)))
    linear = fit_logistic(encoder.encode([prompt.text for prompt in learned.prompts]), learned.harmful)
    return linear(encoder.encode([prompt.text for prompt in prompts.prompts]))
