"""Whole answers: how many are refusals when the refusal direction is ablated, and when it is added.

The first token says what a model is about to do; whether it goes through with it is seen in the answer. An answer
counts as a refusal when it opens as the model's own refusals do, by its first tokens: no table of phrases.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

from calibration.fitting.contract import Study
from calibration.fitting.fitted import NO_REFUSAL_VECTOR, Fitted, FittedSteering
from calibration.fitting.metrics import rate
from calibration.fitting.study import Skipped, StudyResult, Table
from calibration.fitting.training_set import TrainingSet
from calibration.model.chat_model import ChatModel
from calibration.model.generation import Tokens, generate
from calibration.model.intervention import ablated, added, at_last, steered
from calibration.model.openings import opens_as, refusal_openings
from calibration.prompts.progress import track
from calibration.prompts.template import EncodedPrompts
from probes.manifest import Rate
from probes.steering import moves_of

_MOST = 64
"""Prompts per class: an interval of about 12 points either way."""
_NUM_TOKENS = 12
"""Tokens of an answer that are looked at."""
_REPEATED = 3
_Way = Callable[[], AbstractContextManager[None]]


def answer_study(training: TrainingSet, found: Fitted) -> tuple[StudyResult, ...]:
    """Return the study of whole answers under ablation and addition. Raises `Skipped` without a refusal direction."""
    steering = next((item for item in found.steering if item.spec.name == "refusal"), None)
    if steering is None:
        raise Skipped(NO_REFUSAL_VECTOR)
    learned = [generate(training.chat, _sample(training, True, each), _NUM_TOKENS) for each in (True, False)]
    openings = refusal_openings(learned[0], learned[1], training.refusal_tokens)
    shares, repeated = {}, {}
    for name, (is_harmful, way) in track(list(_ways(training.chat, steering).items()), "answering under interventions"):
        with way():
            answers = generate(training.chat, _sample(training, False, is_harmful), _NUM_TOKENS)
        shares[name] = rate(sum(opens_as(answer, openings) for answer in answers), len(answers))
        repeated[name] = sum(map(repeats, answers)) / len(answers)
    return (_study(shares, repeated, len(openings), steering),)


def repeats(answer: Tokens) -> bool:
    """Return whether an answer says the same three tokens twice: the mark of a model pushed off its course."""
    runs = [answer[start : start + _REPEATED] for start in range(len(answer) - _REPEATED + 1)]
    return len(set(runs)) < len(runs)


def _sample(training: TrainingSet, is_fit: bool, is_harmful: bool) -> EncodedPrompts:
    rows = training.fit if is_fit else training.select
    return training.prompts.subset(training.sample(rows, harmful=is_harmful, most=_MOST))


def _ways(chat: ChatModel, steering: FittedSteering) -> dict[str, tuple[bool, _Way]]:
    """Return each way to run the model: whether on harmful prompts, and what is done to it."""
    vector, [layer] = steering.vector[0], steering.spec.layers
    shift = steering.spec.evidence["strength"] * vector
    served = steering.spec.evidence.get("served_strength", steering.spec.evidence["strength"])
    moves = moves_of(steering.spec, steering.tensors)
    return {
        "harmful, untouched": (True, nullcontext),
        "harmful, direction ablated": (True, lambda: ablated(chat, vector)),
        "harmless, untouched": (False, nullcontext),
        "harmless, direction ablated": (False, lambda: ablated(chat, vector)),
        "harmless, added at every position": (False, lambda: added(chat, layer, shift)),
        # Where each token of the answer is predicted, as a steered request has it.
        "harmless, added as served": (False, lambda: steered(chat, moves, at_last(served))),
    }


def _study(
    shares: dict[str, Rate], repeated: dict[str, float], num_openings: int, steering: FittedSteering
) -> StudyResult:
    plain, without, harmless, more = (
        shares[name]
        for name in (
            "harmful, untouched",
            "harmful, direction ablated",
            "harmless, untouched",
            "harmless, added at every position",
        )
    )
    return StudyResult(
        name="refusal_answers",
        title="What the refusal direction does to whole answers",
        finding=(
            f"Ablating it takes refusals of harmful prompts from {plain.value:.0%} to {without.value:.0%} "
            f"(n = {plain.count}); adding it at strength {steering.spec.evidence['strength']:g} takes refusals of "
            f"harmless prompts from {harmless.value:.0%} to {more.value:.0%} (n = {harmless.count}), with "
            f"{repeated['harmless, added at every position']:.0%} of the answers repeating themselves. Greedy answers "
            f"of {_NUM_TOKENS} tokens to selection prompts, judged by how the model's own refusals open "
            f"({num_openings} found)."
        ),
        tables=(
            Table(
                name="refused",
                columns=("prompts", "refused", "95 % from", "to", "repeats itself", "n"),
                rows=tuple(
                    (name, each.value, each.low, each.high, repeated[name], each.count) for name, each in shares.items()
                ),
            ),
        ),
    )


STUDY = Study("refusal_answers", answer_study, rank=50)
