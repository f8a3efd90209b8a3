"""How early harm can be read: several kinds of classifier at every block, drawn beside what words alone reach."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from calibration.fitting.bag_of_words import tfidf_scores
from calibration.fitting.metrics import auroc
from calibration.fitting.study import Chart, Series, StudyResult, Table
from calibration.fitting.training_set import TrainingSet


@dataclass(frozen=True, slots=True)
class BlockScore:
    """How well one kind reads one block, on selection prompts."""

    accuracy: float
    """The two classes weighted equally."""
    auroc: float
    recall: float
    """At 1 % false positives."""


BlockScores = Mapping[str, Sequence[BlockScore]]
"""By kind, block by block."""


def block_study(training: TrainingSet, marks: BlockScores, num_fitted: int) -> StudyResult:
    """Return the study of `marks`, the classifiers having been fitted on `num_fitted` prompts."""
    select = training.prompts.subset(training.select)
    words = tfidf_scores(training.prompts.subset(training.fit), select)
    area = auroc(words[select.harmful], words[~select.harmful])
    blocks = tuple(map(float, range(training.chat.num_layers)))
    aurocs = [Series(name=kind, x=blocks, y=tuple(mark.auroc for mark in each)) for kind, each in marks.items()]
    return StudyResult(
        name="weak_classifiers",
        title="How early harm can be read",
        finding=_finding(marks, area, num_fitted, len(training.select)),
        charts=(
            Chart(
                name="accuracy",
                caption="Accuracy at the last token on selection prompts, the two classes weighted equally.",
                x_label="decoder block",
                y_label="accuracy",
                series=tuple(
                    Series(name=kind, x=blocks, y=tuple(mark.accuracy for mark in each)) for kind, each in marks.items()
                ),
            ),
            Chart(
                name="auroc",
                caption="AUROC on the same prompts, beside what their words and word pairs reach.",
                x_label="decoder block",
                y_label="AUROC",
                series=(*aurocs, Series(name="words alone", x=blocks, y=(area,) * len(blocks))),
            ),
        ),
        tables=(_table(marks),),
    )


def _finding(marks: BlockScores, words: float, num_fitted: int, num_select: int) -> str:
    best = {kind: max(range(len(each)), key=lambda block: each[block].auroc) for kind, each in marks.items()}
    shown = ", ".join(
        f"{kind} {marks[kind][block].auroc:.3f} at block {block} ({marks[kind][0].auroc:.3f} at block 0)"
        for kind, block in best.items()
    )
    return (
        f"Fitted on {num_fitted} prompts and measured on {num_select} selection prompts, the best AUROC at the last "
        f"token: {shown}; words alone reach {words:.3f}. Selection prompts share their sources with the fit prompts."
    )


def _table(marks: BlockScores) -> Table:
    blocks = range(len(next(iter(marks.values()))))
    return Table(
        name="accuracy and AUROC, by block",
        columns=("block", *(f"{kind}, {what}" for kind in marks for what in ("accuracy", "AUROC"))),
        rows=tuple(
            (block, *(value for each in marks.values() for value in (each[block].accuracy, each[block].auroc)))
            for block in blocks
        ),
    )
