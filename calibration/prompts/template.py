"""Chat templates: a prompt's token ids as the served `/v1/chat/completions` would make them."""

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise, takewhile
from typing import Any

import numpy as np
import numpy.typing as npt

from calibration.prompts.chat_template import ChatTemplate
from calibration.prompts.messages import Message
from calibration.prompts.prompt_file import Prompt, PromptFile
from probes.errors import ModelError, PromptError
from probes.template import Template

# Contents that end in a letter, a digit, a bracket, an accent and a full stop: what their renderings share at the end
# is the template's, not theirs.
_CONTENTS = ("Hello", "Add 2 and 3", "Why (or not)", "Où est le café", "Tell me a story.")


_MARKERS = ("AAAA", "BBBB", "CCCC")
"""Contents that no template changes, to find what it puts between them."""

TEMPLATE_OPTIONS: tuple[dict[str, Any], ...] = (
    {"enable_thinking": False},
    {"enable_thinking": True},
    {"thinking": False},
    {"reasoning_effort": "low"},
    {"reasoning_effort": "high"},
)
"""Options that clients may set and that chat templates know."""


@dataclass(frozen=True, slots=True)
class EncodedPrompts:
    """A file's prompts with their token ids, in file order; `num_skipped` were longer than the model's context."""

    file: PromptFile
    prompts: tuple[Prompt, ...]
    token_ids: tuple[tuple[int, ...], ...]
    num_skipped: int = 0

    @property
    def harmful(self) -> npt.NDArray[np.bool_]:
        """Labels `[N]`."""
        return np.array([prompt.is_harmful for prompt in self.prompts], dtype=bool)

    @property
    def lengths(self) -> npt.NDArray[np.int64]:
        """Tokens per prompt `[N]`."""
        return np.array([len(ids) for ids in self.token_ids], dtype=np.int64)

    def subset(self, rows: Sequence[int] | npt.NDArray[np.int64]) -> "EncodedPrompts":
        """Return the prompts at `rows`, in that order."""
        chosen = [int(row) for row in rows]
        return EncodedPrompts(
            self.file, tuple(self.prompts[row] for row in chosen), tuple(self.token_ids[row] for row in chosen)
        )

    def __add__(self, others: "EncodedPrompts") -> "EncodedPrompts":
        """Return both files' prompts, as if they were of the first."""
        return EncodedPrompts(
            self.file,
            self.prompts + others.prompts,
            self.token_ids + others.token_ids,
            self.num_skipped + others.num_skipped,
        )


def encode_prompts(tokenizer: Any, file: PromptFile, max_tokens: int, *, skip_long: bool = False) -> EncodedPrompts:
    """Render and tokenise every prompt of `file` with the generation prompt.

    A prompt of more than `max_tokens` tokens raises `PromptError`, or is left out and counted under `skip_long`.
    """
    template = ChatTemplate(tokenizer)
    texts = [
        template.write(prompt.messages, f"{file.name}:{prompt.line}", prompt.tools, prompt.template_options)
        for prompt in file.prompts
    ]
    # As vLLM does for chat: the template has written the special tokens, so the tokenizer adds none (no second BOS).
    token_ids = tokenizer(texts, add_special_tokens=False).input_ids if texts else []
    fits = [len(ids) <= max_tokens for ids in token_ids]
    if not all(fits) and not skip_long:
        longest = fits.index(False)
        raise _too_long(file, longest, len(token_ids[longest]), max_tokens)
    kept = [row for row, fit in enumerate(fits) if fit]
    return EncodedPrompts(
        file,
        tuple(file.prompts[row] for row in kept),
        tuple(tuple(token_ids[row]) for row in kept),
        num_skipped=len(fits) - len(kept),
    )


def template_suffix(tokenizer: Any) -> tuple[int, ...]:
    """Return the tokens that the chat template puts after the user's last word, the same for every prompt.

    The instruction's last token is thus `len(template_suffix(tokenizer))` places before the prompt's last one.
    """
    suffix = common_start([reversed(ids) for ids in _rendered_contents(tokenizer)])[::-1]
    if not suffix:
        raise ModelError(
            "the chat template puts no token after the user's message",
            field="chat_template",
            remedy="use a chat template with a generation prompt: probes read at its positions",
        )
    return suffix


def template_prefix(tokenizer: Any) -> tuple[int, ...]:
    """Return the tokens that the chat template puts before the first word of a single user message; it may be none."""
    return common_start(_rendered_contents(tokenizer))


def read_template(tokenizer: Any) -> Template:
    """Return what the guard needs to know of the tokenizer's chat template.

    Raises `ModelError` as `template_suffix` does.
    """
    tail = template_suffix(tokenizer)
    frames = [template_prefix(tokenizer), tail, *_between_turns(tokenizer)]
    special = {number for number, token in tokenizer.added_tokens_decoder.items() if token.special} | set(
        tokenizer.all_special_ids
    )
    return Template(
        tail=tail,
        frames=tuple(dict.fromkeys(frame for frame in frames if frame)),
        special=tuple(sorted(special)),
        spellings=tuple(tokenizer.convert_ids_to_tokens(sorted(special))),
        closings=_closings(tokenizer),
    )


def _between_turns(tokenizer: Any) -> Iterator[tuple[int, ...]]:
    """Yield the tokens that the template puts between the contents of conversations, as far as it knows such."""
    template = ChatTemplate(tokenizer)
    for roles in (("user", "assistant", "user"), ("system", "user")):
        contents = _MARKERS[: len(roles)]
        messages = tuple(Message(role=role, content=text) for role, text in zip(roles, contents, strict=True))
        try:
            text = template.write(messages, "chat template")
        except PromptError:
            continue  # a template without such a role
        pieces = [text[: text.find(contents[0])]] if roles[0] == "system" else []
        for before, after in pairwise(contents):
            pieces.append(text[text.find(before) + len(before) : text.find(after)])
        encoded = tokenizer(pieces, add_special_tokens=False).input_ids
        yield from map(tuple, encoded)


def _closings(tokenizer: Any) -> tuple[tuple[int, ...], ...]:
    """Return what options of the template put behind its tail."""
    template, message = ChatTemplate(tokenizer), (Message(role="user", content=_CONTENTS[0]),)
    plain = template.write(message, "chat template")
    found = []
    for options in TEMPLATE_OPTIONS:
        text = template.write(message, "chat template", options=json.dumps(options))
        if text != plain and text.startswith(plain):
            found.append(tuple(tokenizer(text.removeprefix(plain), add_special_tokens=False).input_ids))
    return tuple(dict.fromkeys(found))


def _rendered_contents(tokenizer: Any) -> Sequence[Sequence[int]]:
    template = ChatTemplate(tokenizer)
    renderings = [template.write((Message(role="user", content=content),), "chat template") for content in _CONTENTS]
    token_ids: Sequence[Sequence[int]] = tokenizer(renderings, add_special_tokens=False).input_ids
    return token_ids


def common_start(token_ids: Iterable[Iterable[int]]) -> tuple[int, ...]:
    """Return the tokens that all begin with."""
    shared = takewhile(lambda tokens: len(set(tokens)) == 1, zip(*token_ids, strict=False))
    return tuple(tokens[0] for tokens in shared)


def _too_long(file: PromptFile, row: int, length: int, max_tokens: int) -> PromptError:
    prompt = file.prompts[row]
    return PromptError(
        f"prompt {prompt.id!r} has {length} tokens, the model's context has {max_tokens}",
        field=f"{file.name}:{prompt.line}",
        remedy="shorten or remove the prompt, or leave such prompts out with --skip-long",
    )
