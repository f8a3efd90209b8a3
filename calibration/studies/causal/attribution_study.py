"""Which parts of the model carry its refusals: AtP* ranks them all, exact patching checks the top and a random
sample.
"""

import numpy as np
import numpy.typing as npt
import torch
from scipy.stats import spearmanr

from calibration.fitting.contract import Study
from calibration.fitting.fitted import Fitted
from calibration.fitting.study import Chart, Series, Skipped, StudyResult, Table
from calibration.fitting.training_set import TrainingSet
from calibration.model.float32 import in_float32, is_narrow, too_large
from calibration.model.sites import Kind, Sites
from calibration.studies.causal.attribution import Estimate, Part, estimate
from calibration.studies.causal.exact_patching import patch_exactly
from calibration.studies.causal.pairs import PromptPairs, contrast_pairs

_PAIRS = 12
_FEWEST = 4
_TOP = _RANDOM = 8
"""Parts of a kind that are patched exactly: the best by AtP*, and as many of the others drawn at random."""
_SHOWN = 12
_SEED = 20_260
_NAME, _TITLE = "attribution", "Which parts of the model carry its refusals"
_NAMES: dict[Kind, str] = {
    "query": "query of head",
    "key": "key of head",
    "head": "head",
    "attention": "attention",
    "neuron": "neuron",
    "mlp": "MLP",
    "stream": "residual stream",
}

_Exact = dict[Part, torch.Tensor]
_Floats = npt.NDArray[np.float64]


def attribution_study(training: TrainingSet, found: Fitted) -> tuple[StudyResult, ...]:  # noqa: ARG001 - studies get it
    """Return the study. Raises `Skipped` where it cannot be asked. Gradients are taken in float32."""
    tokens, model = training.require_refusals(), training.chat.model
    if reason := too_large(model):
        raise Skipped(reason)
    pairs = contrast_pairs(training, tokens, _PAIRS)
    if len(pairs) < _FEWEST:
        raise Skipped(
            f"{len(pairs)} pairs of a refused and an answered prompt have one length, and {_FEWEST} are needed"
        )
    note = " The model was computed in float32 for this, and not in its own precision." if is_narrow(model) else ""
    with in_float32(model):
        sites = Sites.of(training.chat, next(pairs.batches(training, len(pairs)))[0])
        estimates = estimate(training, sites, pairs, tokens)
        exact = patch_exactly(training, sites, pairs, tokens, _checked(estimates))
    return (_study(estimates, exact, pairs, note + _left_out(sites)),)


def _left_out(sites: Sites) -> str:
    """Say which kinds of parts this model does not let be reached."""
    heads = "" if sites.has_heads else " Heads are left out: the model's attention is not plain softmax attention."
    neurons = "" if sites.down_projections else " Neurons are left out: no single down-projection sees every token."
    return heads + neurons


def _checked(estimates: dict[Part, Estimate]) -> list[Part]:
    """Return the parts to patch exactly: of each kind the top ones, and a random sample of the rest."""
    rng = np.random.default_rng(_SEED)
    chosen: list[Part] = []
    for kind in _NAMES:
        ranked = sorted((part for part in estimates if part.kind == kind), key=lambda part: -estimates[part].refined)
        rest = ranked[_TOP:]
        drawn = rng.permutation(len(rest))[:_RANDOM]
        chosen += [*ranked[:_TOP], *(rest[index] for index in sorted(drawn))]
    return chosen


def _study(estimates: dict[Part, Estimate], exact: _Exact, pairs: PromptPairs, note: str) -> StudyResult:
    rows = [_agreement(kind, estimates, exact) for kind in _NAMES if any(part.kind == kind for part in exact)]
    best = max(exact, key=lambda part: float(exact[part].mean()))
    plain, refined = (_spearman(*_columns(estimates, exact, which)) for which in ("magnitude", "refined"))
    return StudyResult(
        name=_NAME,
        title=_TITLE,
        finding=(
            f"Of {len(exact)} parts patched exactly (of {len(estimates)} ranked), {_name(best)} carries most: with its "
            f"value from a harmless prompt the log-odds of refusal fall by {float(exact[best].mean()):.2f}. Rank "
            f"correlation with exact patching: plain attribution {plain:.2f}, AtP* {refined:.2f}. {len(pairs)} pairs "
            f"of selection prompts, one refused and one answered, of equal length; all positions patched at once.{note}"
        ),
        charts=(_chart(estimates, exact),),
        tables=(
            Table(
                name="agreement",
                columns=("parts", "in all", "patched exactly", "Spearman, plain", "Spearman, AtP*", "top 5 in common"),
                rows=tuple(rows),
            ),
            Table(
                name="top",
                columns=("part", "log-odds lost", "standard error", "estimated, plain", "magnitude", "AtP* magnitude"),
                rows=tuple(_row(part, estimates, exact) for part in _strongest(exact)),
            ),
        ),
    )


def _strongest(exact: _Exact) -> list[Part]:
    return sorted(exact, key=lambda part: -float(exact[part].abs().mean()))[:_SHOWN]


def _row(part: Part, estimates: dict[Part, Estimate], exact: _Exact) -> tuple[str | float, ...]:
    lost, guess = exact[part], estimates[part]
    error = float(lost.std()) / len(lost) ** 0.5
    return _name(part), float(lost.mean()), error, guess.effect, float(lost.abs().mean()), guess.refined


def _agreement(kind: Kind, estimates: dict[Part, Estimate], exact: _Exact) -> tuple[str | float | int, ...]:
    ours = {part: lost for part, lost in exact.items() if part.kind == kind}
    plain, refined = (_columns(estimates, ours, which) for which in ("magnitude", "refined"))
    in_all = sum(part.kind == kind for part in estimates)
    top = min(5, len(ours))
    shared = len(set(np.argsort(-refined[0])[:top]) & set(np.argsort(-refined[1])[:top]))
    return _NAMES[kind], in_all, len(ours), _spearman(*plain), _spearman(*refined), f"{shared} of {top}"


def _columns(estimates: dict[Part, Estimate], exact: _Exact, which: str) -> tuple[_Floats, _Floats]:
    """Return estimates and exact values, both means of absolute values over pairs, in one order."""
    guesses = np.array([getattr(estimates[part], which) for part in exact])
    return guesses, np.array([float(lost.abs().mean()) for lost in exact.values()])


def _spearman(guesses: _Floats, truth: _Floats) -> float:
    if len(guesses) < 3 or np.ptp(guesses) == 0 or np.ptp(truth) == 0:
        return float("nan")
    return float(spearmanr(guesses, truth).statistic)


def _chart(estimates: dict[Part, Estimate], exact: _Exact) -> Chart:
    series = []
    for kind, name in _NAMES.items():
        ours = [part for part in exact if part.kind == kind]
        if ours:
            x = tuple(float(exact[part].abs().mean()) for part in ours)
            series.append(Series(name=name, x=x, y=tuple(estimates[part].refined for part in ours)))
    return Chart(
        name="agreement",
        caption="Each point is one part of the model; on the diagonal the estimate is exact. Means of absolute values.",
        x_label="exact patching, log-odds of refusal",
        y_label="AtP*, log-odds of refusal",
        series=tuple(series),
        scatter=True,
    )


def _name(part: Part) -> str:
    if part.kind == "stream":
        return f"{_NAMES[part.kind]} after block {part.layer}, position {-1 - part.unit}"
    unit = "" if part.kind in ("attention", "mlp") else f" {part.unit}"
    return f"{_NAMES[part.kind]}{unit} of block {part.layer}"


STUDY = Study("attribution", attribution_study, rank=60)
