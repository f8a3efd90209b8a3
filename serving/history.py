"""History: what clients send back of earlier answers, in a form that vLLM can read.

A blocked response has a part of type `refusal`, as OpenAI's has. vLLM accepts it in a later request's `input` and then
fails on it (`'ResponseOutputRefusal' object has no attribute 'text'`), so it gets the refusal as text.
"""

from typing import Any

Json = dict[str, Any]


def readable(content: Json) -> Json | None:
    """Return a Responses request whose refusals are text, or None where it has none."""
    items = content.get("input")
    if not isinstance(items, list):
        return None
    changed = [_item(item) for item in items]
    return None if changed == items else content | {"input": changed}


def _item(item: Any) -> Any:
    if isinstance(item, dict) and item.get("role") == "assistant" and isinstance(item.get("content"), list):
        return item | {"content": [_part(part) for part in item["content"]]}
    return item


def _part(part: Any) -> Any:
    if isinstance(part, dict) and part.get("type") == "refusal" and isinstance(part.get("refusal"), str):
        return {"type": "output_text", "text": part["refusal"], "annotations": []}
    return part
