"""An artifact met with new prompts: the model is loaded, its fingerprint required, and the prompts scored."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from calibration.evaluation.controls import control_notes, random_probes, report_controls
from calibration.evaluation.evaluate import Report, evaluate
from calibration.fitting.bank import bank_of
from calibration.fitting.fitted import FittedProbe
from calibration.model.chat_model import ChatModel
from calibration.model.refusal_metric import find_refusal_tokens, first_token_log_probs
from calibration.prompts.progress import stage
from calibration.prompts.prompt_file import PromptFile, require_classes
from calibration.prompts.template import EncodedPrompts, encode_prompts
from calibration.recording.engine_source import IN_PROCESS, EngineSource
from calibration.recording.request_scores import score_prompts, score_turns
from probes.artifact import BENIGN_SCORES, Artifact
from probes.errors import ArtifactError
from probes.fingerprint import fingerprint
from probes.pooling import Scores
from probes.scoring import ProbeBank

_MOST_FOR_TOKENS = 128
"""Prompts per class by which the model's refusal tokens are found, as in calibration."""


@dataclass(frozen=True, slots=True)
class Loaded:
    """A model that an artifact was found to belong to."""

    chat: ChatModel
    artifact: Artifact
    skip_long: bool
    engine: EngineSource | None = None
    """Who scores, where it is not this process."""

    def encode(self, file: PromptFile) -> EncodedPrompts:
        """Render and tokenise a file's prompts as the model is served them."""
        return encode_prompts(self.chat.tokenizer, file, self.chat.context, skip_long=self.skip_long)

    def through(self, engine: str, arguments: Sequence[str], *, model: Path, dtype: str, folder: Path) -> "Loaded":
        """Return this with the engine of that name to score, whose log and files go to `folder`."""
        if engine == IN_PROCESS:
            return self
        source = EngineSource.named(engine, arguments, model=model, dtype=dtype, folder=folder, chat=self.chat)
        return replace(self, engine=source)

    def score(self, prompts: EncodedPrompts, title: str) -> npt.NDArray[np.float32]:
        """Return the scores `[N, K]` of the artifact's probes."""
        with stage(title):
            if self.engine is not None:
                return self.engine.score(prompts, self.artifact, (), title).scores
            return score_prompts(self.chat, ProbeBank.from_artifact(self.artifact), prompts, title=title).scores


@dataclass(frozen=True, slots=True)
class Evaluated:
    """A report, and what it was made from."""

    report: Report
    prompts: EncodedPrompts
    names: tuple[str, ...]
    scores: npt.NDArray[np.float32]
    """`[N, K]`, in file order."""
    turns: Mapping[int, Scores]
    """Of each conversation, by its row, the scores `[turns, K]`; empty unless they were asked for."""

    def lines(self) -> Iterator[str]:
        """Yield one JSON object a prompt: `id`, `label`, `source`, and the last turn's `scores` by probe.

        A conversation also has `turns`, the scores of each of its turns. A served request is judged by the worst.
        """
        for index, (prompt, row) in enumerate(zip(self.prompts.prompts, self.scores, strict=True)):
            label = "harmful" if prompt.is_harmful else "harmless"
            line: dict[str, object] = {
                "id": prompt.id,
                "label": label,
                "source": prompt.source,
                "scores": self._named(row),
            }
            if index in self.turns:
                line["turns"] = [self._named(turn) for turn in self.turns[index]]
            yield json.dumps(line)

    def _named(self, scores: npt.NDArray[np.float32]) -> dict[str, float]:
        return dict(zip(self.names, map(float, scores), strict=True))


def evaluate_artifact(
    model: Path,
    artifact: Artifact,
    file: PromptFile,
    *,
    train: PromptFile | None = None,
    dtype: str = "auto",
    device: str = "cpu",
    skip_long: bool = False,
    turns: bool = False,
) -> Evaluated:
    """Score `file` and report on it; with `turns`, score each turn of its conversations.

    Raises `ArtifactMismatch`, `ModelError` or `PromptError`.
    """
    require_classes(file.harmful, file.name)
    loaded = load_for(model, artifact, dtype, device, skip_long)
    prompts = loaded.encode(file)
    require_classes(prompts.harmful, file.name)
    training = loaded.encode(train) if train else None
    probes = _probes(artifact)
    controls = random_probes(probes[0].spec, loaded.chat.hidden_size)
    bank = bank_of(artifact.manifest.fingerprint, [*probes, *controls], artifact.manifest.template)
    tokens = _refusal_tokens(loaded.chat, training) if training else ()
    with stage("scoring the prompts"):
        scored = score_prompts(loaded.chat, bank, prompts, refusal_tokens=tokens)
    names = bank.names[: len(probes)]
    with stage("measuring controls"):
        measured = report_controls(prompts, scored, bank.names, train=training)
    report = evaluate(
        prompts,
        scored.scores,
        [probe.spec for probe in probes],
        artifact.tensors[BENIGN_SCORES].numpy(),
        split=file.name,
        controls=measured,
        platt=[probe.spec.platt for probe in probes],
        notes=control_notes(measured, embed=True) if training else (),
    )
    told = _score_turns(loaded.chat, bank, prompts, len(names)) if turns else {}
    return Evaluated(report, prompts, names, scored.scores[:, : len(names)], told)


def load_for(model: Path, artifact: Artifact, dtype: str, device: str, skip_long: bool) -> Loaded:
    """Load the model that `artifact` is for. Raises `ArtifactMismatch` or `ModelError`."""
    with stage("loading the model"):
        artifact.manifest.fingerprint.require(fingerprint(model, dtype=None if dtype == "auto" else dtype))
        return Loaded(ChatModel.load(model, dtype=dtype, device=device), artifact, skip_long)


def _score_turns(chat: ChatModel, bank: ProbeBank, prompts: EncodedPrompts, num_probes: int) -> dict[int, Scores]:
    rows = [row for row, prompt in enumerate(prompts.prompts) if len(prompt.messages) > 1]
    scored = score_turns(chat, bank, [prompts.token_ids[row] for row in rows], title="scoring each turn")
    return {row: own[:, :num_probes] for row, own in zip(rows, scored, strict=True)}


def _probes(artifact: Artifact) -> list[FittedProbe]:
    if not artifact.manifest.probes:
        raise ArtifactError("the artifact has no probes", field="probes", remedy="run `foreguard calibrate`")
    return [FittedProbe.of(spec, artifact.tensors) for spec in artifact.manifest.probes]


def _refusal_tokens(chat: ChatModel, training: EncodedPrompts) -> tuple[int, ...]:
    sides = [np.flatnonzero(training.harmful == label)[:_MOST_FOR_TOKENS] for label in (False, True)]
    sample = training.subset(np.concatenate(sides))
    log_probs: torch.Tensor = first_token_log_probs(chat, sample)
    return find_refusal_tokens(log_probs, sample.harmful)
