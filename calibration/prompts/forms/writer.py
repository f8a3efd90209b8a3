"""Writing a request down in a form: through the chat template with its options, or past it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jinja2 import TemplateError

from calibration.prompts.chat_template import ChatTemplate
from calibration.prompts.messages import Message

Messages = Sequence[Mapping[str, Any]]


def user(content: str) -> dict[str, str]:
    """Return a user's turn."""
    return {"role": "user", "content": content}


def assistant(content: str) -> dict[str, str]:
    """Return an assistant's turn."""
    return {"role": "assistant", "content": content}


class NoSuchForm(Exception):
    """The chat template cannot write a request in this form."""


@dataclass(frozen=True, slots=True)
class Written:
    """A request in a form: its text, and how many of its last tokens are cut."""

    text: str
    cut: int = 0


@dataclass(frozen=True, slots=True)
class Writer:
    """What forms are written with."""

    template: ChatTemplate
    asides: Sequence[str]
    """Harmless requests, for the turns beside the one that counts."""
    prose: Sequence[str]
    rng: np.random.Generator

    def chat(self, messages: Messages, **options: Any) -> Written:
        """Return the conversation as the chat template has it. Raises `NoSuchForm` where that does not know it."""
        opened = {"add_generation_prompt": True, **options}
        try:
            text = self.template.apply([Message.model_validate(each) for each in messages], **opened)
        except (TemplateError, ValueError, TypeError, KeyError) as error:
            raise NoSuchForm from error
        # A template may leave out what it does not know: a tool's result, or what options ask for.
        if any(isinstance(each["content"], str) and each["content"].strip() not in text for each in messages):
            raise NoSuchForm
        return Written(text)

    def begun(self, messages: Messages) -> Written:
        """Return the conversation with its last turn, the assistant's, unfinished."""
        return self.chat(messages, add_generation_prompt=False, continue_final_message=True)

    def aside(self) -> str:
        """Return some harmless request."""
        return self.asides[int(self.rng.integers(len(self.asides)))]

    def one_of(self, texts: Sequence[str]) -> str:
        """Return one of the texts."""
        return texts[int(self.rng.integers(len(texts)))]

    def words(self, least: int = 20, most: int = 600) -> str:
        """Return harmless prose of some `least` to `most` tokens, short ones as often as long ones."""
        wanted = int(np.exp(self.rng.uniform(np.log(least), np.log(most))))
        sentences: list[str] = []
        # A token is about four letters of English.
        while sum(map(len, sentences)) < 4 * wanted:
            sentences.append(self.one_of(self.prose))
        return " ".join(sentences)

    def between(self) -> tuple[str, str]:
        """Return what the template writes between a user's words and the assistant's, and between these and the
        user's.
        """
        first, second, third = "AAAA", "BBBB", "CCCC"
        text = self.chat([user(first), assistant(second), user(third)]).text
        start, middle, end = (text.index(each) for each in (first, second, third))
        return text[start + 4 : middle], text[middle + 4 : end]

    def required(self, written: Written, content: str) -> Written:
        """Return what is written if it holds `content`. Raises `NoSuchForm` otherwise."""
        if content not in written.text:
            raise NoSuchForm
        return written

    def one_that_differs(self, plain: Written, others: Sequence[Written]) -> Written:
        """Return one of the `others` that is not written as `plain` is. Raises `NoSuchForm` where there is none."""
        different = [other for other in others if other.text != plain.text]
        if not different:
            raise NoSuchForm
        return different[int(self.rng.integers(len(different)))]
