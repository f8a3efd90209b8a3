"""What a drift sink keeps over a restart: plain data, checked when it is read.

A state holds sums and counts, and the names of strata. It holds no score of any one request.
"""

import logging
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

logger = logging.getLogger("vllm.foreguard.drift")


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class TestState(_Strict):
    """Of a sequential test."""

    __test__ = False  # its name is no test of pytest's

    count: int = Field(ge=0)
    largest: float
    alarm_at: int | None
    detector_alarm_at: int | None
    log_wealth: list[float]
    """Of each bettor."""
    sums: list[float]
    """Each bettor's part of the e-detector, before the mean."""


class BinsState(_Strict):
    """Of recent scores by bin."""

    weights: list[float]
    squares: float = Field(ge=0)


class StreamState(_Strict):
    """Of one stream of scores."""

    test: TestState
    recent: BinsState


class MeansState(_Strict):
    """Of the running means of one probe's strata in one dimension."""

    seen: int = Field(ge=0)
    groups: dict[str, tuple[float, float, float, float]]
    """By stratum: scores and their sum before, then weights and weighted sum of recent ones."""


class ProbeState(_Strict):
    """Of one probe."""

    against: str
    """Which reference and allowance it was tested against."""
    streams: dict[str, dict[str, StreamState]]
    """By dimension and stratum. The whole traffic has both empty."""
    means: dict[str, MeansState]
    """By dimension."""


class CusumState(_Strict):
    """Of a CUSUM."""

    steps: int
    limit: int
    level: int = Field(ge=0)
    count: int = Field(ge=0)
    events: int = Field(ge=0)
    alarm_at: int | None


class SinkState(_Strict):
    """Of a whole sink."""

    version: Literal[1] = 1
    decisions: int = Field(ge=0)
    given_up: int = Field(ge=0)
    strata: dict[str, list[str]]
    """Names by dimension."""
    probes: dict[str, dict[str, ProbeState]]
    """By adapter and probe. The model itself is the adapter with the empty name."""
    flags: CusumState
    unscored: CusumState
    flagged: dict[str, dict[str, tuple[int, int]]]
    """Flagged and scored prompts, by dimension and stratum."""

    def save(self, path: Path) -> None:
        """Write the state, whole or not at all. Raises `OSError`."""
        beside = path.with_name(path.name + ".new")
        beside.write_text(self.model_dump_json())
        beside.replace(path)

    @staticmethod
    def load(path: Path) -> "SinkState | None":
        """Return the state that `save` wrote. Return None where there is none, or where it cannot be read.

        A damaged file is logged and is no error: a server without its evidence is better than no server.
        """
        try:
            return SinkState.model_validate_json(path.read_bytes())
        except FileNotFoundError:
            return None
        except (OSError, ValidationError) as error:
            logger.warning("the state of drift detection in %s cannot be read, and starts anew: %s", path, error)
            return None
