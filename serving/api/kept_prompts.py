"""Prompts that the operator wants kept: the text of each as vLLM hands it to its engine, template and all."""

import copy
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

Text = str | Callable[[], str]
"""A text, or what makes one: `guard.store.asked_text`."""


class KeptPrompts:
    """Finds out what a prompt's text is, and has it kept under its decision."""

    def __init__(self, keep: Callable[[str, Text], None], tokenizer: Any) -> None:
        """`keep` takes an event id and the text; `tokenizer` spells out prompts that come as token ids."""
        self._keep = keep
        # vLLM's own serves requests: no other thread may use it meanwhile.
        self._tokenizer = copy.deepcopy(tokenizer)

    def text_of(self, prompt: Any, text: str | None) -> Text | None:
        """Return the text of what vLLM's `generate` takes; None for what has none, such as speech.

        `text` is what it was told beside.
        """
        if text is not None:
            return text
        if isinstance(prompt, str):
            return prompt
        if isinstance(prompt, Mapping):
            found, ids = prompt.get("prompt"), prompt.get("prompt_token_ids")
        else:
            found, ids = None, getattr(prompt, "prompt_token_ids", None)
        if isinstance(found, str):
            return found
        return partial(self._tokenizer.decode, list(ids)) if ids else None

    def keep(self, event_id: str, text: Text | None) -> None:
        """Have a decision's prompt kept, if there is a text. It takes microseconds."""
        if text is not None:
            self._keep(event_id, text)
