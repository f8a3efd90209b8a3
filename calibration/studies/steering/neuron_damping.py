"""AurA: neurons that detect a concept are damped by how well they detect it.

A neuron's AUROC for harm is that of its maximum over the prompt's tokens. Above one half, its output is multiplied by
`1 - 2 (AUROC - 1/2)`; no training, and nothing to tune. What is damped is the detection of harm, which a refusing model
needs: so this is measured offline and not served. It could be: the factors fold into the down-projections.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial

import numpy as np
import numpy.typing as npt
import torch

from calibration.fitting.contract import Study
from calibration.fitting.fitted import Fitted
from calibration.fitting.metrics import aurocs
from calibration.fitting.study import StudyResult, Table, required_of_the_model
from calibration.fitting.training_set import Rows, TrainingSet
from calibration.methods.steering.dose_response import StrengthSweep
from calibration.model.chat_model import ChatModel
from calibration.model.hooks import on_input, together
from calibration.prompts.batching import Batch, iterate_batches
from calibration.prompts.progress import track

_MOST = 96
"""Fitting prompts per class."""

Values = npt.NDArray[np.float64]


def damping_study(training: TrainingSet, found: Fitted) -> tuple[StudyResult, ...]:  # noqa: ARG001 - a study gets it
    """Return what damping does to refusals and to harmless answers. Raises `Skipped` without neurons or refusals."""
    tokens = training.require_refusals()
    with required_of_the_model():
        training.chat.down_projections()
    rows = np.concatenate([training.sample(training.fit, harmful=label, most=_MOST) for label in (False, True)])
    factors = [damping(each, training.harmful[rows]) for each in _peaks(training, rows)]
    trial = StrengthSweep.of(training, tokens)
    before, after = trial.untouched(), trial.dose(1.0, lambda _: damped(training.chat, factors))
    every = np.concatenate(factors)
    finding = (
        f"{(every < 1).mean():.0%} of {len(every)} neurons detect harm better than chance; damping takes "
        f"{1 - every.mean():.0%} off all on average. Harmful prompts refused: {before.refused_harmful:.0%} before, "
        f"{after.refused_harmful:.0%} after ({len(trial.harmful.prompts)} prompts); harmless first tokens change by "
        f"{after.kl_harmless:.2f} nats."
    )
    rows_of_table = (
        *((name, getattr(before, name), getattr(after, name)) for name in ("refused_harmful", "refused_harmless")),
        *((name, getattr(before, name), getattr(after, name)) for name in ("refusal_harmful", "kl_harmless")),
    )
    table = Table(name="damping", columns=("measured", "before", "after"), rows=rows_of_table)
    return (
        StudyResult(
            name="damping", title="Damping the neurons that detect harm (AurA)", finding=finding, tables=(table,)
        ),
    )


def damping(peaks: Values, harmful: npt.NDArray[np.bool_]) -> Values:
    """Return each neuron's factor `[I]` from its peaks `[N, I]` on prompts with labels `[N]`."""
    area = aurocs(peaks, harmful)
    return np.asarray(np.where(area > 0.5, 1 - 2 * (area - 0.5), 1.0))


@contextmanager
def damped(chat: ChatModel, factors: Sequence[Values]) -> Iterator[None]:
    """Within the block, neurons are multiplied by their factors `[I]`, one array a decoder block, at every token."""

    def multiply(scale: torch.Tensor, neurons: torch.Tensor) -> torch.Tensor:
        return (neurons.float() * scale).to(neurons.dtype)

    scales = [torch.from_numpy(factor).float().to(chat.device) for factor in factors]
    down = chat.down_projections()
    with together(on_input(module, partial(multiply, scale)) for module, scale in zip(down, scales, strict=True)):
        yield


def _peaks(training: TrainingSet, rows: Rows) -> list[Values]:
    """Return the neurons' maxima over each prompt's tokens, `[N, I]` a block."""
    chat, found = training.chat, list[list[torch.Tensor]]()
    batches = list(iterate_batches(training.prompts.subset(rows).token_ids, chat.device))
    for batch in track(batches, "reading neurons"):
        with _reading(chat, batch) as kept:
            chat.last_logits(batch)
        found.append(kept)
    order = np.argsort(np.concatenate([batch.rows for batch in batches]))
    return [torch.cat(parts).double().numpy()[order] for parts in zip(*found, strict=True)]


@contextmanager
def _reading(chat: ChatModel, batch: Batch) -> Iterator[list[torch.Tensor]]:
    kept: list[torch.Tensor] = []
    padding = (batch.mask == 0).unsqueeze(-1)

    def keep(given: torch.Tensor) -> None:
        neurons = given.reshape(*batch.mask.shape, -1).float()
        kept.append(neurons.masked_fill(padding, -torch.inf).amax(dim=1).cpu())

    with together(on_input(module, keep) for module in chat.down_projections()):
        yield kept


STUDY = Study("damping", damping_study, rank=110)
