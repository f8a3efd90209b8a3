"""Prompt files: labelled requests, one JSON object a line, checked before any model is loaded.

A line holds `prompt` (a string) or `messages` (role and content), `label`, and optionally what the report groups by.
"""

import codecs
import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, Self

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError, model_validator

from probes.errors import PromptError
from probes.manifest import DataDigest

MINIMUM_PER_CLASS = 16
"""Fewest prompts of a class that a direction may be fitted on: below this the mean is mostly noise."""

_Text = Annotated[str, StringConstraints(min_length=1, pattern=r"\S")]


class Message(BaseModel):
    """One turn of a conversation."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    role: Literal["system", "developer", "user", "assistant"]
    content: _Text


class _Line(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    prompt: _Text | None = None
    messages: tuple[Message, ...] | None = Field(None, min_length=1)
    label: Literal["harmful", "harmless"]
    category: str | None = None
    source: str | None = None
    id: str | None = None
    lang: str | None = None
    split: str | None = None
    target: str | None = None
    subcategory: str | None = None

    @model_validator(mode="after")
    def _asks_once(self) -> Self:
        if (self.prompt is None) == (self.messages is None):
            raise ValueError("give either 'prompt' or 'messages'")
        if self.messages is not None and self.messages[-1].role != "user":
            raise ValueError("the last message must be the user's: it is what the model would answer")
        return self


@dataclass(frozen=True, slots=True)
class Prompt:
    """One labelled request, as a conversation that ends with the user's message."""

    id: str
    line: int
    messages: tuple[Message, ...]
    is_harmful: bool
    category: str | None
    source: str | None
    lang: str | None = None
    """As the file states it, in lower case."""
    is_wrapped: bool = False
    """Whether this is a copy inside a wrapper, made for training."""

    @property
    def text(self) -> str:
        """All that was said, for comparisons that read text."""
        return "\n".join(message.content for message in self.messages)

    def to_json(self) -> str:
        """Return the line of a prompt file that says the same."""
        turns = [message.model_dump() for message in self.messages]
        alone = len(turns) == 1 and turns[0]["role"] == "user"
        request = {"prompt": turns[0]["content"]} if alone else {"messages": turns}
        label = "harmful" if self.is_harmful else "harmless"
        about = {"category": self.category, "source": self.source, "lang": self.lang}
        known = {key: value for key, value in about.items() if value is not None}
        return json.dumps({"id": self.id, **request, "label": label, **known}, ensure_ascii=False)


@dataclass(frozen=True, slots=True)
class PromptFile:
    """The prompts of one file, in its order, and the file's SHA-256."""

    name: str
    sha256: str
    prompts: tuple[Prompt, ...]

    @property
    def harmful(self) -> npt.NDArray[np.bool_]:
        """Labels `[N]`."""
        return np.array([prompt.is_harmful for prompt in self.prompts], dtype=bool)

    def digest(self, split: str) -> DataDigest:
        """Return what the manifest says of this file."""
        num_harmful = int(self.harmful.sum())
        return DataDigest(
            split=split,
            source=self.name,
            sha256=self.sha256,
            num_harmful=num_harmful,
            num_harmless=len(self.prompts) - num_harmful,
        )


def require_classes(harmful: npt.NDArray[np.bool_], name: str, minimum: int = 1) -> None:
    """Raise `PromptError` unless labels `[N]` of file `name` hold at least `minimum` harmful and harmless prompts."""
    num_harmful = int(harmful.sum())
    for label, count in (("harmful", num_harmful), ("harmless", len(harmful) - num_harmful)):
        if count < minimum:
            raise PromptError(
                f"{count} {label} prompts, at least {minimum} are needed",
                field=name,
                remedy=f'add lines with "label": "{label}"',
            )


def load_prompts(path: Path) -> PromptFile:
    """Read the JSONL file `path`. Raises `PromptError` naming the file, the line, the fault and the remedy.

    A byte-order mark at its start is skipped. A request may stand in it twice, but not under both labels.
    """
    try:
        raw = path.read_bytes()
        text = raw.removeprefix(codecs.BOM_UTF8).decode()
    except OSError as error:
        raise PromptError(
            f"cannot be read: {error.strerror}", field=path.name, remedy="name a readable JSONL file"
        ) from error
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise PromptError("is not UTF-8", field=f"{path.name}:{line}", remedy="save the file as UTF-8") from error
    prompts = tuple(_read_lines(text, path.name))
    if not prompts:
        raise PromptError(
            "holds no prompts", field=path.name, remedy='write one {"prompt": …, "label": …} object a line'
        )
    file = PromptFile(path.name, hashlib.sha256(raw).hexdigest(), prompts)
    require_one_label([file])
    return file


def require_one_label(files: Sequence[PromptFile]) -> None:
    """Raise `PromptError` when a request is harmful in one line and harmless in another: one of the two is a mistake."""
    seen: dict[tuple[Message, ...], tuple[str, bool]] = {}
    for file in files:
        for prompt in file.prompts:
            where = f"{file.name}:{prompt.line}"
            first, was_harmful = seen.setdefault(prompt.messages, (where, prompt.is_harmful))
            if was_harmful != prompt.is_harmful:
                here, there = ("harmful", "harmless") if prompt.is_harmful else ("harmless", "harmful")
                raise PromptError(
                    f"the same request is {here} here and {there} in {first}",
                    field=where,
                    remedy="keep the line that has the right label, and remove the other",
                )


def require_disjoint(files: Sequence[PromptFile]) -> None:
    """Raise `PromptError` when a request stands in two files: what was fitted on cannot certify or test."""
    seen: dict[tuple[Message, ...], tuple[int, int]] = {}
    for index, file in enumerate(files):
        for prompt in file.prompts:
            # By place in the sequence, not by name: train/prompts.jsonl and test/prompts.jsonl are two files.
            first, line = seen.setdefault(prompt.messages, (index, prompt.line))
            if first != index:
                raise PromptError(
                    f"the same request stands in {files[first].name}:{line}",
                    field=f"{file.name}:{prompt.line}",
                    remedy="keep each request in one of train, validation and test",
                )


def _read_lines(text: str, name: str) -> Iterator[Prompt]:
    # Not splitlines(): JSON strings may hold raw U+2028 and the like, which end no line of a JSONL file.
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            yield _read_line(line, f"{name}:{number}", number)


def _read_line(line: str, where: str, number: int) -> Prompt:
    try:
        content = _Line.model_validate_json(line)
    except ValidationError as error:
        raise _explain(error, where) from error
    messages = content.messages or (Message(role="user", content=content.prompt or ""),)
    return Prompt(
        content.id or where,
        number,
        messages,
        content.label == "harmful",
        content.category,
        content.source,
        (content.lang or "").strip().lower() or None,
    )


def _explain(error: ValidationError, where: str) -> PromptError:
    first = error.errors()[0]
    key = ".".join(str(part) for part in first["loc"])
    if first["type"] == "json_invalid":
        return PromptError(first["msg"], field=where, remedy="write one whole JSON object on each line")
    remedy = {
        "extra_forbidden": "remove the key, or correct its spelling",
        "missing": "add the key",
        "value_error": "a prompt is one user request, or a conversation that ends with one",
    }.get(first["type"], "correct the value")
    problem = first["msg"].removeprefix("Value error, ")
    return PromptError(f"{key}: {problem}" if key else problem, field=where, remedy=remedy)
