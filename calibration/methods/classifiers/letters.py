"""Probe `letters`: whether a request is written with changed letters, so that probes of meaning cannot read it.

A logistic regression on the mean of the content, fitted on training prompts against copies of some of them whose
letters were changed (`calibration.prompts.changed_letters`). It knows nothing of harm: harmful and harmless prompts are
changed alike. The block is chosen by what is found of ways to change letters that the fit did not see.
"""

import random
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from calibration.fitting.contract import Method
from calibration.fitting.fitted import Fitted, FittedProbe
from calibration.fitting.linear import Linear
from calibration.fitting.metrics import auroc
from calibration.fitting.training_set import TrainingSet
from calibration.methods.classifiers.linear_classifiers import fit_logistic
from calibration.prompts.changed_letters import KINDS, change_some
from calibration.prompts.messages import Message
from calibration.prompts.progress import track
from calibration.prompts.prompt_file import Prompt
from calibration.prompts.template import encode_prompts
from calibration.recording.activations import record
from calibration.recording.places import readout_at
from calibration.recording.recording import Recording
from probes.manifest import Probe

NAME = "letters"
_DEPTHS = (0.25, 0.4, 0.55, 0.7)
"""Of the blocks that may be read."""
_A_KIND = 32
"""Copies of each kind. Every second one has half of its words changed."""
_LONGEST = 100
"""Letters of a request that is copied: changed letters make several tokens each."""
_INVERSE_PENALTY = 0.01
_FALSE_POSITIVES = 0.01
_SEED = 20_260

Features = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class _Copies:
    """Prompts with changed letters, recorded."""

    kinds: npt.NDArray[np.str_]
    """`[C]`: in which way each was changed."""
    recording: Recording


@dataclass(frozen=True, slots=True)
class _Reading:
    """One block."""

    layer: int
    linear: Linear
    found: dict[str, float]
    """By kind: the share that is above 99 % of ordinary prompts, where the fit had no prompt of that kind."""
    auroc: float
    """Of copies of kinds that the fit had none of, against ordinary prompts that it did not see."""


def fit_letters(training: TrainingSet) -> Fitted:
    """Return probe `letters`."""
    with tempfile.TemporaryDirectory() as folder:
        copies = _record_copies(training, Path(folder))
        readings = [_read(training, copies, layer) for layer in track(_layers(training), "changed letters")]
    # Shares at 1 % hang on one or two prompts where few are set aside.
    best = max(readings, key=lambda each: each.auroc)
    spec = Probe(
        name=NAME,
        method="L2 logistic regression on the mean of the content, against copies with changed letters",
        role="evades",
        layers=(best.layer,),
        readout=readout_at("content"),
        bias=best.linear.bias,
        evidence={
            "unseen_kinds_auroc": best.auroc,
            **{f"unseen_{name.lower().replace(' ', '_')}": share for name, share in best.found.items()},
        },
    )
    return Fitted(probes=(FittedProbe(spec, torch.from_numpy(best.linear.weight.astype(np.float32))[None, None]),))


def _layers(training: TrainingSet) -> list[int]:
    return sorted({round(depth * (training.chat.num_layers - 1)) for depth in _DEPTHS})


def _record_copies(training: TrainingSet, folder: Path) -> _Copies:
    """Change letters of fit prompts, as many of each class, and read them."""
    chance = random.Random(_SEED)  # noqa: S311 - reproducible, not secret
    prompts = [training.prompts.prompts[row] for row in training.fit]
    copied = [
        replace(copy, category=kind)
        for kind in KINDS
        for is_harmful in (False, True)
        for copy in _changed([each for each in prompts if each.is_harmful is is_harmful], kind, chance)
    ]
    file = replace(training.prompts.file, prompts=tuple(copied))
    encoded = encode_prompts(training.chat.tokenizer, file, training.chat.context, skip_long=True)
    recording = record(training.chat, encoded, ("content",), folder, title="reading changed letters")
    return _Copies(np.array([prompt.category for prompt in encoded.prompts]), recording)


def _changed(prompts: Sequence[Prompt], kind: str, chance: random.Random) -> list[Prompt]:
    short = [each for each in prompts if len(each.messages) == 1 and len(each.text) <= _LONGEST]
    chosen = chance.sample(short, min(_A_KIND // 2, len(short)))
    return [_copy(prompt, kind, chance, in_part=bool(index % 2)) for index, prompt in enumerate(chosen)]


def _copy(prompt: Prompt, kind: str, chance: random.Random, *, in_part: bool) -> Prompt:
    write = KINDS[kind]
    text = change_some(write, prompt.text, chance) if in_part else write(prompt.text, chance)
    return replace(prompt, messages=(Message(role="user", content=text),))


def _read(training: TrainingSet, copies: _Copies, layer: int) -> _Reading:
    rows = training.held(training.fit)
    ordinary, changed = training.features(layer, "content", rows), copies.recording.features(layer, "content")
    unseen = training.features(layer, "content", training.select[~training.harmful[training.select]])
    found, above, below = {}, [], []
    for kind in dict.fromkeys(copies.kinds.tolist()):
        linear = _fit(ordinary, changed[copies.kinds != kind])
        usual, own = linear(unseen), linear(changed[copies.kinds == kind])
        found[kind] = float((own > np.quantile(usual, 1 - _FALSE_POSITIVES)).mean())
        above.append(own)
        below.append(usual)
    area = float(np.mean([auroc(*each) for each in zip(above, below, strict=True)]))
    return _Reading(layer, _fit(ordinary, changed), found, area)


def _fit(ordinary: Features, changed: Features) -> Linear:
    is_changed = np.repeat([False, True], [len(ordinary), len(changed)])
    return fit_logistic(np.concatenate([ordinary, changed]), is_changed, _INVERSE_PENALTY)


METHOD = Method("letters", fit_letters, rank=92, plain=True)
