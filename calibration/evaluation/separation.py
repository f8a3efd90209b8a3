"""The separation map: where in the model harmful and harmless prompts come apart."""

from calibration.fitting.metrics import auroc
from calibration.fitting.training_set import TrainingSet
from calibration.prompts.template import template_suffix
from calibration.recording.places import Where, every_place
from calibration.recording.stage_file import Strict


class SeparationMap(Strict):
    """AUROC of the difference in means on selection prompts, block by block and position by position."""

    positions: tuple[str, ...]
    """From the prompt's last token backwards, then the mean over its content."""
    auroc: tuple[tuple[float, ...], ...]
    """`[positions][blocks]`."""


def separation_map(training: TrainingSet) -> SeparationMap:
    """Return the map. Directions are fitted on the fit prompts, AUROCs measured on the selection prompts."""
    places = every_place(training.instruction_offset)
    return SeparationMap(
        positions=tuple(_names(training)),
        auroc=tuple(
            tuple(_separation(training, layer, where) for layer in range(training.chat.num_layers)) for where in places
        ),
    )


def _separation(training: TrainingSet, layer: int, where: Where) -> float:
    harmless, harmful_ones = training.moments(layer, where, training.fit)
    projection = training.project(layer, where, harmful_ones.mean - harmless.mean)[training.select]
    harmful = training.harmful[training.select]
    return auroc(projection[harmful], projection[~harmful])


def _names(training: TrainingSet) -> list[str]:
    tokenizer = training.chat.tokenizer
    tokens = [tokenizer.decode([token]) for token in template_suffix(tokenizer)]
    template = [f"{-1 - offset}: {token!r}" for offset, token in enumerate(reversed(tokens))]
    return [*template, f"{-1 - training.instruction_offset}: instruction's last", "mean over the content"]
