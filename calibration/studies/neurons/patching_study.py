"""What patched neurons restore: the share of the safety gap between a model and its partner that a share of neurons
carries.

F is measured twice, by no table of phrases: the share of answers that open like one of the aligned model's own
refusals, and the log-odds that the first token starts a refusal. The first is what a user sees; the second shows what
stays below the threshold of greedy decoding.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from calibration.fitting.contract import Study
from calibration.fitting.fitted import Fitted
from calibration.fitting.study import Chart, Series, Skipped, StudyResult, Table
from calibration.fitting.training_set import TrainingSet
from calibration.methods.neurons.activation_contrast import rank_by_change
from calibration.methods.neurons.ranking import Ranking, matched_random
from calibration.methods.neurons.safety_neurons import behaving_prompts, contrast_sample, paired_neurons
from calibration.methods.neurons.separation import rank_by_separation
from calibration.model.generation import generate
from calibration.model.neurons import Neurons, Numbers
from calibration.prompts.progress import track
from calibration.prompts.template import EncodedPrompts
from calibration.studies.neurons.patching import (
    Effect,
    PatchedAnswers,
    RefusalOpenings,
    Values,
    answer,
    answer_patched,
    causal_effect,
)

SHARES = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 1.0)
_STATED = 0.05
"""The share that the paper speaks of, and what it restores."""
_PUBLISHED = 0.9
_NUM_DRAWS = 5
_MOST_JUDGED = 48
"""Prompts per class that are answered under every patch."""
_OPENING = 4
"""Tokens by which an answer is judged; no more are generated."""
_SEED = 20_260

_PAIR, _RANDOM = "pair", "random, matched by block"
_WITH_WEIGHTS = ", with output weights"


@dataclass(frozen=True, slots=True)
class _Arm:
    """A way to choose neurons, and how they are patched."""

    choose: Callable[[float], Sequence[Numbers]]
    """The neurons at a share: one set, or several draws."""
    with_weights: bool = False


@dataclass(frozen=True, slots=True)
class _Setup:
    """Two models, the prompts that they answer, and how they answer them unpatched."""

    aligned: Neurons
    partner: Neurons
    tokens: tuple[int, ...]
    openings: RefusalOpenings
    harmful: EncodedPrompts
    harmless: EncodedPrompts
    best: PatchedAnswers
    """The aligned model's answers to the harmful prompts."""
    worst: PatchedAnswers
    """The partner's."""
    seen: dict[tuple[bytes, bool], PatchedAnswers] = field(default_factory=dict)

    def patched(self, chosen: Numbers, with_weights: bool) -> PatchedAnswers:
        # At a share of 100 % all rankings and draws are one set.
        key = (np.sort(chosen).tobytes(), with_weights)
        if key not in self.seen:
            self.seen[key] = self._answer(self.harmful, chosen, with_weights)
        return self.seen[key]

    def refused_harmless(self, chosen: Numbers, with_weights: bool) -> float:
        return float(self.refused(self._answer(self.harmless, chosen, with_weights)).mean())

    def refused(self, answers: PatchedAnswers) -> Values:
        return self.openings.refused(answers.tokens)

    def effects(self, answers: Sequence[PatchedAnswers]) -> tuple[Effect, Effect]:
        """Return the causal effects of patched answers, one set a draw, by refusals and by log-odds."""
        return (
            causal_effect(
                np.stack(list(map(self.refused, answers))), self.refused(self.worst), self.refused(self.best)
            ),
            causal_effect(np.stack([each.refusal for each in answers]), self.worst.refusal, self.best.refusal),
        )

    def _answer(self, prompts: EncodedPrompts, chosen: Numbers, with_weights: bool) -> PatchedAnswers:
        return answer_patched(
            self.aligned, self.partner, prompts, chosen, self.tokens, _OPENING, with_weights=with_weights
        )


def study_patching(training: TrainingSet, found: Fitted) -> tuple[StudyResult, ...]:  # noqa: ARG001 - a study gets it
    """Return the patching curve on selection prompts.

    Raises `Skipped` where there is nothing to patch or to restore.
    """
    aligned, partner = paired_neurons(training)
    bench = _set_up(training, aligned, partner, training.require_refusals())
    if bench.refused(bench.best).mean() <= bench.refused(bench.worst).mean():
        raise Skipped("the model refuses no more harmful prompts than its partner, so there is nothing to restore")
    return (_study(bench, _arms(training, bench)),)


def _set_up(training: TrainingSet, aligned: Neurons, partner: Neurons, tokens: tuple[int, ...]) -> _Setup:
    to_harmful, to_harmless = (
        generate(aligned.chat, contrast_sample(training, harmful=label), _OPENING) for label in (True, False)
    )
    harmful, harmless = (
        training.prompts.subset(training.sample(training.select, harmful=label, most=_MOST_JUDGED))
        for label in (True, False)
    )
    openings = RefusalOpenings.learn(to_harmful, to_harmless, tokens, _OPENING)
    best, worst = (answer(side, harmful, tokens, _OPENING) for side in (aligned, partner))
    return _Setup(aligned, partner, tokens, openings, harmful, harmless, best, worst)


def _arms(training: TrainingSet, bench: _Setup) -> dict[str, _Arm]:
    pair, other = (
        rank_by_change(bench.aligned, bench.partner, contrast_sample(training, harmful=label))
        for label in (True, False)
    )
    single, _ = rank_by_separation(bench.aligned, behaving_prompts(training, bench.tokens)[0])
    generator = np.random.default_rng(_SEED)

    def random(share: float) -> list[Numbers]:
        return [matched_random(bench.aligned, pair.share(share), generator) for _ in range(_NUM_DRAWS)]

    return {
        _PAIR: _Arm(_best_of(pair)),
        "pair, on harmless prompts": _Arm(_best_of(other)),
        "single": _Arm(_best_of(single)),
        _RANDOM: _Arm(random),
        _PAIR + _WITH_WEIGHTS: _Arm(_best_of(pair), with_weights=True),
        _RANDOM + _WITH_WEIGHTS: _Arm(random, with_weights=True),
    }


def _best_of(ranking: Ranking) -> Callable[[float], Sequence[Numbers]]:
    return lambda share: [ranking.share(share)]


@dataclass(frozen=True, slots=True)
class _Point:
    """One arm at one share."""

    arm: str
    share: float
    num_neurons: int
    refused: float
    by_refusals: Effect
    by_log_odds: Effect
    refused_harmless: float | None
    """Measured where neurons were chosen, and not drawn."""

    def __str__(self) -> str:
        return f"{_shown(self.by_refusals)} of the refusals and {_shown(self.by_log_odds)} of the log-odds"


def _study(bench: _Setup, arms: dict[str, _Arm]) -> StudyResult:
    tasks = [(share, name) for share in SHARES for name in arms]
    points = [_point(bench, name, share, arms[name]) for share, name in track(tasks, "patching neurons")]
    return StudyResult(
        name="neuron_patching",
        title="What patched neurons restore",
        finding=_finding(bench, points),
        charts=(
            _chart(points, "refusals", "causal effect on refusals", lambda point: point.by_refusals),
            _chart(points, "log_odds", "causal effect on the first token's log-odds", lambda point: point.by_log_odds),
        ),
        tables=(_table(points),),
    )


def _point(bench: _Setup, name: str, share: float, arm: _Arm) -> _Point:
    sets = arm.choose(share)
    answers = [bench.patched(chosen, arm.with_weights) for chosen in sets]
    refused = float(np.mean([bench.refused(each).mean() for each in answers]))
    harmless = bench.refused_harmless(sets[0], arm.with_weights) if name.startswith(_PAIR) else None
    return _Point(name, share, len(sets[0]), refused, *bench.effects(answers), harmless)


def _finding(bench: _Setup, points: Sequence[_Point]) -> str:
    at = {(point.arm, point.share): point for point in points}
    ours, random, most = at[_PAIR, _STATED], at[_RANDOM, _STATED], at[_PAIR, 1.0]
    has_shape = ours.by_refusals.value >= _PUBLISHED and random.by_refusals.high < ours.by_refusals.low
    return (
        f"The model refuses {bench.refused(bench.best).mean():.0%} of {len(bench.harmful.prompts)} harmful selection "
        f"prompts, its partner {bench.refused(bench.worst).mean():.0%}. Patched into the partner, the best "
        f"{_STATED:.0%} ({ours.num_neurons} of {most.num_neurons} neurons) restore {ours}; random ones of the same "
        f"blocks {random} ({_NUM_DRAWS} draws). All of them restore {most}; where neurons also write with the model's "
        f"output weights, the best {_STATED:.0%} restore {at[_PAIR + _WITH_WEIGHTS, _STATED]}, random ones "
        f"{at[_RANDOM + _WITH_WEIGHTS, _STATED]}, and all of them {at[_PAIR + _WITH_WEIGHTS, 1.0]}. The published "
        f"shape ({_STATED:.0%} restore over {_PUBLISHED:.0%}, random ones far less) "
        f"{'appears' if has_shape else 'does not appear'} in refusals; of the log-odds that all neurons restore, the "
        f"best {_STATED:.0%} have {ours.by_log_odds.value / most.by_log_odds.value:.0%}, random ones "
        f"{random.by_log_odds.value / most.by_log_odds.value:.0%}."
    )


def _shown(effect: Effect) -> str:
    return f"{effect.value:.0%} ({effect.low:.0%} to {effect.high:.0%})"


def _chart(points: Sequence[_Point], name: str, label: str, of: Callable[[_Point], Effect]) -> Chart:
    arms = dict.fromkeys(point.arm for point in points)
    return Chart(
        name=name,
        caption=f"{label.capitalize()} by share of neurons patched: 0 is the partner, 1 the model; bands are 95 % "
        "intervals over prompts, and over draws where neurons are random.",
        x_label="share of neurons patched",
        y_label=label,
        series=tuple(_series(arm, [point for point in points if point.arm == arm], of) for arm in arms),
        log_x=True,
    )


def _series(arm: str, points: Sequence[_Point], of: Callable[[_Point], Effect]) -> Series:
    effects = [of(point) for point in points]
    return Series(
        name=arm,
        x=tuple(point.share for point in points),
        y=tuple(effect.value for effect in effects),
        low=tuple(effect.low for effect in effects),
        high=tuple(effect.high for effect in effects),
    )


def _table(points: Sequence[_Point]) -> Table:
    columns = ("patched", "share", "neurons", "harmful refused", "C by refusals", "C by log-odds", "harmless refused")
    rows = tuple(
        (
            point.arm,
            f"{point.share:.1%}",
            point.num_neurons,
            point.refused,
            point.by_refusals.value,
            point.by_log_odds.value,
            "–" if point.refused_harmless is None else point.refused_harmless,
        )
        for point in points
    )
    return Table(name="effects", columns=columns, rows=rows)


STUDY = Study("neuron_patching", study_patching, rank=10, uses_partner=True)
