"""Readouts: how the token scores of one probe's channels become one value each for the request.

`probes.pooling` has the arithmetic, which calibration and serving share, so that both mean the same thing by a score.

All of them are exact however a prompt was computed: in one chunk or many, cold or on a prefix-cache hit. Serving keeps
every token's scores as they are, by KV-cache slot, and reduces them once, when the prompt is finished.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from probes.pooling import POOLINGS, Scores, Values
from probes.template import Turn

if TYPE_CHECKING:
    import torch


class Readout(BaseModel):
    """The rule that turns a turn's token scores `[T, C]` of C channels into values.

    `last` reads the token `offset` places before the turn's last one; `mean` and `max` pool all tokens; `ema` is the
    maximum of an exponential moving average and `swim` the maximum of a sliding-window mean (arXiv 2601.04603);
    `softmax` is the mean of a channel weighted by its own softmax. Each gives one value per channel. `attention` (arXiv
    2601.11516) takes channels in pairs, the query logits of a head and then its values, and gives one value per pair:
    the mean of the values, weighted by the softmax of the logits. The paper's MultiMax is `max` of several channels.

    Adding a number to all scores of a channel adds it to the value (of `attention`: to the value channel).
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Literal["last", "mean", "max", "ema", "swim", "softmax", "attention"] = "last"
    offset: int = Field(0, ge=0)
    """`last` only: tokens before the turn's last; 0 is the position that predicts the answer's first token."""
    over: Literal["all", "content"] = "all"
    """Which tokens are read, but for `last`: `content` leaves out the chat template's own.

    A request that goes on, or whose template is cut, then has what it had before among its values. It leaves out the
    prompt's first token, too: whatever that is, models keep massive activations there (arXiv 2402.17762), in which a
    mean would drown."""
    alpha: float = Field(0.5, gt=0, le=1)
    """`ema` only: the weight of the newest token."""
    window: int = Field(16, ge=1)
    """`swim` only: tokens averaged."""
    temperature: float = Field(1.0, gt=0, allow_inf_nan=False)
    """`softmax` only: weights are `softmax(s / temperature)`; small ones near the maximum, large ones the mean."""

    @model_validator(mode="after")
    def _offset_belongs_to_last(self) -> Self:
        if self.offset and self.kind != "last":
            raise ValueError(f"offset is for readout 'last', not {self.kind!r}")
        return self

    @model_validator(mode="after")
    def _last_has_its_place(self) -> Self:
        if self.kind == "last" and self.over != "all":
            raise ValueError("readout 'last' reads one token, wherever that is: it has no 'over'")
        return self

    @property
    def reads_one_token(self) -> bool:
        """Whether it reads one token of a turn, and not all."""
        return POOLINGS[self.kind].reads_one_token

    def positions(self, turn: Turn) -> Sequence[int]:
        """Return the positions of the tokens that the readout needs of a turn, in order; a range where it needs all."""
        if self.reads_one_token:
            # A turn shorter than the chat template's tail (a raw completion) is read at its first token.
            position = max(turn.stop - 1 - self.offset, turn.start)
            return range(position, position + 1)
        if self.over == "all":
            return range(turn.start, turn.stop)
        first = max(turn.start, 1)
        if not turn.frame:
            return range(first, turn.stop) or range(turn.stop - 1, turn.stop)
        content = sorted(set(range(first, turn.stop)).difference(turn.frame))
        # A turn that says nothing is read at its last token: every turn has a score.
        return content or range(turn.stop - 1, turn.stop)

    def num_values(self, channels: int) -> int:
        """Return how many values come of `channels` channels."""
        return channels // POOLINGS[self.kind].channels_a_value

    def reduce(self, scores: Scores) -> Values:
        """Return the values `[V]` of token `scores` `[P, C]` at `positions(turn)`, in order; NaN where a token has
        none.
        """
        return POOLINGS[self.kind].values(scores, self)

    def graph(self, scores: "torch.Tensor") -> "torch.Tensor":
        """Return the same for a tensor of token scores `[P, C]`, so that gradients pass."""
        return POOLINGS[self.kind].graph(scores, self)
