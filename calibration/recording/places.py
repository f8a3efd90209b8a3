"""Places: where a recording reads a prompt. Positions count from the prompt's end, as in readouts."""

from collections.abc import Sequence
from typing import Literal

from probes.readout import Readout
from probes.template import Template

Where = int | Literal["content"]
"""Tokens before the prompt's last one; or the mean over its content. Content is what the last turn says: all its tokens
but the chat template's and the prompt's first, where models keep massive activations (arXiv 2402.17762)."""

_CONTENT = Readout(kind="mean", over="content")


def every_place(instruction_offset: int) -> tuple[Where, ...]:
    """Return what a calibration records: the template's tail, the instruction's last token, and the content."""
    return (*range(instruction_offset + 1), "content")


def readout_at(where: Where) -> Readout:
    """Return the readout that reads there."""
    return _CONTENT if where == "content" else Readout(kind="last", offset=where)


def place_of(readout: Readout) -> Where | None:
    """Return the place that a readout reads, or None where it reads what no recording keeps."""
    if readout.kind == "last":
        return readout.offset
    return "content" if readout == _CONTENT else None


def content_positions(template: Template, token_ids: Sequence[int]) -> Sequence[int]:
    """Return the positions of a prompt's content."""
    return _CONTENT.positions(template.turns(token_ids)[-1])
