"""The starter set: labelled requests that Foreguard ships, for calibrations to which nobody brings prompts.

The folder `starter` has a file for each kind of traffic. A file says its language, where that is not English, and holds
requests by label and category: each a text, or a list of turns, of which each is one role and its content.
"""

import hashlib
from collections.abc import Iterator
from importlib.resources import files
from itertools import chain, count
from typing import Any

import yaml

from calibration.prompts.messages import Message
from calibration.prompts.prompt_file import Prompt, PromptFile, require_one_label

_LABELS = {"harmless": False, "harmful": True}


def starter_set() -> PromptFile:
    """Return the prompts of all its files. A prompt's source is its file's name; its line is its place in the set."""
    found = sorted((file for file in _folder() if file.name.endswith(".yaml")), key=lambda file: file.name)
    contents = [(file.name.removesuffix(".yaml"), file.read_bytes()) for file in found]
    digest = hashlib.sha256(b"\0".join(chain.from_iterable((name.encode(), raw) for name, raw in contents)))
    line = count(1)
    prompts = tuple(prompt for name, raw in contents for prompt in _prompts(name, yaml.safe_load(raw), line))
    file = PromptFile("starter set", digest.hexdigest(), prompts)
    require_one_label([file])
    return file


def _folder() -> Iterator[Any]:
    return files("calibration.prompts").joinpath("starter").iterdir()


def _prompts(source: str, content: dict[str, Any], line: Iterator[int]) -> Iterator[Prompt]:
    for label, is_harmful in _LABELS.items():
        for category, requests in (content.get(label) or {}).items():
            for number, request in enumerate(requests, start=1):
                yield Prompt(
                    f"{source}.{label}.{category}.{number}",
                    next(line),
                    tuple(_turns(request)),
                    is_harmful,
                    category,
                    source,
                    content.get("lang", "en"),
                )


def _turns(request: str | list[dict[str, str]]) -> Iterator[Message]:
    if isinstance(request, str):
        yield Message(role="user", content=request)
        return
    for turn in request:
        for role, content in turn.items():
            yield Message.model_validate({"role": role, "content": content})
