"""The prompts of the table: the starter set, public sets, real users' prompts, and requests written otherwise.

They are recorded together, once. Real users' prompts are divided in three: some are fitted on, some set the cut, and
some show whether it keeps its promise.
"""

import hashlib
import json
import random
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from benchmarks.detection.public_sets import HARMFUL, JAILBREAK, REAL, Line, assemble, real_traffic, translated
from benchmarks.detection.variations import VARIATIONS
from calibration.evaluation.unseen.left_out import families
from calibration.fitting.training_set import Rows, TrainingSet
from calibration.model.chat_model import ChatModel
from calibration.prompts.prompt_file import load_prompts
from calibration.prompts.starter_set import starter_set
from calibration.prompts.template import encode_prompts, template_suffix
from calibration.recording.activations import record
from calibration.recording.places import every_place
from probes.fingerprint import fingerprint

_MOST_TOKENS = 512
"""Of prompts as they are; those within other text may be as long as the model's context."""
_MOST_LETTERS = 200
"""Requests that are written otherwise are short ones."""
_PLACES, _FITTED, _CUT = 5, 2, 4
"""Of five parts of real users' prompts the first two are fitted on, the next two set the cut, the last tests it."""

Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Traffic:
    """All prompts `[N]`, with what is known of each."""

    training: TrainingSet
    family: npt.NDArray[np.str_]
    """The family of its source; empty for the starter set's."""
    variation: npt.NDArray[np.str_]
    """How it was written otherwise; empty where it is as it was found."""
    part: npt.NDArray[np.int64]
    """Which of five parts of real users' prompts it would be in."""

    def divided(self, seed: int) -> "Traffic":
        """Return the same prompts, real users' divided anew."""
        drawn = [int(_digest(f"{seed} {prompt.text}"), 16) for prompt in self.training.prompts.prompts]
        return replace(self, part=np.array([number % _PLACES for number in drawn]))

    @property
    def starter(self) -> Rows:
        """The starter set's prompts."""
        return np.flatnonzero(self.family == "")

    @property
    def public(self) -> list[str]:
        """The families of public sets."""
        return [name for name in np.unique(self.family).tolist() if name]

    @property
    def fitted_on(self) -> Mask:
        """Which of real users' prompts may be fitted on."""
        return np.asarray((self.family == REAL) & (self.part < _FITTED))

    @property
    def sets_the_cut(self) -> Mask:
        """Which harmless prompts of real users set the cut."""
        chosen = (self.family == REAL) & (self.part >= _FITTED) & (self.part < _CUT)
        return np.asarray(chosen & ~self.training.harmful)

    @property
    def tests_the_cut(self) -> Mask:
        """Which harmless prompts of real users show whether the cut keeps its promise."""
        return np.asarray((self.family == REAL) & (self.part >= _CUT) & ~self.training.harmful)

    def without(self, name: str) -> Rows:
        """Return the public prompts that may be fitted on where family `name` is met."""
        is_public = (self.family != "") & (self.family != REAL) & (self.variation == "")
        return np.flatnonzero((is_public & (self.family != name)) | self.fitted_on)


def traffic(chat: ChatModel, model: Path, data: Path, work: Path, most: int, most_real: int) -> Traffic:
    """Return the prompts, recorded in a folder of `work` that is named for all that decides what is recorded.

    `most` is how many of each label of a public set are taken, `most_real` of real users' prompts.
    """
    found = [*_sampled(assemble(data), most), *_sampled(real_traffic(data), most_real)]
    otherwise = [*written_otherwise(found), *translated(data, most)]
    about = json.dumps([fingerprint(model).model_dump(), starter_set().sha256, found, otherwise])
    folder = work / _digest(about)[:16]
    folder.mkdir(parents=True, exist_ok=True)
    parts = [encode_prompts(chat.tokenizer, starter_set(), min(chat.context, _MOST_TOKENS), skip_long=True)]
    for name, lines, longest in (("public", found, _MOST_TOKENS), ("otherwise", otherwise, chat.context)):
        (file := folder / f"{name}.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
        parts.append(encode_prompts(chat.tokenizer, load_prompts(file), min(chat.context, longest), skip_long=True))
    everything, offset = sum(parts[1:], start=parts[0]), len(template_suffix(chat.tokenizer))
    recording = record(chat, everything, every_place(offset), folder / "activations")
    training = TrainingSet(chat, everything, recording, offset, np.arange(0), np.arange(0))
    family = np.concatenate([np.full(len(parts[0].prompts), ""), *(families(part) for part in parts[1:])])
    rewritten = [prompt.category or "" for prompt in parts[2].prompts]
    variation = np.array([""] * (len(family) - len(rewritten)) + rewritten)
    return Traffic(training, family, variation, np.zeros(len(family), dtype=np.int64)).divided(0)


def written_otherwise(lines: Sequence[Line]) -> Iterator[Line]:
    """Yield short requests of plain sets in every variation, by turns from set to set.

    The variation's name is the line's category.
    """
    for label in ("harmful", "harmless"):
        requests = _by_turns([line for line in lines if line["label"] == label and _is_plain(line)])
        for variation in VARIATIONS:
            chance = random.Random(variation.name)  # noqa: S311 - what is drawn is prose
            for line in requests[: variation.most]:
                text = variation.write(line["prompt"], chance)
                yield line | {"prompt": text, "category": f"{variation.kind}: {variation.name}"}


def _is_plain(line: Line) -> bool:
    of_a_plain_set = line["source"] in HARMFUL or line["label"] == "harmless"
    return of_a_plain_set and not line["source"].startswith((JAILBREAK, REAL)) and len(line["prompt"]) <= _MOST_LETTERS


def _by_turns(lines: Sequence[Line]) -> list[Line]:
    """Return a line of each source, then a second of each, and so on."""
    seen: Counter[str] = Counter()
    turns: list[int] = []
    for line in lines:
        seen[line["source"]] += 1
        turns.append(seen[line["source"]])
    return [lines[index] for _, index in sorted(zip(turns, range(len(lines)), strict=True))]


def _sampled(lines: list[Line], most: int) -> Iterator[Line]:
    """Yield at most so many lines of each source and label, the same ones each time."""
    kept: Counter[tuple[str, str]] = Counter()
    for line in sorted(lines, key=lambda line: _digest(line["prompt"])):
        kind = line["source"], line["label"]
        kept[kind] += 1
        if kept[kind] <= most:
            yield line


def _digest(text: str) -> str:
    """Return the SHA-256 of a text that need not be valid Unicode."""
    return hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()
