"""Experts: which ones a mixture of experts turns to for harmful prompts, and what it does when they are forced.

SteerMoE (arXiv 2509.09660): with A the tokens of a kind that an expert was chosen for and N all tokens of that kind,
experts are ranked by `A1 / N1 - A2 / N2`. To force one, its log-softmax router score becomes the greatest of all plus
epsilon; to shut one out, the least minus epsilon; then softmax and top-k go on as ever. Shutting experts out undoes
safety as easily (MoTE, arXiv 2502.11096), so this is a study and not a served operator.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from calibration.fitting.contract import Study
from calibration.fitting.fitted import Fitted
from calibration.fitting.study import Skipped, StudyResult, Table
from calibration.fitting.training_set import Rows, TrainingSet
from calibration.methods.steering.dose_response import StrengthSweep
from calibration.model.chat_model import ChatModel
from calibration.model.hooks import after_call, together
from calibration.prompts.batching import iterate_batches
from calibration.prompts.progress import track

_EPSILON = 0.1
_MOST = 96
"""Fitting prompts per class."""
_FORCED = 4
"""Experts to force, over all blocks."""


@dataclass(frozen=True, slots=True)
class Choice:
    """Experts of one router to force and to shut out."""

    forced: tuple[int, ...] = ()
    shut: tuple[int, ...] = ()


def expert_study(training: TrainingSet, found: Fitted) -> tuple[StudyResult, ...]:  # noqa: ARG001 - a study gets it
    """Return what forcing the experts of harm does. Raises `Skipped` for a model without experts or refusals."""
    tokens, routers = training.require_refusals(), find_routers(training.chat)
    if not routers:
        raise Skipped("the model is no mixture of experts")
    differences = rate_differences(training, routers)
    ranked = sorted((float(gap), layer, expert) for (layer, expert), gap in np.ndenumerate(differences))
    chosen = ranked[-_FORCED:][::-1]
    choices = [Choice(forced=tuple(e for _, layer, e in chosen if layer == index)) for index in range(len(routers))]
    trial = StrengthSweep.of(training, tokens)
    before, after = trial.untouched(), trial.dose(1.0, lambda _: biased(routers, choices))
    table = Table(
        name="experts",
        columns=("router", "expert", "chosen more often for harmful prompts by"),
        rows=tuple((layer, expert, round(gap, 4)) for gap, layer, expert in chosen),
    )
    finding = (
        f"The {_FORCED} experts that harmful prompts turn to most, of {differences.size}, were forced: harmful prompts "
        f"refused {before.refused_harmful:.0%} before and {after.refused_harmful:.0%} after "
        f"({len(trial.harmful.prompts)} prompts), harmless first tokens changed by {after.kl_harmless:.2f} nats."
    )
    return (
        StudyResult(name="experts", title="Forcing the experts of harm (SteerMoE)", finding=finding, tables=(table,)),
    )


def biased_scores(logits: torch.Tensor, choice: Choice, top_k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return probabilities and indices `[T, k]` of the experts chosen from router `logits` `[T, E]` under a choice."""
    scores = logits.float().log_softmax(dim=-1)
    greatest, least = scores.amax(dim=-1, keepdim=True), scores.amin(dim=-1, keepdim=True)
    scores[:, list(choice.forced)] = greatest + _EPSILON
    scores[:, list(choice.shut)] = least - _EPSILON
    chosen = scores.softmax(dim=-1).topk(top_k, dim=-1)
    return chosen.values, chosen.indices


def find_routers(chat: ChatModel) -> list[nn.Module]:
    """Return each block's router: the module that gives logits, scores and indices of experts; none in a dense
    model.
    """
    found: list[nn.Module] = []

    def look(module: nn.Module, _args: Any, output: Any) -> None:
        if _is_routing(output) and module not in found:
            found.append(module)

    modules = [module for block in chat.blocks for module in block.modules()]
    with together(after_call(module, look) for module in modules), torch.inference_mode():
        chat.model(input_ids=torch.arange(1, 6, device=chat.device).unsqueeze(0), use_cache=False)
    return found


@contextmanager
def biased(routers: Sequence[nn.Module], choices: Sequence[Choice]) -> Iterator[None]:
    """Within the block, each router obeys its choice; one with nothing to force or shut out is left alone."""
    with together(
        after_call(router, _rerouting(choice))
        for router, choice in zip(routers, choices, strict=True)
        if choice != Choice()
    ):
        yield


def rate_differences(training: TrainingSet, routers: Sequence[nn.Module]) -> npt.NDArray[np.float64]:
    """Return how much more often each expert is chosen on tokens of harmful than of harmless prompts, `[routers,
    E]`.
    """
    sides = [training.sample(training.fit, harmful=label, most=_MOST) for label in (True, False)]
    rates = [_rates(training, routers, rows) for rows in sides]
    return np.asarray(rates[0] - rates[1])


def _rates(training: TrainingSet, routers: Sequence[nn.Module], rows: Rows) -> npt.NDArray[np.float64]:
    counts: dict[nn.Module, torch.Tensor] = {}
    tokens = 0
    batches = list(iterate_batches(training.prompts.subset(rows).token_ids, training.chat.device))
    for batch in track(batches, "counting experts"):
        real = batch.mask.flatten().bool()

        def count(router: nn.Module, _args: Any, output: Any, real: torch.Tensor = real) -> None:
            own = torch.bincount(output[2][real].flatten(), minlength=output[0].shape[-1]).cpu()
            counts[router] = counts.get(router, torch.zeros_like(own)) + own

        with together(after_call(router, count) for router in routers):
            training.chat.last_logits(batch)
        tokens += int(real.sum())
    return np.stack([counts[router].double().numpy() / tokens for router in routers])


def _rerouting(choice: Choice) -> Callable[..., Any]:
    def reroute(_router: nn.Module, _args: Any, output: Any) -> Any:
        logits, scores, _ = output
        values, indices = biased_scores(logits, choice, scores.shape[-1])
        # Some routers make the chosen probabilities sum to one, and some do not.
        if torch.allclose(scores.float().sum(-1), torch.ones(1, device=scores.device), atol=1e-2):
            values = values / values.sum(dim=-1, keepdim=True)
        return logits, values.to(scores.dtype), indices

    return reroute


def _is_routing(output: Any) -> bool:
    if not (isinstance(output, tuple) and len(output) == 3 and all(isinstance(each, torch.Tensor) for each in output)):
        return False
    logits, scores, indices = output
    return bool(logits.ndim == 2 and scores.shape == indices.shape and indices.dtype == torch.int64)


STUDY = Study("experts", expert_study, rank=120)
