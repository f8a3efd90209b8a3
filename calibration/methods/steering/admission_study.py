"""The study of all steering vectors that were fitted, those left out of the artifact among them."""

from collections.abc import Sequence
from dataclasses import dataclass

from calibration.fitting.fitted import FittedSteering
from calibration.fitting.study import Chart, Series, StudyResult, Table
from calibration.methods.steering.dose_response import Dose

RESULT = "steering"


@dataclass(frozen=True, slots=True)
class Measured:
    """A vector with its evidence, its curve (strength 0 first), and the reason to leave it out if there is one."""

    steering: FittedSteering
    curve: tuple[Dose, ...]
    objection: str | None


def steering_study(measured: Sequence[Measured], budget: float, num_harmless: int) -> StudyResult:
    """Return the trade of every vector: harmful prompts refused against the change of harmless answers."""
    kept = [each.steering.spec.name for each in measured if not each.objection]
    before = measured[0].curve[0].refused_harmful
    return StudyResult(
        name=RESULT,
        title="What steering buys, and what harmless prompts pay",
        finding=(
            f"Of {len(measured)} steering vectors {len(kept)} go into the artifact: {', '.join(kept) or 'none'}. "
            f"Untouched, the model refuses {before:.0%} of harmful prompts; a vector may change the first token of "
            f"harmless ones by {budget:g} nats on average, measured on {num_harmless} of the validation split."
        ),
        charts=(
            Chart(
                name="trade",
                caption="Each point is a strength; up and to the left is better. At most 64 validation prompts a "
                "class.",
                x_label="KL of the first token on harmless prompts, nats",
                y_label="share of harmful prompts refused",
                series=tuple(_series(each) for each in measured),
            ),
        ),
        tables=(_table(measured),),
    )


def _series(each: Measured) -> Series:
    return Series(
        name=each.steering.spec.name,
        x=tuple(dose.kl_harmless for dose in each.curve),
        y=tuple(dose.refused_harmful for dose in each.curve),
    )


def _table(measured: Sequence[Measured]) -> Table:
    columns = ("recommended", "refused_harmful", "refused_benign", "kl_benign", "kl_continuation", "kl_behind_rule")
    rows = []
    for each in measured:
        spec = each.steering.spec
        numbers = (round(spec.evidence[column], 4) if column in spec.evidence else "" for column in columns)
        gate = spec.gate or "none"
        rows.append(
            (spec.name, spec.operator, gate, *numbers, round(spec.cos_refusal, 3), each.objection or "in the artifact")
        )
    return Table(
        name="vectors", columns=("vector", "operator", "gate", *columns, "cos_refusal", "verdict"), rows=tuple(rows)
    )
