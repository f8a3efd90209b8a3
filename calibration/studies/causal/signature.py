"""The jailbreak signature: what the model takes for harmful and does not refuse (arXiv 2507.11878, 2607.00572).

Prompts lie in the plane of the harmfulness and the refusal probe. Harm high with refusal low is where a jailbreak that
suppresses refusal, and not the recognition of harm, has to lie. Certified cuts divide the plane, test prompts fill it.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from calibration.fitting.fitted import Fitted
from calibration.fitting.metrics import certified_thresholds, rate
from calibration.fitting.study import Chart, Series, Skipped, StudyResult, Table
from calibration.fitting.training_set import NO_REFUSALS
from calibration.prompts.template import EncodedPrompts
from calibration.recording.request_scores import RequestScores
from probes.manifest import Probe, Rate

RESULT = "jailbreak_signature"
_HARM, _REFUSAL = "harmfulness", "refusal"
_MOST_DRAWN = 150
_JAILBREAK = "jailbreak"
_SEED = 20_260
_QUADRANTS = (
    "harm high, refusal high",
    "harm high, refusal low (the signature)",
    "harm low, refusal high",
    "harm low, refusal low",
)
_Mask = npt.NDArray[np.bool_]


def signature_study(
    prompts: EncodedPrompts, scored: RequestScores, found: Fitted, benign: npt.NDArray[np.float32]
) -> tuple[StudyResult, ...]:
    """Return where N prompts lie; `benign` `[M, K]` are the scores that certify the cuts.

    Raises `Skipped` where one of the two probes, the model's own refusals, or a certified cut is missing.
    """
    names = [probe.spec.name for probe in found.probes]
    missing = [name for name in (_HARM, _REFUSAL) if name not in names]
    if missing:
        raise Skipped(f"there is no probe {' and no probe '.join(map(repr, missing))}")
    if not np.isfinite(scored.refusal).all():
        raise Skipped(NO_REFUSALS)
    columns = [names.index(_HARM), names.index(_REFUSAL)]
    cuts = [thresholds[0].value for column in columns if (thresholds := certified_thresholds(benign[:, column]))]
    if len(cuts) != len(columns):
        raise Skipped(f"{len(benign)} harmless validation prompts certify no threshold")
    wanted, which = _jailbreaks(prompts)
    groups = {name: wanted & mask for name, mask in _groups(prompts.harmful, scored.refusal > 0).items()}
    plane = scored.scores[:, columns].astype(np.float64)
    table = {name: _rates(plane[mask], cuts) for name, mask in groups.items() if mask.any()}
    chart = _chart(plane, groups, which, cuts)
    spec = found.probes[columns[0]].spec
    return (_study(table, chart, which, spec),)


def _jailbreaks(prompts: EncodedPrompts) -> tuple[_Mask, str]:
    """Return which prompts say in source or category that they are jailbreaks; all where none does."""
    said = [f"{each.source or ''} {each.category or ''}".lower() for each in prompts.prompts]
    mask = np.array([any(word.startswith(_JAILBREAK) for word in each.split()) for each in said])
    return (mask, "jailbreak prompts") if mask.any() else (np.ones(len(said), dtype=bool), "prompts")


def _groups(harmful: _Mask, refused: _Mask) -> dict[str, _Mask]:
    return {
        "harmful, complied with": harmful & ~refused,
        "harmful, refused": harmful & refused,
        "harmless": ~harmful,
    }


def _rates(plane: npt.NDArray[np.float64], cuts: Sequence[float]) -> list[Rate]:
    harm, refusal = (plane[:, axis] > cuts[axis] for axis in (0, 1))
    quadrants = (harm & refusal, harm & ~refusal, ~harm & refusal, ~harm & ~refusal)
    return [rate(int(each.sum()), len(plane)) for each in quadrants]


def _chart(plane: npt.NDArray[np.float64], groups: dict[str, _Mask], which: str, cuts: Sequence[float]) -> Chart:
    series = []
    for name, mask in groups.items():
        rows = np.random.default_rng(_SEED).permutation(np.flatnonzero(mask))[:_MOST_DRAWN]
        points = np.round(plane[rows], 4)
        series.append(Series(name=name, x=tuple(points[:, 0].tolist()), y=tuple(points[:, 1].tolist())))
    return Chart(
        name="plane",
        caption=(
            f"Test split, {which}, at most {_MOST_DRAWN} of each group. Certified 1 % cuts: harmfulness {cuts[0]:.2f}, "
            f"refusal {cuts[1]:.2f}."
        ),
        x_label="harmfulness, log-odds",
        y_label="refusal, log-odds",
        series=tuple(each for each in series if each.x),
        scatter=True,
    )


def _study(table: dict[str, list[Rate]], chart: Chart, which: str, harm: Probe) -> StudyResult:
    share = {name: rates[1] for name, rates in table.items()}
    said = "; ".join(
        f"{name} {each.value:.1%} ({each.low:.1%} to {each.high:.1%}, n = {each.count})" for name, each in share.items()
    )
    cosine = harm.evidence.get("cos_refusal", float("nan"))
    return StudyResult(
        name=RESULT,
        title="Harm recognised, refusal absent",
        finding=(
            f"Share of {which} of the test split above the certified 1 % cut of harmfulness and below that of refusal: "
            f"{said}. The two directions have cosine {cosine:.2f}. Whether a prompt is refused is read from its first "
            "token."
        ),
        charts=(chart,),
        tables=(
            Table(
                name="quadrants",
                columns=("prompts", "n", *_QUADRANTS),
                rows=tuple(
                    (name, rates[0].count, *(f"{each.value:.1%} ({each.low:.1%}–{each.high:.1%})" for each in rates))
                    for name, rates in table.items()
                ),
            ),
        ),
    )
