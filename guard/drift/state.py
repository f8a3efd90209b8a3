"""What a drift sink keeps over a restart: plain data, checked when it is read.

A state holds sums and counts, and the names of strata. It holds no score of any one request.
"""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


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


class NoveltyState(_Strict):
    """Of the share out of distribution."""

    against: str
    """Which reference and allowance it was tested against."""
    hits: int = Field(ge=0)
    count: int = Field(ge=0)
    test: TestState
    recent: BinsState


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
    open: dict[str, dict[str, ProbeState]] = {}
    """Likewise, of prompts without a turn that ends as the chat template does."""
    novelty: dict[str, dict[str, NoveltyState]] = {}
    """By adapter and probe."""
    flags: CusumState
    unscored: CusumState
    flagged: dict[str, dict[str, tuple[int, int]]]
    """Flagged and scored prompts, by dimension and stratum."""
