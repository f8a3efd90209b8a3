"""An artifact met with new prompts: the model is loaded, its fingerprint required, and the prompts scored."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from calibration.controls import random_probes, report_controls
from calibration.evaluate import Report, evaluate
from calibration.methods.fitted import FittedProbe
from calibration.model import ChatModel
from calibration.pipeline import bank_of
from calibration.prompts import PromptFile, require_classes
from calibration.refusal_metric import find_refusal_tokens, first_token_log_probs
from calibration.request_scores import score_prompts
from calibration.strata import strata_of
from calibration.template import EncodedPrompts, encode_prompts
from calibration.tune import Sample, Tuned, columns_of, policy_diff, tune_scores
from guard.policy_file import parse_policy
from probes.artifact import BENIGN_SCORES, HARMFUL_SCORES, Artifact
from probes.errors import ArtifactError, PolicyError, PromptError
from probes.fingerprint import fingerprint
from probes.scoring import ProbeBank

_MOST_FOR_TOKENS = 128
"""Prompts per class by which the model's refusal tokens are found, as in calibration."""


@dataclass(frozen=True, slots=True)
class _Loaded:
    """A model that an artifact was found to belong to."""

    chat: ChatModel
    artifact: Artifact
    skip_long: bool

    def encode(self, file: PromptFile) -> EncodedPrompts:
        return encode_prompts(self.chat.tokenizer, file, self.chat.context, skip_long=self.skip_long)


@dataclass(frozen=True, slots=True)
class Evaluated:
    """A report, and what it was made from."""

    report: Report
    prompts: EncodedPrompts
    names: tuple[str, ...]
    scores: npt.NDArray[np.float32]
    """`[N, K]`, in file order."""

    def lines(self) -> Iterator[str]:
        """Yield one JSON object a prompt: `id`, `label`, `source` and `scores` by probe."""
        for prompt, row in zip(self.prompts.prompts, self.scores, strict=True):
            scores = dict(zip(self.names, map(float, row), strict=True))
            label = "harmful" if prompt.is_harmful else "harmless"
            yield json.dumps({"id": prompt.id, "label": label, "source": prompt.source, "scores": scores})


def evaluate_artifact(
    model: Path,
    artifact: Artifact,
    file: PromptFile,
    *,
    train: PromptFile | None = None,
    dtype: str = "auto",
    device: str = "cpu",
    skip_long: bool = False,
) -> Evaluated:
    """Score `file` and report on it. Raises `ArtifactMismatch`, `ModelError` or `PromptError`."""
    require_classes(file.harmful, file.name)
    loaded = _load(model, artifact, dtype, device, skip_long)
    prompts = loaded.encode(file)
    require_classes(prompts.harmful, file.name)
    training = loaded.encode(train) if train else None
    probes = _probes(artifact)
    bank = bank_of(artifact.manifest.fingerprint, [*probes, *random_probes(probes[0].spec, loaded.chat.hidden_size)])
    tokens = _refusal_tokens(loaded.chat, training) if training else ()
    scored = score_prompts(loaded.chat, bank, prompts, refusal_tokens=tokens)
    names = bank.names[: len(probes)]
    report = evaluate(
        prompts,
        scored.scores,
        names,
        artifact.tensors[BENIGN_SCORES].numpy(),
        split=file.name,
        controls=report_controls(prompts, scored, bank.names, train=training),
        platt=[probe.spec.platt for probe in probes],
    )
    return Evaluated(report, prompts, names, scored.scores[:, : len(names)])


def tune_policy(
    model: Path,
    artifact: Artifact,
    policy: Path,
    file: PromptFile,
    *,
    harmful: PromptFile | None = None,
    strata: Sequence[str] = (),
    target_fpr: float = 0.01,
    confidence: float = 0.95,
    dtype: str = "auto",
    device: str = "cpu",
    skip_long: bool = False,
) -> tuple[list[Tuned], str]:
    """Return each score's threshold on the benign prompts of `file`, and the diff of `policy` that applies them.

    With `strata` (kinds of `calibration.strata`) the threshold holds in each of them. Recall is measured on `harmful`, on
    the harmful prompts of `file`, or on the artifact's own, whichever there is first.
    """
    text = _read_policy(policy)
    parsed = parse_policy(text, policy.name)
    loaded = _load(model, artifact, dtype, device, skip_long)
    bank = ProbeBank.from_artifact(artifact)
    prompts = loaded.encode(file)
    scores = score_prompts(loaded.chat, bank, prompts, title="scoring your prompts").scores
    benign = Sample(
        columns_of(bank.names, scores[~prompts.harmful], parsed), strata_of(prompts, strata)[~prompts.harmful]
    )
    harmful_scores = scores[prompts.harmful]
    if harmful is not None:
        harmful_scores = _harmful_only(loaded, bank, harmful)
    elif not len(harmful_scores):
        harmful_scores = artifact.tensors[HARMFUL_SCORES].numpy()
    tuned = tune_scores(benign, columns_of(bank.names, harmful_scores, parsed), target_fpr, confidence)
    return tuned, policy_diff(text, policy.name, parsed, benign, target_fpr, confidence)


def _load(model: Path, artifact: Artifact, dtype: str, device: str, skip_long: bool) -> _Loaded:
    artifact.manifest.fingerprint.require(fingerprint(model, dtype=None if dtype == "auto" else dtype))
    return _Loaded(ChatModel.load(model, dtype=dtype, device=device), artifact, skip_long)


def _probes(artifact: Artifact) -> list[FittedProbe]:
    if not artifact.manifest.probes:
        raise ArtifactError("the artifact has no probes", field="probes", remedy="run `foreguard calibrate`")
    return [FittedProbe(spec, artifact.tensors[f"probe.{spec.name}.weight"]) for spec in artifact.manifest.probes]


def _refusal_tokens(chat: ChatModel, training: EncodedPrompts) -> tuple[int, ...]:
    sides = [np.flatnonzero(training.harmful == label)[:_MOST_FOR_TOKENS] for label in (False, True)]
    sample = training.subset(np.concatenate(sides))
    log_probs: torch.Tensor = first_token_log_probs(chat, sample)
    return find_refusal_tokens(log_probs, sample.harmful)


def _harmful_only(loaded: _Loaded, bank: ProbeBank, file: PromptFile) -> npt.NDArray[np.float32]:
    prompts = loaded.encode(file)
    if not prompts.harmful.any():
        raise PromptError("holds no harmful prompts", field=file.name, remedy='give prompts with "label": "harmful"')
    return score_prompts(loaded.chat, bank, prompts, title="scoring harmful prompts").scores[prompts.harmful]


def _read_policy(path: Path) -> str:
    try:
        return path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise PolicyError(
            f"cannot read {path.name}: {error}", field="policy", remedy="name a readable YAML file"
        ) from error
