"""History: what clients send back of earlier answers, in a form that vLLM can read.

A blocked response has a part of type `refusal`, as OpenAI's has. vLLM accepts it in a later request's `input` and then
fails on it (`'ResponseOutputRefusal' object has no attribute 'text'`), so it gets the refusal as text.
"""

import json
from typing import Any

import msgspec

_MAX_ITEMS = 10_000
"""Items of the longest history that is looked through: the event loop waits meanwhile."""
_MAX_ITEM = 64 << 10
"""Bytes of the longest item that is read: one with a refusal holds the policy's message, and little else."""
_MAX_READ = 1 << 20
"""Bytes of all that are read."""


class _Input(msgspec.Struct):
    input: msgspec.Raw = msgspec.Raw()


_REQUEST = msgspec.json.Decoder(_Input)
_ITEMS = msgspec.json.Decoder(list[msgspec.Raw])


def readable(body: bytes) -> bytes | None:
    """Return a Responses request's body whose refusals are text, or None where it has none."""
    items = _items(body) if b"refusal" in body else []
    texts = {number: text for number, raw in enumerate(items) if b"refusal" in (text := bytes(raw))}
    short = {number: text for number, text in texts.items() if len(text) <= _MAX_ITEM}
    if sum(map(len, short.values())) > _MAX_READ:
        return None
    changed = {number: item for number, text in short.items() if (item := _item(text)) is not None}
    if not changed:
        return None
    encoded = msgspec.json.encode([changed.get(number, raw) for number, raw in enumerate(items)])
    # Of an object's keys that are the same the last one counts. So the rest of a long body stays as it is, and unread.
    return body.rstrip()[:-1] + b',"input":' + encoded + b"}"


def _items(body: bytes) -> list[msgspec.Raw]:
    """Return the items of the history, each as its JSON; none where vLLM is to say what it thinks of the body."""
    try:
        items = _ITEMS.decode(_REQUEST.decode(body).input)
    except (ValueError, RecursionError):
        return []
    return items if len(items) <= _MAX_ITEMS else []


def _item(text: bytes) -> msgspec.Raw | None:
    """Return an item of the history whose refusals are text, or None where it has none."""
    try:
        item = json.loads(text)
    except (ValueError, RecursionError):
        return None
    if not (isinstance(item, dict) and item.get("role") == "assistant" and isinstance(item.get("content"), list)):
        return None
    content = [_part(part) for part in item["content"]]
    return None if content == item["content"] else msgspec.Raw(json.dumps(item | {"content": content}))


def _part(part: Any) -> Any:
    if isinstance(part, dict) and part.get("type") == "refusal" and isinstance(part.get("refusal"), str):
        return {"type": "output_text", "text": part["refusal"], "annotations": []}
    return part
