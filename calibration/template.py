"""Chat templates: a prompt's token ids as the served `/v1/chat/completions` would make them."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Any

import numpy as np
import numpy.typing as npt
from jinja2 import TemplateError

from calibration.prompts import Message, Prompt, PromptFile
from probes.errors import ModelError, PromptError

# Contents that end in a letter, a digit, a bracket, an accent and a full stop: what their renderings share at the end
# is the template's, not theirs.
_CONTENTS = ("Hello", "Add 2 and 3", "Why (or not)", "Où est le café", "Tell me a story.")


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
    texts = [_render(tokenizer, prompt.messages, f"{file.name}:{prompt.line}") for prompt in file.prompts]
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


def _rendered_contents(tokenizer: Any) -> Sequence[Sequence[int]]:
    renderings = [
        _render(tokenizer, (Message(role="user", content=content),), "chat template") for content in _CONTENTS
    ]
    token_ids: Sequence[Sequence[int]] = tokenizer(renderings, add_special_tokens=False).input_ids
    return token_ids


def common_start(token_ids: Iterable[Iterable[int]]) -> tuple[int, ...]:
    """Return the tokens that all begin with."""
    shared = takewhile(lambda tokens: len(set(tokens)) == 1, zip(*token_ids, strict=False))
    return tuple(tokens[0] for tokens in shared)


def _render(tokenizer: Any, messages: tuple[Message, ...], where: str) -> str:
    if not tokenizer.chat_template:
        raise ModelError(
            "the model has no chat template",
            field="chat_template",
            remedy="use a chat model, or add chat_template.jinja to its folder",
        )
    try:
        rendered = tokenizer.apply_chat_template(
            [message.model_dump() for message in messages], tokenize=False, add_generation_prompt=True
        )
    except TemplateError as error:
        raise PromptError(
            f"the model's chat template refuses these messages: {error}",
            field=where,
            remedy="use only the roles, in the order, that the model's chat template knows",
        ) from error
    return str(rendered)


def _too_long(file: PromptFile, row: int, length: int, max_tokens: int) -> PromptError:
    prompt = file.prompts[row]
    return PromptError(
        f"prompt {prompt.id!r} has {length} tokens, the model's context has {max_tokens}",
        field=f"{file.name}:{prompt.line}",
        remedy="shorten or remove the prompt, or leave such prompts out with --skip-long",
    )
