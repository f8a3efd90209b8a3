"""The tamper check: which heads, neurons and directions moved between two builds of a model, and whether refusals did.

Everything is set against a noise floor: the first build against itself with its weights rounded anew. What rounding
explains has not moved.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from calibration.audits.builds.difference import Difference, clearest_block, difference, refusal_directions
from calibration.audits.builds.reading import Build, Questions, Reading, read_build
from calibration.audits.builds.rounding import ONE_UNIT, rounded_anew
from calibration.audits.builds.weights import (
    WrittenDirection,
    head_weight_changes,
    neuron_weight_changes,
    written_direction,
)
from calibration.fitting.metrics import rate
from calibration.model.attention_heads import Head
from calibration.model.chat_model import ChatModel
from calibration.model.partner import load_partner
from calibration.model.refusal_metric import find_refusal_tokens, refusal_metric
from calibration.prompts.prompt_file import MINIMUM_PER_CLASS, PromptFile, require_classes
from calibration.prompts.template import EncodedPrompts, encode_prompts
from probes.fingerprint import fingerprint
from probes.manifest import Rate

_MOST_ASKED, _MOST_SCORING = 64, 16
_NUM_ROUNDINGS = 2
_SEED = 20_260

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Floor:
    """The largest differences that rounding made, over draws and over parts of a kind."""

    refusal_gap: float
    ships: float
    neurons: Floats
    """Of each neuron, on either class `[L, W]`."""
    cosine: float
    """The smallest."""
    gap: float
    """The largest distance from 1."""
    weights: float = ONE_UNIT


@dataclass(frozen=True, slots=True)
class Comparison:
    """Two builds compared; index 0 of a pair is the first build."""

    heads: tuple[Head, ...]
    ships: Floats
    """Of the first build's heads, mean over prompts `[H]`."""
    changed: Difference
    floor: Floor
    refused: tuple[Rate, Rate] | None
    """Harmful prompts refused; nothing where neither build refuses by its first token."""
    refused_harmless: tuple[Rate, Rate] | None
    lost: tuple[int, int]
    """Harmful prompts that only the first build refuses, and that only the second does."""
    metric_gap: float
    """The first build's mean refusal metric on harmful prompts less that on harmless ones."""
    block: int
    """Where the first build's refusal direction is clearest."""
    head_weights: Floats
    neuron_weights: Floats
    written: WrittenDirection | None
    written_cosine: float
    """Of `written` with the first build's refusal direction at `block`, in size."""
    differing: tuple[str, ...]
    """Parts of the fingerprint that differ."""
    notes: tuple[str, ...]


def compare_builds(
    first: Path, second: Path, file: PromptFile, *, dtype: str = "auto", device: str = "cpu", skip_long: bool = False
) -> Comparison:
    """Compare two builds of one model on labelled prompts. Raises `ModelError` or `PromptError`.

    At most 64 prompts of each class are asked; 16 harmful ones pass once for every head.
    """
    require_classes(file.harmful, file.name, MINIMUM_PER_CLASS)
    chat = ChatModel.load(first, dtype=dtype, device=device)
    prompts = encode_prompts(chat.tokenizer, file, chat.context, skip_long=skip_long)
    require_classes(prompts.harmful, file.name, MINIMUM_PER_CLASS)
    ours, theirs = Build.of(chat), Build.of(load_partner(chat, second, dtype=dtype, device=device))
    questions = _questions(prompts)
    readings = (read_build(ours, questions, "the first build"), read_build(theirs, questions, "the second build"))
    tokens = _tokens(readings)
    prints = [fingerprint(folder).model_dump() for folder in (first, second)]
    written = written_direction(ours, theirs)
    block = clearest_block(readings[0])
    direction = refusal_directions(readings[0])[block]
    refused = _refused(readings, tokens)
    return Comparison(
        heads=tuple(ours.heads),
        ships=readings[0].ships.mean(axis=1) if ours.heads else np.empty(0),
        changed=difference(*readings, tokens),
        floor=_floor(ours, questions, readings[0], tokens, block),
        refused=_rates([each[0] for each in refused]),
        refused_harmless=_rates([each[1] for each in refused]),
        lost=_lost([each[0] for each in refused]),
        metric_gap=_metric_gap(readings[0], tokens),
        block=block,
        head_weights=head_weight_changes(ours, theirs),
        neuron_weights=neuron_weight_changes(ours, theirs),
        written=written,
        written_cosine=abs(float(written.direction @ direction)) / float(np.linalg.norm(direction)) if written else 0.0,
        differing=tuple(name for name in prints[0] if prints[0][name] != prints[1][name]),
        notes=(*ours.missing, *_left_out(prompts, tokens)),
    )


def _left_out(prompts: EncodedPrompts, tokens: tuple[int, ...]) -> list[str]:
    """Say what else was not compared."""
    notes = [] if tokens else ["refusals were not compared: neither build refuses these prompts by its first token"]
    if prompts.num_skipped:
        notes.append(f"{prompts.num_skipped} prompts were longer than the model's context and left out")
    return notes


def _questions(prompts: EncodedPrompts) -> Questions:
    rng = np.random.default_rng(_SEED)
    rows = [rng.permutation(np.flatnonzero(prompts.harmful == label))[:_MOST_ASKED] for label in (True, False)]
    return Questions(prompts.subset(rows[0]), prompts.subset(rows[1]), prompts.subset(rows[0][:_MOST_SCORING]))


def _tokens(readings: tuple[Reading, Reading]) -> tuple[int, ...]:
    """Return what starts refusals in either build: a build may have learned to refuse in other words."""
    found: set[int] = set()
    for reading in readings:
        sides = (reading.harmful.log_probs, reading.harmless.log_probs)
        labels = np.repeat([True, False], [len(side) for side in sides])
        found |= set(find_refusal_tokens(torch.cat(sides), labels))
    return tuple(sorted(found))


def _refused(
    readings: tuple[Reading, Reading], tokens: tuple[int, ...]
) -> list[tuple[npt.NDArray[np.bool_], npt.NDArray[np.bool_]]]:
    """Return for each build which harmful and which harmless prompts it more likely refuses than not."""
    if not tokens:
        return []
    return [
        (refusal_metric(reading.harmful.log_probs, tokens) > 0, refusal_metric(reading.harmless.log_probs, tokens) > 0)
        for reading in readings
    ]


def _rates(refused: list[npt.NDArray[np.bool_]]) -> tuple[Rate, Rate] | None:
    if not refused:
        return None
    first, second = (rate(int(each.sum()), len(each)) for each in refused)
    return first, second


def _lost(refused: list[npt.NDArray[np.bool_]]) -> tuple[int, int]:
    if not refused:
        return 0, 0
    first, second = refused
    return int((first & ~second).sum()), int((second & ~first).sum())


def _metric_gap(reading: Reading, tokens: tuple[int, ...]) -> float:
    if not tokens:
        return 0.0
    sides = (reading.harmful.log_probs, reading.harmless.log_probs)
    harmful, harmless = (float(refusal_metric(side, tokens).mean()) for side in sides)
    return harmful - harmless


def _floor(ours: Build, questions: Questions, whole: Reading, tokens: tuple[int, ...], block: int) -> Floor:
    drawn = []
    for draw in range(_NUM_ROUNDINGS):
        with rounded_anew(ours.chat, _SEED + draw):
            rounded = read_build(ours, questions, f"rounding {draw + 1}")
        drawn.append(difference(whole, rounded, tokens))
    return Floor(
        refusal_gap=max(abs(float(each.refusal_gap.mean())) for each in drawn) if tokens else 0.0,
        ships=max((float(np.abs(each.ships).max()) for each in drawn if each.ships.size), default=0.0),
        neurons=np.maximum.reduce([np.maximum(each.neurons_harmful, each.neurons_harmless) for each in drawn]),
        cosine=min(float(each.cosine[block]) for each in drawn),
        gap=max(abs(float(each.gap[block]) - 1) for each in drawn),
    )
