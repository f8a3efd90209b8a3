"""From fitted probes to watches: what is usual along harmless answers, which watches are worth keeping, what they
promise.

Training prompts' answers say what is usual and choose; validation prompts' answers certify, and fit nothing; test
prompts' answers only report. All answers are greedy, by Transformers, whoever scores the prompts.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from calibration.fitting.bank import tensors_of
from calibration.fitting.fitted import Fitted, FittedProbe
from calibration.fitting.metrics import auroc, evaluate_scores
from calibration.fitting.study import StudyResult
from calibration.fitting.training_set import TrainingSet
from calibration.methods.watches.along import answer_scores
from calibration.methods.watches.answering import Answers, answer_prompts
from calibration.methods.watches.sides import LabelledAnswers, labelled
from calibration.methods.watches.usual import usual_levels
from calibration.methods.watches.watch_study import RESULT, study_watches
from calibration.model.openings import refusal_openings
from calibration.prompts.template import EncodedPrompts
from probes.answer_reading import WatchBank
from probes.artifact import BENIGN_ANSWERS, HARMFUL_ANSWERS
from probes.errors import CalibrationError
from probes.manifest import Evaluation, Watch
from probes.readout import Readout
from probes.scoring import ProbeBank

READOUTS = (Readout(kind="ema", alpha=0.1), Readout(kind="swim", window=16))
FEWEST_TOKENS = 2
"""Of an answer of one token nothing is read."""
_MOST_TRAINING = 500
"""Training prompts of each class that are answered."""
_FEWEST_TO_CHOOSE = 16
"""Harmful training prompts that must be answered for watches to be chosen by them."""
_LEAST_AUROC = 0.6


@dataclass(frozen=True, slots=True)
class CalibratedWatches:
    """What the artifact holds of watches, and what was learned."""

    watches: tuple[Watch, ...] = ()
    tensors: Mapping[str, torch.Tensor] = field(default_factory=dict)
    """Named as in an artifact; none where there is no watch."""
    studies: tuple[StudyResult, ...] = ()
    notes: tuple[str, ...] = ()
    not_asked: Mapping[str, str] = field(default_factory=dict)
    """The study of watches and why there is none, where answers were to be watched."""

    @classmethod
    def none(cls, reason: str) -> "CalibratedWatches":
        """Return that there is no watch, and why."""
        return cls(notes=(f"no watch: {reason}",), not_asked={RESULT: reason})


def require_tokens(most_tokens: int | None) -> None:
    """Raise `CalibrationError` where answers are to be watched and are too short for it."""
    if most_tokens is not None and most_tokens < FEWEST_TOKENS:
        raise CalibrationError(
            f"of an answer of {most_tokens} tokens nothing can be read",
            field="--watch-answers",
            remedy=f"give at least {FEWEST_TOKENS}: the tokens of a long answer, such as 128",
        )


def watch_answers(
    training: TrainingSet, found: Fitted, splits: Mapping[str, EncodedPrompts], most_tokens: int, folder: Path
) -> CalibratedWatches:
    """Return the watches over the probes `found`, for answers of at most `most_tokens` tokens.

    `splits` are the validation and test prompts by name. What is finished is kept in `folder` (see `answer_prompts`).
    """
    probes = [probe for probe in found.probes if _can_watch(probe)]
    if not probes:
        return CalibratedWatches.none("no probe that detects harm has one channel and a head that is a sum")
    bank = _bank_of(probes)
    asked = {"train": _to_learn_from(training), **splits}
    answers = {
        split: answer_prompts(training.chat, bank, prompts, most_tokens, folder / split, f"answering {split} prompts")
        for split, prompts in asked.items()
    }
    openings = _refusals(training, answers["train"])
    sides = {split: LabelledAnswers.of(each, openings) for split, each in answers.items()}
    unread = [split for split in ("train", "validation") if not len(sides[split].harmless.lengths)]
    if unread:
        return CalibratedWatches.none(f"all answers to harmless {unread[0]} prompts end with their first token")
    return _watch(bank, _specs(probes, most_tokens), sides)


def _can_watch(probe: FittedProbe) -> bool:
    spec = probe.spec
    return (spec.channels, spec.head, spec.role, spec.category) == (1, "sum", "detects", None)


def _bank_of(probes: Sequence[FittedProbe]) -> ProbeBank:
    return ProbeBank.of([probe.spec for probe in probes], tensors_of(probes))


def _specs(probes: Sequence[FittedProbe], most_tokens: int) -> list[Watch]:
    return [
        Watch(name=f"{probe.spec.name}_{readout.kind}", probe=probe.spec.name, readout=readout, max_tokens=most_tokens)
        for probe in probes
        for readout in READOUTS
    ]


def _to_learn_from(training: TrainingSet) -> EncodedPrompts:
    everything = np.arange(len(training.prompts.prompts))
    sides = [training.sample(everything, harmful=label, most=_MOST_TRAINING) for label in (False, True)]
    return training.prompts.subset(np.concatenate(sides))


def _refusals(training: TrainingSet, learned: Answers) -> frozenset[tuple[int, ...]]:
    """Return how the model's refusals open, as its answers to training prompts tell."""
    harmful = learned.prompts.harmful
    sides = [[learned.tokens[row] for row in np.flatnonzero(harmful == label)] for label in (True, False)]
    return refusal_openings(sides[0], sides[1], training.refusal_tokens)


def _watch(bank: ProbeBank, specs: Sequence[Watch], sides: Mapping[str, LabelledAnswers]) -> CalibratedWatches:
    watches, tensors = _measured(bank, specs, sides["train"])
    kept, notes = _chosen(bank, watches, tensors, sides["train"])
    if not kept:
        return CalibratedWatches(notes=notes, not_asked={RESULT: notes[0].removeprefix("no watch: ")})
    reader, channels = WatchBank.of(kept, tensors), [bank.channel(watch.probe) for watch in kept]
    scores = {
        split: [answer_scores(reader, answers) for answers in sides[split].columns(channels)]
        for split in sides
        if split != "train"
    }
    kept = tuple(
        watch.model_copy(update={"evaluation": _evaluated(scores, column)}) for column, watch in enumerate(kept)
    )
    study = study_watches(WatchBank.of(kept, tensors), channels, sides, scores)
    harmless, harmful = map(torch.from_numpy, scores["validation"])
    own = {name: tensors[name] for watch in kept for name in watch.shapes}
    return CalibratedWatches(kept, own | {BENIGN_ANSWERS: harmless, HARMFUL_ANSWERS: harmful}, (study,), notes)


def _measured(
    bank: ProbeBank, specs: Sequence[Watch], learned: LabelledAnswers
) -> tuple[tuple[Watch, ...], dict[str, torch.Tensor]]:
    """Return the watches with the tensors that say what is usual."""
    harmless, _ = learned.columns([bank.channel(watch.probe) for watch in specs])
    centre, spread = usual_levels(WatchBank.unmeasured(specs), harmless, specs[0].max_tokens)
    tensors = {}
    for column, watch in enumerate(specs):
        for name, values in (("centre", centre), ("spread", spread)):
            tensors[f"watch.{watch.name}.{name}"] = torch.from_numpy(values[:, column].copy())
    return tuple(specs), tensors


def _chosen(
    bank: ProbeBank, watches: tuple[Watch, ...], tensors: Mapping[str, torch.Tensor], learned: LabelledAnswers
) -> tuple[tuple[Watch, ...], tuple[str, ...]]:
    """Return the watches that tell training prompts' answers apart, and notes on the others."""
    count = len(learned.harmful.lengths)
    if count < _FEWEST_TO_CHOOSE:
        asked = learned.counts["harmful"].prompts
        return watches, (
            f"watches: all {len(watches)} are kept, chosen by nothing: of {asked} harmful training prompts the model "
            f"answered {count}, and {_FEWEST_TO_CHOOSE} are needed",
        )
    channels = [bank.channel(watch.probe) for watch in watches]
    harmless, harmful = (answer_scores(WatchBank.of(watches, tensors), side) for side in learned.columns(channels))
    areas = [auroc(harmful[:, column], harmless[:, column]) for column in range(len(watches))]
    kept = tuple(watch for watch, area in zip(watches, areas, strict=True) if area >= _LEAST_AUROC)
    dropped = [f"{w.name} ({area:.2f})" for w, area in zip(watches, areas, strict=True) if area < _LEAST_AUROC]
    if not dropped:
        return kept, ()
    beginning = "watches left out" if kept else "no watch: all were left out"
    return kept, (
        f"{beginning}, as their AUROC on answers to training prompts is below {_LEAST_AUROC:g}: {', '.join(dropped)}",
    )


def _evaluated(scores: Mapping[str, Sequence[npt.NDArray[np.float32]]], column: int) -> tuple[Evaluation, ...]:
    """Return the numbers of each split in which there are answers of both kinds."""
    return tuple(
        evaluate_scores(*labelled(harmless[:, column], harmful[:, column]), split)
        for split, (harmless, harmful) in scores.items()
        if len(harmless) and len(harmful)
    )
