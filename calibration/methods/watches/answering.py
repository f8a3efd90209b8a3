"""Greedy answers to prompts, and what probes score at each of their tokens, kept on disk batch by batch."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from safetensors.numpy import load_file, save_file

from calibration.model.chat_model import ChatModel
from calibration.model.generation import Reader, Tokens, plan_replies, reply
from calibration.prompts.batching import Batch, make_batch
from calibration.prompts.progress import track
from calibration.prompts.template import EncodedPrompts
from calibration.recording.stage_file import written_whole
from calibration.recording.taps import find_projections, read_taps
from probes.errors import CalibrationError
from probes.scoring import ProbeBank, Tap

_BATCH_TOKENS = 8192
"""Twice as many as elsewhere: a step of an answer costs much the same however many answers take it."""
TokenScores = npt.NDArray[np.float32]
_Stored = dict[str, npt.NDArray[np.int64] | npt.NDArray[np.float32]]


@dataclass(frozen=True, slots=True)
class Answers:
    """Greedy answers to N prompts, in the prompts' order."""

    prompts: EncodedPrompts
    tokens: tuple[Tokens, ...]
    """Each answer, with its end token where it came to one."""
    scores: tuple[TokenScores, ...]
    """Token scores `[n - 1, C]` of each answer of n tokens, columns being the bank's channels.

    Row t is where the model read the answer's token t. It never reads the last one, be it the end token or the last
    that there was room for, so an answer of one token has no score at all.
    """

    @property
    def lengths(self) -> npt.NDArray[np.int64]:
        """Tokens that were read of each answer, `[N]`."""
        return np.array([len(scores) for scores in self.scores], dtype=np.int64)

    def subset(self, rows: npt.NDArray[np.int64]) -> "Answers":
        """Return the answers at `rows`, in that order."""
        chosen = rows.tolist()
        return Answers(
            self.prompts.subset(chosen),
            tuple(self.tokens[row] for row in chosen),
            tuple(self.scores[row] for row in chosen),
        )


def answer_prompts(
    chat: ChatModel, bank: ProbeBank, prompts: EncodedPrompts, most_tokens: int, folder: Path, title: str
) -> Answers:
    """Answer every prompt greedily in at most `most_tokens` tokens, and score the answers' tokens.

    Each batch leaves a file in `folder`, which must be named for the model, the probes, the prompts and `most_tokens`;
    what lies there is not answered again. Raises `CalibrationError` naming a prompt in whose answer a score is not a
    number, and where the disk is full.
    """
    folder.mkdir(parents=True, exist_ok=True)
    tokens: list[Tokens] = [()] * len(prompts.prompts)
    scores = [np.empty((0, len(bank.plan.starts)), dtype=np.float32)] * len(prompts.prompts)
    for number, batch in enumerate(track(plan_replies(chat, prompts, most_tokens, most_tokens=_BATCH_TOKENS), title)):
        path = folder / f"{number:05d}.safetensors"
        if not path.exists():
            with written_whole(path) as staging:
                save_file(_answer_batch(chat, bank, prompts, batch, most_tokens), staging)
        content = load_file(path)
        ends = content["lengths"].cumsum()
        for row, own, scored in zip(
            batch.rows.tolist(),
            np.split(content["tokens"], ends[:-1]),
            np.split(content["scores"], (content["lengths"] - 1).cumsum()[:-1]),
            strict=True,
        ):
            tokens[row], scores[row] = tuple(own.tolist()), scored
    return Answers(prompts, tuple(tokens), tuple(scores))


def _answer_batch(chat: ChatModel, bank: ProbeBank, prompts: EncodedPrompts, batch: Batch, most_tokens: int) -> _Stored:
    answers = reply(Reader(chat, batch).read, chat, batch, most_tokens).tokens
    asked = [prompts.token_ids[row] for row in batch.rows.tolist()]
    scores = _score_answers(chat, bank, asked, answers)
    for row, scored in zip(batch.rows.tolist(), scores, strict=True):
        if not np.isfinite(scored).all():
            raise CalibrationError(
                "a score along its answer is NaN or infinite",
                field=f"prompt {prompts.prompts[row].id}",
                remedy="load the model in the precision it was trained in (float16 overflows where bfloat16 does not)",
            )
    return {
        "tokens": np.array([token for answer in answers for token in answer], dtype=np.int64),
        "lengths": np.array([len(answer) for answer in answers], dtype=np.int64),
        "scores": np.concatenate(scores),
    }


def _score_answers(
    chat: ChatModel, bank: ProbeBank, asked: Sequence[Tokens], answers: Sequence[Tokens]
) -> list[TokenScores]:
    """Return the token scores `[n - 1, C]` of each answer, from one pass over prompts and answers."""
    whole = make_batch(
        [prompt + answer[:-1] for prompt, answer in zip(asked, answers, strict=True)], range(len(asked)), chat.device
    )
    with read_taps(chat, bank, find_projections(chat, bank), whole) as read:
        chat.last_logits(whole)
    counts = [len(answer) - 1 for answer in answers]
    index = torch.from_numpy(np.repeat(np.arange(len(asked)), counts))
    place = torch.cat([len(prompt) + torch.arange(count) for prompt, count in zip(asked, counts, strict=True)])
    rows: dict[Tap, torch.Tensor] = {tap: activations[index, place] for tap, activations in read.items()}
    return np.split(bank.token_scores(rows), np.cumsum(counts)[:-1])
