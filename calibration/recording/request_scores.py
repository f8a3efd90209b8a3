"""Scores of prompts: through the model and the very arithmetic that serves (`probes.scoring.ProbeBank`)."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from calibration.model.chat_model import ChatModel
from calibration.model.refusal_metric import Intervention, refusal_metric
from calibration.prompts.batching import make_batch, plan_batches
from calibration.prompts.progress import track
from calibration.prompts.template import EncodedPrompts
from calibration.recording.taps import find_projections, read_taps
from probes.errors import CalibrationError
from probes.pooling import Scores
from probes.scoring import ProbeBank, Tap
from probes.template import Turn

_BATCH_TOKENS, _BATCH_PROMPTS = 4096, 64


@dataclass(frozen=True, slots=True)
class RequestScores:
    """Scores of N prompts, in file order."""

    scores: npt.NDArray[np.float32]
    """`[N, K]`, columns as in the bank: of each prompt's last turn, which its label is about."""
    refusal: npt.NDArray[np.float64]
    """The model's own refusal metric `[N]`, NaN where its refusal tokens are not known."""

    @classmethod
    def empty(cls, num_prompts: int, num_probes: int) -> "RequestScores":
        """Return room for the scores of so many prompts, all NaN."""
        return cls(np.full((num_prompts, num_probes), np.nan, dtype=np.float32), np.full(num_prompts, np.nan))

    def put(self, rows: Sequence[int], part: "RequestScores") -> None:
        """Fill in the scores of the prompts `rows`."""
        self.scores[rows], self.refusal[rows] = part.scores, part.refusal

    def part(self, rows: slice) -> "RequestScores":
        """Return the scores of some of the prompts."""
        return RequestScores(self.scores[rows], self.refusal[rows])

    def require_finite(self, prompts: EncodedPrompts) -> None:
        """Raise `CalibrationError` naming the first prompt whose score is not a number."""
        bad = np.flatnonzero(~np.isfinite(self.scores).all(axis=1))
        if len(bad):
            raise CalibrationError(
                "a score is NaN or infinite",
                field=f"prompt {prompts.prompts[int(bad[0])].id}",
                remedy="load the model in the precision it was trained in (float16 overflows where bfloat16 does not)",
            )


def score_prompts(
    chat: ChatModel,
    bank: ProbeBank,
    prompts: EncodedPrompts,
    *,
    refusal_tokens: Sequence[int] = (),
    intervention: Intervention = lambda _: nullcontext(),
    title: str = "scoring",
) -> RequestScores:
    """Score every prompt, each batch within `intervention(batch)`.

    Raises `CalibrationError` naming a prompt whose score is not a number,
    and `ModelError` where the bank reads neurons that the model does not have.
    """
    found = RequestScores.empty(len(prompts.prompts), len(bank.names))
    plan = plan_scoring(prompts)
    scored = score_batches(chat, bank, prompts.token_ids, plan, refusal_tokens, intervention)
    for rows, part in track(scored, title, total=len(plan)):
        found.put(rows, part)
    found.require_finite(prompts)
    return found


def plan_scoring(prompts: EncodedPrompts) -> list[list[int]]:
    """Return the batches in which prompts are scored, wherever that is: rows of the prompts."""
    return plan_batches(prompts.lengths.tolist(), max_tokens=_BATCH_TOKENS, max_prompts=_BATCH_PROMPTS)


def score_turns(
    chat: ChatModel, bank: ProbeBank, token_ids: Sequence[Sequence[int]], *, title: str = "scoring"
) -> list[Scores]:
    """Return each prompt's scores `[turns, K]`, in order: of every turn, as they are served."""
    lengths = [len(ids) for ids in token_ids]
    plan = plan_batches(lengths, max_tokens=_BATCH_TOKENS, max_prompts=_BATCH_PROMPTS)
    projections = find_projections(chat, bank)
    found: list[Scores] = [np.empty((0, len(bank.names)), np.float32)] * len(token_ids)
    for rows in track(plan, title):
        batch = make_batch(token_ids, rows, chat.device)
        with read_taps(chat, bank, projections, batch) as read:
            chat.last_logits(batch)
        for row, own in zip(rows, _score_batch(bank, [bank.turns(token_ids[row]) for row in rows], read), strict=True):
            found[row] = own
    return found


def score_batches(
    chat: ChatModel,
    bank: ProbeBank,
    token_ids: Sequence[Sequence[int]],
    plan: Sequence[Sequence[int]],
    refusal_tokens: Sequence[int] = (),
    intervention: Intervention = lambda _: nullcontext(),
) -> Iterator[tuple[Sequence[int], RequestScores]]:
    """Yield each batch's rows with their scores. Raises `ModelError` as `score_prompts` does."""
    projections = find_projections(chat, bank)
    for rows in plan:
        batch = make_batch(token_ids, rows, chat.device)
        # The intervention first: what it puts into a block's stream, the taps then read.
        with intervention(batch), read_taps(chat, bank, projections, batch) as read:
            logits = chat.last_logits(batch)
        last = [bank.turns(token_ids[row])[-1:] for row in rows]
        scores = np.concatenate(_score_batch(bank, last, read))
        part = RequestScores(scores, np.full(len(rows), np.nan))
        if refusal_tokens:
            part.refusal[:] = refusal_metric(logits.log_softmax(dim=-1).cpu(), refusal_tokens)
        yield rows, part


def _score_batch(bank: ProbeBank, turns: Sequence[Sequence[Turn]], read: Mapping[Tap, torch.Tensor]) -> list[Scores]:
    """Return the scores `[turns, K]` of those `turns` of each prompt of a batch."""
    # One product for the batch: rows are tokens of all its prompts' turns, one turn after another.
    asked = [(row, turn) for row, own in enumerate(turns) for turn in own]
    positions = [bank.positions(turn) for _, turn in asked]
    index = torch.from_numpy(np.repeat([row for row, _ in asked], [len(each) for each in positions]))
    place = torch.from_numpy(np.concatenate(positions))
    token_scores = bank.token_scores({tap: activations[index, place] for tap, activations in read.items()})
    scores = bank.scores_of_all(token_scores, positions, [turn for _, turn in asked])
    return np.split(scores, np.cumsum([len(own) for own in turns])[:-1])
