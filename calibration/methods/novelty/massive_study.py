"""Which massive activations a model has, and which coordinates distances leave out for their sake."""

from collections.abc import Mapping, Sequence

from calibration.fitting.study import Chart, Series, StudyResult, Table
from calibration.fitting.training_set import TrainingSet
from calibration.methods.novelty.massive import RATIO, Mask, Peak
from calibration.recording.places import Where

_MOST_NAMED = 8


def massive_study(
    training: TrainingSet, peaks: Sequence[Peak], left_out: Mapping[tuple[int, Where], Mask]
) -> StudyResult:
    """Return the study of all blocks' `peaks`, and of the coordinates `left_out` by block and place."""
    blocks = tuple(map(float, range(len(peaks))))
    return StudyResult(
        name="massive_activations",
        title="Massive activations",
        finding=_finding(training, peaks, left_out),
        charts=(
            Chart(
                name="ratio",
                caption="The largest activation at any token over the median magnitude of its vector.",
                x_label="decoder block",
                y_label="times the median",
                series=(
                    Series(name="largest", x=blocks, y=tuple(peak.ratio for peak in peaks)),
                    Series(name="called massive", x=blocks, y=(RATIO,) * len(blocks)),
                ),
            ),
        ),
        tables=(
            Table(
                name="largest activation, by block",
                columns=("block", "times the median", "coordinate", "token", "massive at any token"),
                rows=tuple(
                    (block, peak.ratio, peak.coordinate, peak.position, _named(peak.massive))
                    for block, peak in enumerate(peaks)
                ),
            ),
            Table(
                name="coordinates left out",
                columns=("block", "place", "coordinates"),
                rows=tuple(
                    (layer, "content" if where == "content" else "last token", _named(mask))
                    for (layer, where), mask in left_out.items()
                ),
            ),
        ),
    )


def _finding(training: TrainingSet, peaks: Sequence[Peak], left_out: Mapping[tuple[int, Where], Mask]) -> str:
    block = max(range(len(peaks)), key=lambda index: peaks[index].ratio)
    peak, most = peaks[block], max(int(mask.sum()) for mask in left_out.values())
    seen = (
        f"Over all tokens of at most 64 fit prompts the largest activation is {peak.ratio:.0f} times the median "
        f"magnitude of its vector (block {block}, coordinate {peak.coordinate}, token {peak.position}); {RATIO:.0f} "
        "times is massive. "
    )
    if not most:
        return (
            seen + f"No coordinate is left out of a distance, here or in the recorded {len(training.fit)} fit prompts."
        )
    return seen + (
        f"With those massive in the recorded {len(training.fit)} fit prompts, at most {most} of "
        f"{training.chat.hidden_size} coordinates are left out of a distance."
    )


def _named(mask: Mask) -> str:
    found = mask.nonzero()[0].tolist()
    shown = ", ".join(map(str, found[:_MOST_NAMED]))
    return f"{shown}, and {len(found) - _MOST_NAMED} more" if len(found) > _MOST_NAMED else shown or "none"
