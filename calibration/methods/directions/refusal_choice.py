"""The choice of the refusal direction, laid open: every candidate's three numbers by block and position."""

from collections.abc import Callable, Sequence

from calibration.fitting.study import Chart, Series, StudyResult, Table
from calibration.fitting.training_set import TrainingSet
from calibration.methods.directions.refusal_candidates import MAXIMUM_KL, Candidate, CandidateEvaluator
from calibration.prompts.template import template_suffix

RESULT = "refusal_choice"


def choice_study(
    training: TrainingSet,
    evaluator: CandidateEvaluator,
    judged: Sequence[Candidate],
    chosen: Candidate | None,
    *,
    num_contrast: int,
) -> StudyResult:
    """Return the study of `judged`, with their numbers at strength 1; `num_contrast` prompts gave the means."""
    names = _names(training)
    return StudyResult(
        name=RESULT,
        title="How the refusal direction was chosen",
        finding=_finding(evaluator, judged, chosen, names, num_contrast),
        charts=(
            _chart(
                "bypass", "mean log-odds of refusal", f"Harmful prompts, ablated. {_sample(evaluator)}", judged, names
            ),
            _chart(
                "induce",
                "mean log-odds of refusal",
                f"Harmless prompts, added once. {_sample(evaluator)}",
                judged,
                names,
            ),
            _chart(
                "kl",
                "nats",
                f"Harmless prompts, ablated; the limit is {MAXIMUM_KL}. {_sample(evaluator)}",
                judged,
                names,
            ),
        ),
        tables=(_table(judged, chosen, names),),
    )


def _sample(evaluator: CandidateEvaluator) -> str:
    return f"{len(evaluator.harmful.prompts)} harmful and {len(evaluator.harmless.prompts)} harmless selection prompts."


def _names(training: TrainingSet) -> list[str]:
    """Return the template's positions, last one first, as a person reads them."""
    tokenizer = training.chat.tokenizer
    tokens = [tokenizer.decode([token]) for token in template_suffix(tokenizer)]
    return [f"{-1 - offset}: {token!r}" for offset, token in enumerate(reversed(tokens))]


def _chart(name: str, y_label: str, caption: str, judged: Sequence[Candidate], names: Sequence[str]) -> Chart:
    value: Callable[[Candidate], float] = {
        "bypass": lambda each: each.bypass,
        "induce": lambda each: each.induce,
        "kl": lambda each: each.kl,
    }[name]
    series = []
    for offset, position in enumerate(names):
        line = [each for each in judged if each.offset == offset]
        series.append(
            Series(
                name=position,
                x=tuple(float(each.layer) for each in line),
                y=tuple(value(each) for each in line),
            )
        )
    return Chart(
        name=name, caption=caption, x_label="decoder block", y_label=f"{name}, {y_label}", series=tuple(series)
    )


def _table(judged: Sequence[Candidate], chosen: Candidate | None, names: Sequence[str]) -> Table:
    return Table(
        name="candidates",
        columns=("block", "position", "bypass", "induce", "KL", "verdict"),
        rows=tuple(
            (each.layer, names[each.offset], each.bypass, each.induce, each.kl, _verdict(each, chosen))
            for each in judged
        ),
    )


def _verdict(each: Candidate, chosen: Candidate | None) -> str:
    faults = [
        fault
        for fault, is_so in (
            ("too deep", each.is_deep),
            ("does not induce", each.induce <= 0),
            ("disturbs harmless answers", each.kl >= MAXIMUM_KL),
        )
        if is_so
    ]
    if chosen is None or (each.layer, each.offset) != (chosen.layer, chosen.offset):
        return ", ".join(faults) or "qualifies"
    ways = [f"strength {chosen.strength:g}"] if chosen.strength != 1 else []
    ways += ["affine ablation"] if chosen.is_affine else []
    return f"chosen ({', '.join(ways)})" if ways else "chosen"


def _finding(
    evaluator: CandidateEvaluator,
    judged: Sequence[Candidate],
    chosen: Candidate | None,
    names: Sequence[str],
    num_contrast: int,
) -> str:
    kept = f"means over {num_contrast} prompts that the model treats as labelled; {_sample(evaluator)}"
    if chosen is None:
        return f"None of {len(judged)} candidates qualifies at any strength tried ({kept})"
    qualified = sum(each.qualifies for each in judged)
    how = " under affine ablation" if chosen.is_affine else ""
    before = [evaluator.refusal(prompts) for prompts in (evaluator.harmful, evaluator.harmless)]
    return (
        f"Of {len(judged)} candidates {qualified} qualify at strength 1; chosen is block {chosen.layer}, position "
        f"{names[chosen.offset]}, at strength {chosen.strength:g}{how}: bypass {chosen.bypass:.2f} (untouched "
        f"{before[0]:.2f}), induce {chosen.induce:.2f} (untouched {before[1]:.2f}), KL {chosen.kl:.3f} nats ({kept})"
    )
