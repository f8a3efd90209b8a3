"""Special tokens that a client types: a policy may refuse the requests that hold them.

vLLM's tokenizer makes special tokens of their spelling wherever it stands. Judged, they divide a prompt into turns as
the chat template's own do. Who needs no such text refuses it here, before vLLM reads the request.
"""

import json
import re
from collections.abc import Iterator, Sequence
from typing import Any

from probes.artifact import Artifact

_NO_PROMPT = frozenset({"stop", "bad_words"})
"""Fields of a request that name special tokens, and that no prompt is made of."""
_LONGEST = 1 << 20
"""Bytes of the longest body that is read to its last text: the event loop waits meanwhile."""
_ESCAPED = re.compile(r'\\(?:u([0-9a-fA-F]{4})|(["\\/]))')


class TypedSpecialToken(ValueError):
    """A request holds a special token as text; the text of the error is fit for the client."""


def typed_spellings(artifacts: Sequence[Artifact]) -> tuple[str, ...]:
    """Return how the special tokens are typed that the artifacts know of."""
    templates = [artifact.manifest.template for artifact in artifacts]
    return tuple(dict.fromkeys(each for template in templates if template for each in template.spellings))


def require_none_typed(body: bytes, spellings: Sequence[str]) -> None:
    """Raise `TypedSpecialToken` where a text of the request's JSON, or a name in it, holds one of the `spellings`."""
    if not spellings or not _may_hold(body, spellings):
        return
    if len(body) > _LONGEST:
        raise TypedSpecialToken(
            "A body of more than 1 MiB may have no special tokens as text, nor \\u and \\/ escapes."
        )
    try:
        content = json.loads(body)
    except (ValueError, RecursionError):
        return  # vLLM reads bodies in the same way, and answers malformed ones itself
    if not isinstance(content, dict):
        return
    for field, value in content.items():
        for text in _texts(value) if field not in _NO_PROMPT else ():
            if found := next((spelling for spelling in spellings if spelling in text), None):
                raise TypedSpecialToken(f"{field}: special tokens as text are not taken here; found {found!r}")


def _may_hold(body: bytes, spellings: Sequence[str]) -> bool:
    """Return whether the body could hold one: as it is, escaped, or in UTF-16 or UTF-32, which are full of zeros."""
    escapes = [b"\\"] if any(set(spelling) & {'"', "\\"} for spelling in spellings) else [b"\\u", b"\\/"]
    return any(each in body for each in (b"\0", *escapes, *(spelling.encode() for spelling in spellings)))


def _texts(value: Any) -> Iterator[str]:
    """Yield all texts and names in a JSON value, and what those become that hold JSON themselves, as tools' arguments
    do.
    """
    pending = [value]
    while pending:
        value = pending.pop()
        if isinstance(value, str):
            yield value
            if "\\" in value:
                yield _ESCAPED.sub(lambda found: chr(int(found[1], 16)) if found[1] else found[2], value)
        elif isinstance(value, dict):
            pending += [*value, *value.values()]
        elif isinstance(value, list):
            pending += value
