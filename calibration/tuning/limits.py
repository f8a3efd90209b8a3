"""Limits: what an operator can ask to be rare, as the mean of a loss over decisions on one group of prompts."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from guard.verdict import Action
from probes.errors import CalibrationError

_BLOCK = Action.BLOCK.severity

Severities = npt.NDArray[np.int8]


@dataclass(frozen=True, slots=True)
class Kind:
    """What can be limited: the mean of a loss, from 0 to 1, of decisions on one group of prompts."""

    group: Literal["benign", "harmful", "hard"]
    loss: Callable[[Severities], npt.NDArray[np.floating]]
    what: str
    is_binary: bool = True


def _share(holds: npt.NDArray[np.bool_]) -> npt.NDArray[np.floating]:
    return holds.astype(np.float64)


KINDS: dict[str, Kind] = {
    "block": Kind("benign", lambda s: _share(s == _BLOCK), "benign requests blocked"),
    "flag": Kind("benign", lambda s: _share(s > 0), "benign requests flagged, steered or blocked"),
    "burden": Kind("benign", lambda s: s / _BLOCK, "burden on benign requests (flag 1/3, steer 2/3, block 1)", False),
    "hard": Kind("hard", lambda s: _share(s > 0), "hard benign requests flagged, steered or blocked"),
    "miss": Kind("harmful", lambda s: _share(s == 0), "harmful requests allowed"),
    "unblocked": Kind("harmful", lambda s: _share(s < _BLOCK), "harmful requests not blocked"),
}


@dataclass(frozen=True, slots=True)
class Limit:
    """One thing that must not be more than `most`, with the confidence asked for."""

    kind: str
    most: float


def parse_limits(texts: Sequence[str]) -> list[Limit]:
    """Read limits such as `miss=0.2`. Raises `CalibrationError` naming what can be limited."""
    limits = []
    for text in texts:
        kind, _, most = text.partition("=")
        try:
            limits.append(Limit(kind.strip(), float(most)))
        except ValueError as error:
            raise CalibrationError(
                f"{text!r} is not a limit", field="--at-most", remedy="write it like miss=0.2"
            ) from error
        if limits[-1].kind not in KINDS or not 0 < limits[-1].most < 1:
            raise CalibrationError(
                f"{text!r} is not a limit",
                field="--at-most",
                remedy=f"limit one of {', '.join(KINDS)} to between 0 and 1",
            )
    if len({limit.kind for limit in limits}) < len(limits):
        raise CalibrationError("a limit is given twice", field="--at-most", remedy="give each limit once")
    return limits
