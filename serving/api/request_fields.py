"""Request fields: what a request's JSON says to the guard.

All else in it is checked and skipped, and made no object of. A body may be long, and the event loop waits while it is
read. `json.loads` takes seconds for 15 MB of brackets, this a tenth of one (docs/decisions.md has the numbers). vLLM
reads bodies by `json.loads`: what it takes and a strict parser does not (NaN, UTF-16, a mark in front, half a surrogate
pair) is read by it here too, up to a size.
"""

import json
from typing import Any

import msgspec

_MAX_LENIENT = 1 << 20
"""Bytes of the longest body that is read by `json.loads`."""
_MAX_FIELD = 64 << 10
"""Bytes of the longest field: none of them has a use for as many."""
_TOO_LONG = "too long"


class _Fields(msgspec.Struct):
    moderation: msgspec.Raw = msgspec.Raw()
    use_beam_search: msgspec.Raw = msgspec.Raw()
    stream_options: msgspec.Raw = msgspec.Raw()
    echo: msgspec.Raw = msgspec.Raw()


_DECODER = msgspec.json.Decoder(_Fields)


class UnreadableBody(ValueError):
    """A long body is JSON by its type and not by the letter; the text is fit for the client."""


def fields_of(body: bytes, *, is_json: bool) -> dict[str, Any]:
    """Return the fields of a request's JSON object that say something to the guard; none where it is no such object.

    `is_json` is whether the request says of its body that it is JSON. Raises `UnreadableBody`.
    """
    try:
        found = _DECODER.decode(body)
        return {name: _value(raw) for name in _Fields.__struct_fields__ if (raw := getattr(found, name))}
    except msgspec.ValidationError:
        return {}
    except (ValueError, RecursionError):  # msgspec's errors are ValueErrors
        if len(body) > _MAX_LENIENT and is_json:
            raise UnreadableBody("A body of more than 1 MiB must be UTF-8 and JSON by the letter.") from None
    return _leniently(body) if len(body) <= _MAX_LENIENT else {}


def _value(raw: msgspec.Raw) -> Any:
    text = bytes(raw)
    return json.loads(text) if len(text) <= _MAX_FIELD else _TOO_LONG


def _leniently(body: bytes) -> dict[str, Any]:
    try:
        found = json.loads(body)
    except (ValueError, RecursionError):
        return {}  # vLLM answers malformed JSON itself
    return {name: found[name] for name in _Fields.__struct_fields__ if name in found} if isinstance(found, dict) else {}
