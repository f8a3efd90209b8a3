"""Prompt files: labelled requests, checked before any model is loaded.

A row holds `prompt` (a string), `messages` (OpenAI's) or `conversations` (ShareGPT's), `label`, and optionally `tools`,
`chat_template_kwargs` and what the report groups by.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Self

import numpy as np
import numpy.typing as npt
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    StringConstraints,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic_core import PydanticCustomError

from calibration.prompts.messages import Message, asked, of_sharegpt
from calibration.prompts.rows import read_rows
from probes.errors import PromptError
from probes.manifest import DataDigest

MINIMUM_PER_CLASS = 16
"""Fewest prompts of a class that a direction may be fitted on: below this the mean is mostly noise."""

Labels = Mapping[str, bool]
"""Whether a request is harmful, by how a file spells its label."""
LABELS: Labels = {"harmful": True, "harmless": False}
_UNKNOWN_LABEL = "unknown_label"
_STRUCTURED = ("messages", "conversations", "tools", "chat_template_kwargs")
_NOT_RENDERED = frozenset(
    {
        "created",
        "created_at",
        "frequency_penalty",
        "logit_bias",
        "logprobs",
        "max_completion_tokens",
        "max_tokens",
        "metadata",
        "model",
        "n",
        "parallel_tool_calls",
        "presence_penalty",
        "response_format",
        "seed",
        "service_tier",
        "stop",
        "store",
        "stream",
        "stream_options",
        "temperature",
        "timestamp",
        "tool_choice",
        "top_k",
        "top_logprobs",
        "top_p",
        "user",
    }
)
"""Keys of a logged request that change nothing of its prompt."""
_Text = Annotated[str, StringConstraints(min_length=1, pattern=r"\S")]


class _Line(BaseModel):
    """One row of a file. Of a logged request, what does not go into the chat template is not looked at."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    prompt: _Text | None = None
    messages: tuple[Message, ...] | None = Field(None, min_length=1)
    tools: tuple[dict[str, Any], ...] | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    label: bool
    category: str | None = None
    source: str | None = None
    id: str | None = None
    lang: str | None = None
    split: str | None = None
    target: str | None = None
    subcategory: str | None = None

    @model_validator(mode="before")
    @classmethod
    def _read(cls, value: Any) -> Any:
        if not isinstance(value, Mapping):
            return value
        row = {key: each for key, each in value.items() if key not in _NOT_RENDERED}
        for key in _STRUCTURED:
            if isinstance(row.get(key), str):  # a cell of CSV, or of Parquet
                row[key] = _read_cell(key, row[key])
        if "conversations" in row:
            row.setdefault("messages", of_sharegpt(row.pop("conversations")))
        if "reasoning_effort" in row:
            effort = {"reasoning_effort": row.pop("reasoning_effort")}
            row["chat_template_kwargs"] = effort | (row.get("chat_template_kwargs") or {})
        return row

    @field_validator("label", mode="before")
    @classmethod
    def _known(cls, value: Any, info: ValidationInfo) -> bool:
        labels: Labels = (info.context or {}).get("labels", LABELS)
        spelled = str(value).strip().casefold()
        if spelled not in labels:
            raise PydanticCustomError(
                _UNKNOWN_LABEL, "'{spelled}' is none of {known}", {"spelled": spelled, "known": ", ".join(labels)}
            )
        return labels[spelled]

    @model_validator(mode="after")
    def _asks_once(self) -> Self:
        if (self.prompt is None) == (self.messages is None):
            raise ValueError("give either 'prompt' or 'messages'")
        if self.messages is not None:
            asked(self.messages)
        return self

    @property
    def turns(self) -> tuple[Message, ...]:
        """The conversation up to what the model is to answer."""
        return asked(self.messages) if self.messages else (Message(role="user", content=self.prompt or ""),)


def _read_cell(key: str, cell: str) -> Any:
    try:
        return json.loads(cell)
    except (json.JSONDecodeError, RecursionError) as error:
        raise ValueError(f"{key}: is no JSON: {error}") from error


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
    tools: str = ""
    """The tools that the request offers: a JSON list, or nothing."""
    template_options: str = ""
    """What the request tells the chat template (`chat_template_kwargs`): a JSON object, or nothing."""

    @property
    def text(self) -> str:
        """All that was said, for comparisons that read text."""
        return "\n".join(message.content for message in self.messages)

    @property
    def request(self) -> tuple[object, ...]:
        """What makes it this request, whatever its label."""
        return self.messages, self.tools, self.template_options

    def to_json(self) -> str:
        """Return the line of a prompt file that says the same."""
        turns = [message.to_openai() for message in self.messages]
        alone = len(turns) == 1 and turns[0] == {"role": "user", "content": self.messages[0].content}
        request: dict[str, Any] = {"prompt": turns[0]["content"]} if alone else {"messages": turns}
        for key, said in (("tools", self.tools), ("chat_template_kwargs", self.template_options)):
            request |= {key: json.loads(said)} if said else {}
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


def load_prompts(path: Path, labels: Labels = LABELS) -> PromptFile:
    """Read the prompt file `path`. Raises `PromptError` naming the file, the line, the fault and the remedy.

    A request may stand in it twice, but not under both labels.
    """
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise PromptError(
            f"cannot be read: {error.strerror}", field=path.name, remedy="name a readable JSONL file"
        ) from error
    prompts = tuple(_read_row(row, f"{path.name}:{number}", number, labels) for number, row in read_rows(raw, path))
    if not prompts:
        raise PromptError(
            "holds no prompts", field=path.name, remedy='write one {"prompt": …, "label": …} object a line'
        )
    told = repr(sorted(labels.items())).encode() if labels != LABELS else b""
    file = PromptFile(path.name, hashlib.sha256(raw + told).hexdigest(), prompts)
    require_one_label([file])
    return file


def read_labels(spellings: Sequence[str]) -> Labels:
    """Return the labels with the `spellings` of a file's own: `toxic=harmful`. Raises `PromptError`."""
    labels = dict(LABELS)
    for spelling in spellings:
        word, _, label = spelling.rpartition("=")
        if not word or label not in LABELS:
            raise PromptError(
                f"{spelling!r} says nothing", field="--label", remedy="write it as --label toxic=harmful, or =harmless"
            )
        labels[word.strip().casefold()] = LABELS[label]
    return labels


def require_one_label(files: Sequence[PromptFile]) -> None:
    """Raise `PromptError` when a request is harmful in one line and harmless in another: one of the two is a
    mistake.
    """
    seen: dict[tuple[object, ...], tuple[str, bool]] = {}
    for file in files:
        for prompt in file.prompts:
            where = f"{file.name}:{prompt.line}"
            first, was_harmful = seen.setdefault(prompt.request, (where, prompt.is_harmful))
            if was_harmful != prompt.is_harmful:
                here, there = ("harmful", "harmless") if prompt.is_harmful else ("harmless", "harmful")
                raise PromptError(
                    f"the same request is {here} here and {there} in {first}",
                    field=where,
                    remedy="keep the line that has the right label, and remove the other",
                )


def require_disjoint(files: Sequence[PromptFile]) -> None:
    """Raise `PromptError` when a request stands in two files: what was fitted on cannot certify or test."""
    seen: dict[tuple[object, ...], tuple[int, int]] = {}
    for index, file in enumerate(files):
        for prompt in file.prompts:
            # By place in the sequence, not by name: train/prompts.jsonl and test/prompts.jsonl are two files.
            first, line = seen.setdefault(prompt.request, (index, prompt.line))
            if first != index:
                raise PromptError(
                    f"the same request stands in {files[first].name}:{line}",
                    field=f"{file.name}:{prompt.line}",
                    remedy="keep each request in one of train, validation and test",
                )


def _read_row(row: str | dict[str, Any], where: str, number: int, labels: Labels) -> Prompt:
    try:
        check = _Line.model_validate_json if isinstance(row, str) else _Line.model_validate
        line = check(row, context={"labels": labels})  # type: ignore[arg-type]  # each takes what it is chosen by
    except ValidationError as error:
        raise _explain(error, where) from error
    return Prompt(
        line.id or where,
        number,
        line.turns,
        line.label,
        line.category,
        line.source,
        (line.lang or "").strip().lower() or None,
        tools=json.dumps(line.tools) if line.tools else "",
        template_options=json.dumps(line.chat_template_kwargs) if line.chat_template_kwargs else "",
    )


def _explain(error: ValidationError, where: str) -> PromptError:
    first = error.errors()[0]
    key = ".".join(str(part) for part in first["loc"])
    if first["type"] == "json_invalid":
        return PromptError(first["msg"], field=where, remedy="write one whole JSON object on each line")
    spelled = first.get("ctx", {}).get("spelled", "")
    remedy = {
        _UNKNOWN_LABEL: f"correct it, or say what it means: --label {spelled}=harmful, or =harmless",
        "extra_forbidden": "remove the key, or correct its spelling",
        "missing": "add the key",
        "value_error": "a prompt is one user request, or a conversation that ends with one",
    }.get(first["type"], "correct the value")
    problem = first["msg"].removeprefix("Value error, ")
    return PromptError(f"{key}: {problem}" if key else problem, field=where, remedy=remedy)
