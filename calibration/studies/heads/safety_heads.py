"""Safety heads: which heads the model's refusals hang on, and whether any other heads would have done as well.

Heads are found on fit prompts (`calibration.studies.heads.ships`) and judged on selection prompts, against draws of as
many heads from the rest.
"""

from collections.abc import Mapping, Sequence

from calibration.fitting.contract import Study
from calibration.fitting.fitted import Fitted
from calibration.fitting.metrics import mean_interval
from calibration.fitting.study import Chart, Series, StudyResult, Table, required_of_the_model
from calibration.fitting.training_set import Rows, TrainingSet
from calibration.model.attention_heads import Head, Removal, all_heads, find_attentions
from calibration.model.refusal_metric import first_token_log_probs
from calibration.prompts.template import EncodedPrompts
from calibration.studies.heads.head_groups import (
    NUM_DRAWS,
    REMOVALS,
    HeadGroupEffect,
    HeadGroupEvaluator,
    measure_growing,
    measure_random,
)
from calibration.studies.heads.ships import GROUP, HeadEffect, HeadScores

_NAME, _TITLE = "safety_heads", "Safety heads: what refusals hang on"
_MOST_SCORING, _MOST_JUDGED = 16, 48
"""Harmful prompts that heads are scored by, each of which passes the model once for every head; prompts of each class
that groups are judged by."""
_DRAWN_SIZES = (1, 3, GROUP)

_Grown = Mapping[Removal, Sequence[HeadGroupEffect]]
_Drawn = Mapping[tuple[Removal, int], Sequence[HeadGroupEffect]]


def safety_heads(training: TrainingSet, found: Fitted) -> tuple[StudyResult, ...]:  # noqa: ARG001 - a study gets it
    """Return the study. Raises `Skipped` for a model that does not refuse, or whose heads cannot be told apart."""
    tokens = training.require_refusals()
    with required_of_the_model():
        attentions = find_attentions(training.chat)
    scores = HeadScores(training.chat, attentions, _prompts(training, training.fit, _MOST_SCORING, harmful=True))
    alone = scores.effects(all_heads(attentions))
    group = scores.sahara(alone)
    harmful, harmless = (_prompts(training, training.select, _MOST_JUDGED, harmful=label) for label in (True, False))
    whole = first_token_log_probs(training.chat, harmless)
    evaluator = HeadGroupEvaluator(training.chat, attentions, tokens, harmful, harmless, whole)
    return (_study(evaluator, alone, group, len(scores.prompts.prompts)),)


def _prompts(training: TrainingSet, rows: Rows, most: int, *, harmful: bool) -> EncodedPrompts:
    return training.prompts.subset(training.sample(rows, harmful=harmful, most=most))


def _study(
    evaluator: HeadGroupEvaluator, alone: Sequence[HeadEffect], group: Sequence[HeadEffect], num_scoring: int
) -> StudyResult:
    heads = [effect.head for effect in group]
    grown = {removal: measure_growing(evaluator, heads, removal) for removal in REMOVALS}
    drawn = measure_random(evaluator, [effect.head for effect in alone if effect.head not in heads], _DRAWN_SIZES)
    return StudyResult(
        name=_NAME,
        title=_TITLE,
        finding=" ".join(_finding(heads, grown, drawn, removal) for removal in REMOVALS)
        + f" Heads were found on {num_scoring} harmful prompts.",
        charts=_charts(grown, drawn),
        tables=(_heat(alone), _group(group, grown)),
    )


def _finding(heads: Sequence[Head], grown: _Grown, drawn: _Drawn, removal: Removal) -> str:
    """Say what the largest group does that random heads were drawn for."""
    size = max((size for kind, size in drawn if kind == removal and size <= len(heads)), default=len(heads))
    whole, without = grown[removal][0].refused, grown[removal][size]
    text = (
        f"With heads {', '.join(map(str, heads[:size]))} {removal}, {without.refused.value:.0%} "
        f"({without.refused.low:.0%} to {without.refused.high:.0%}) of {whole.count} harmful prompts are refused "
        f"instead of {whole.value:.0%}, and harmless first tokens move by {without.kl:.3f} nats"
    )
    if (removal, size) not in drawn:
        return f"{text}; the model has too few heads to draw others."
    mean, low, high = mean_interval([outcome.refused.value for outcome in drawn[removal, size]])
    return f"{text}; with {size} random other heads so, {mean:.0%} ({low:.0%} to {high:.0%}, {NUM_DRAWS} draws)."


def _charts(grown: _Grown, drawn: _Drawn) -> tuple[Chart, ...]:
    refused = [
        Series(
            name=f"found, {removal}",
            x=_sizes(outcomes),
            y=tuple(outcome.refused.value for outcome in outcomes),
            low=tuple(outcome.refused.low for outcome in outcomes),
            high=tuple(outcome.refused.high for outcome in outcomes),
        )
        for removal, outcomes in grown.items()
    ]
    moved = [
        Series(name=f"found, {removal}", x=_sizes(outcomes), y=tuple(outcome.kl for outcome in outcomes))
        for removal, outcomes in grown.items()
    ]
    for removal in REMOVALS:
        draws = {size: outcomes for (kind, size), outcomes in drawn.items() if kind == removal}
        refused.append(_random(removal, {size: [one.refused.value for one in each] for size, each in draws.items()}))
        moved.append(_random(removal, {size: [one.kl for one in each] for size, each in draws.items()}))
    return (
        Chart(
            name="refused",
            caption="Harmful prompts still refused; bands are 95 % intervals, for random heads those of the mean draw.",
            x_label="heads taken out",
            y_label="share refused",
            series=tuple(refused),
        ),
        Chart(
            name="harmless",
            caption="What it costs: KL of the first token from the whole model's, on harmless prompts.",
            x_label="heads taken out",
            y_label="nats",
            series=tuple(moved),
        ),
    )


def _sizes(outcomes: Sequence[HeadGroupEffect]) -> tuple[float, ...]:
    return tuple(map(float, range(len(outcomes))))


def _random(removal: Removal, by_size: Mapping[int, Sequence[float]]) -> Series:
    intervals = [mean_interval(values) for values in by_size.values()]
    mean, low, high = (tuple(each[part] for each in intervals) for part in range(3))
    return Series(name=f"random, {removal}", x=tuple(map(float, by_size)), y=mean, low=low, high=high)


def _heat(alone: Sequence[HeadEffect]) -> Table:
    mean = {effect.head: float(effect.ships.mean()) for effect in alone}
    heads = range(max(head.index for head in mean) + 1)
    blocks = range(max(head.block for head in mean) + 1)
    return Table(
        name="Ships: mean KL on harmful prompts with the head undifferentiated, nats",
        columns=("", *(f"head {index}" for index in heads)),
        rows=tuple((f"block {block}", *(mean[Head(block, index)] for index in heads)) for block in blocks),
    )


def _group(group: Sequence[HeadEffect], grown: _Grown) -> Table:
    measured = (f"{what}, {removal}" for removal in REMOVALS for what in ("log-odds of refusal", "share refused"))
    rows = []
    for size, effect in enumerate(group, start=1):
        outcomes = [grown[removal][size] for removal in REMOVALS]
        numbers = [number for outcome in outcomes for number in (outcome.metric, outcome.refused.value)]
        rows.append((str(effect.head), effect.shift, float(effect.ships.mean()), *numbers))
    return Table(
        name="Sahara: the group as it grew",
        columns=("head added (block.head)", "angle so far, degrees", "KL so far, nats", *measured),
        rows=tuple(rows),
    )


STUDY = Study("safety_heads", safety_heads, rank=30)
