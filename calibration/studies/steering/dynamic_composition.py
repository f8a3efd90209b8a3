"""Several properties at once, each as strong as it has to be: Dynamic Activation Composition (arXiv 2406.17563).

At every answer token each vector's strength is the KL divergence between the next-token distributions with the vector
and without it, both cut to the tokens that make up their top p: where steering would change nothing more, it stops.
That takes a pass per vector and token, too much to serve. What is served in its place is a schedule made beforehand:
the mean strength by token as a share of the first, `SteeringVector.schedule`.
"""

from collections.abc import Sequence
from contextlib import ExitStack

import numpy as np
import numpy.typing as npt
import torch

from calibration.fitting.contract import Study
from calibration.fitting.fitted import Fitted, FittedSteering
from calibration.fitting.study import Chart, Series, Skipped, StudyResult, Table
from calibration.fitting.training_set import TrainingSet
from calibration.model.chat_model import ChatModel
from calibration.model.intervention import Strengths, steered
from calibration.prompts.batching import make_batch
from calibration.prompts.progress import track
from probes.steering import moves_of

_TOP_P = 0.5
_MOST_KL = 2.0
_STEPS = 8
_MOST = 16
"""Harmful selection prompts."""

Alphas = npt.NDArray[np.float64]


def composition_study(training: TrainingSet, found: Fitted) -> tuple[StudyResult, ...]:
    """Return the strengths that the composition gives all of an artifact's vectors at once.

    Raises `Skipped` without any.
    """
    if not found.steering:
        raise Skipped("there is no steering vector in the artifact")
    prompts = training.prompts.subset(training.sample(training.select, harmful=True, most=_MOST))
    every = [compose(training.chat, ids, found.steering) for ids in track(prompts.token_ids, "composing vectors")]
    mean = np.mean(every, axis=0)
    series = tuple(
        Series(name=each.spec.name, x=tuple(range(_STEPS)), y=tuple(mean[:, column].tolist()))
        for column, each in enumerate(found.steering)
    )
    parts = (f"{s.name} {s.y[0]:.2f} at the first token and {s.y[-1]:.2f} at the last" for s in series)
    return (
        StudyResult(
            name="composition",
            title="How long steering has to last",
            finding=f"Mean strength over {len(every)} harmful prompts, {_STEPS} tokens each, together: "
            f"{'; '.join(parts)}.",
            charts=(
                Chart(
                    name="strength",
                    caption=f"KL-driven strength by answer token, at most {_MOST_KL:g}. Its shape is a schedule to "
                    "serve.",
                    x_label="answer token",
                    y_label="strength",
                    series=series,
                ),
            ),
            tables=(_schedules(found.steering, mean),),
        ),
    )


def _schedules(vectors: Sequence[FittedSteering], mean: Alphas) -> Table:
    return Table(
        name="schedules",
        columns=("vector", *(f"token {step}" for step in range(len(mean)))),
        rows=tuple(
            (each.spec.name, *(round(factor, 3) for factor in _padded(schedule_of(mean[:, column]), len(mean))))
            for column, each in enumerate(vectors)
        ),
    )


def _padded(schedule: tuple[float, ...], length: int) -> tuple[float, ...]:
    return (*schedule, *[schedule[-1]] * (length - len(schedule)))


def schedule_of(alphas: Alphas) -> tuple[float, ...]:
    """Return a vector's schedule from its mean strengths by token `[T]`: shares of the greatest, 0 where there was
    none.
    """
    greatest = float(alphas.max())
    return tuple((alphas / greatest).tolist()) if greatest > 0 else (0.0,)


def compose(
    chat: ChatModel, token_ids: Sequence[int], vectors: Sequence[FittedSteering], steps: int = _STEPS
) -> Alphas:
    """Answer one prompt greedily under all vectors; return each one's strength at each token, `[steps, S]`.

    Tokens already answered keep the strengths they were made with.
    """
    ids, alphas, start = tuple(token_ids), np.zeros((0, len(vectors))), len(token_ids) - 1
    for _ in range(steps):
        calm = np.vstack([alphas, np.zeros(len(vectors))])
        untouched = _next(chat, ids, vectors, calm, start)
        new = [
            truncated_kl(_next(chat, ids, vectors, _with_one(calm, column), start), untouched)
            for column in range(len(vectors))
        ]
        alphas = np.vstack([alphas, np.clip(new, 0, _MOST_KL)])
        ids = (*ids, int(_next(chat, ids, vectors, alphas, start).argmax()))
    return alphas


def truncated_kl(steered_by: torch.Tensor, untouched: torch.Tensor, top_p: float = _TOP_P) -> float:
    """Return KL(steered || untouched) of log-probabilities `[V]` over the union of their top-p tokens, made whole
    again.
    """
    kept = _top(steered_by, top_p) | _top(untouched, top_p)
    ours, theirs = (each[kept].double().log_softmax(dim=-1) for each in (steered_by, untouched))
    return float((ours.exp() * (ours - theirs)).sum())


def _top(log_probs: torch.Tensor, top_p: float) -> torch.Tensor:
    """Return which are the fewest most likely tokens that make up `top_p`."""
    values, order = log_probs.exp().sort(descending=True)
    needed = values.cumsum(dim=0) - values < top_p
    return torch.zeros_like(log_probs, dtype=torch.bool).index_fill(0, order[needed], value=True)


def _with_one(alphas: Alphas, column: int) -> Alphas:
    found = alphas.copy()
    found[-1, column] = 1.0
    return found


def _next(
    chat: ChatModel, ids: Sequence[int], vectors: Sequence[FittedSteering], alphas: Alphas, start: int
) -> torch.Tensor:
    """Return the next token's log-probabilities `[V]` with strengths `[T, S]` at the positions from `start` on."""
    with ExitStack() as stack:
        for column, each in enumerate(vectors):
            strengths = _placed(torch.from_numpy(alphas[:, column]).float(), start)
            stack.enter_context(steered(chat, moves_of(each.spec, each.tensors), strengths))
        return chat.last_logits(make_batch([ids], [0], chat.device))[0].log_softmax(dim=-1).cpu()


def _placed(alphas: torch.Tensor, start: int) -> Strengths:
    def strengths(stream: torch.Tensor) -> torch.Tensor:
        found = torch.zeros(stream.shape[:2], device=stream.device)
        found[:, start:] = alphas.to(stream.device)
        return found

    return strengths


STUDY = Study("composition", composition_study, rank=100)
