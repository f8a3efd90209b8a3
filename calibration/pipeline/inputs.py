"""What goes into a calibration: the model, its partner, the prompts as token ids, and who reads them."""

import platform
from collections.abc import Mapping
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import torch

from calibration.model.arithmetic import name_of
from calibration.model.chat_model import ChatModel
from calibration.model.partner import load_partner
from calibration.pipeline.kept import Kept, Work
from calibration.pipeline.settings import Settings
from calibration.prompts.progress import stage
from calibration.prompts.prompt_file import Prompt, PromptFile, require_classes
from calibration.prompts.splits import MINIMA, SPLITS
from calibration.prompts.template import EncodedPrompts, encode_prompts, read_template
from calibration.prompts.wrapping import wrap_prompts
from calibration.recording.engine_source import IN_PROCESS, EngineSource
from calibration.recording.ray_source import RayCluster, Replica
from probes.canary import canary_prompt
from probes.errors import CalibrationError
from probes.fingerprint import Fingerprint, fingerprint
from probes.template import Template

_CANARY = "canary"


@dataclass(frozen=True, slots=True)
class Inputs:
    """All that stages read besides each other's results. `work` is named by it."""

    model: Path
    chat: ChatModel
    partner: ChatModel | None
    identity: Fingerprint
    files: Mapping[str, PromptFile]
    source: EngineSource | RayCluster | None
    """Who reads the training prompts' activations and scores the others, where it is not this process."""
    template: Template
    """The chat template's tokens."""
    tools: dict[str, str]
    work: Work
    train: Kept[EncodedPrompts]
    validation: Kept[EncodedPrompts]
    test: Kept[EncodedPrompts]

    @classmethod
    def read(cls, model: Path, files: Mapping[str, PromptFile], out: Path, settings: Settings) -> "Inputs":
        """Load the model, encode the prompts, name the work.

        Raises `PromptError`, `ModelError` or `CalibrationError`.
        """
        with stage("reading the model's fingerprint"):
            identity = _identity(model, settings)
        with stage("loading the model"):
            chat = ChatModel.load(model, dtype=settings.dtype, device=settings.device)
            partner, partner_identity = _partner(chat, settings)
        tools, arithmetic = _tools(settings), name_of(chat.arithmetic)
        digests = {split: file.sha256 for split, file in files.items()}
        work = Work.beside(out, identity, partner_identity, digests, tools, arithmetic, settings.device)
        source = _source(chat, model, identity, work, settings)
        template = read_template(chat.tokenizer)
        encoded = [_encoded(work, chat, files[split], split, settings) for split in SPLITS]
        return cls(model, chat, partner, identity, files, source, template, tools, work, *encoded)

    @property
    def arithmetic(self) -> str:
        """What the passes that thresholds are certified by compute in."""
        return self.identity.dtype if isinstance(self.source, EngineSource) else name_of(self.chat.arithmetic)

    @property
    def canary(self) -> EncodedPrompts:
        """The prompt whose scores a server compares with the artifact's when it starts."""
        config: Any = self.chat.model.config
        prompt = Prompt(_CANARY, 0, (), is_harmful=False, category=None, source=None)
        token_ids = tuple(canary_prompt(config.get_text_config().vocab_size, self.template))
        return EncodedPrompts(self.files["validation"], (prompt,), (token_ids,))

    def require_unchanged(self, settings: Settings) -> None:
        """Raise `CalibrationError`, and forget the work, when the model's files are no longer those that it began with.

        Weights are mapped from their file, so a file written over in place changes the model in the middle of a run.
        """
        if _identity(self.model, settings) != self.identity:
            self.work.forget()
            raise CalibrationError(
                "the model's files changed while it was being read",
                field="model",
                remedy="calibrate again when nothing writes to the model's folder",
            )


def _identity(model: Path, settings: Settings) -> Fingerprint:
    return fingerprint(model, dtype=None if settings.dtype == "auto" else settings.dtype)


def _partner(chat: ChatModel, settings: Settings) -> tuple[ChatModel | None, Fingerprint | None]:
    if settings.partner is None:
        return None, None
    partner = load_partner(chat, settings.partner, dtype=settings.dtype, device=settings.device)
    return partner, fingerprint(settings.partner)


def _source(
    chat: ChatModel, model: Path, identity: Fingerprint, work: Work, settings: Settings
) -> EngineSource | RayCluster | None:
    if settings.engine != IN_PROCESS:
        arguments, folder = settings.engine_args, work.folder
        return EngineSource.named(
            settings.engine, arguments, model=model, dtype=settings.dtype, folder=folder, chat=chat
        )
    if settings.ray is None:
        return None
    arithmetic = name_of(chat.arithmetic)
    replica = Replica(str(model), settings.dtype, settings.device, arithmetic, identity, torch.get_num_threads())
    return RayCluster(settings.ray, replica)


def _encoded(work: Work, chat: ChatModel, file: PromptFile, split: str, settings: Settings) -> Kept[EncodedPrompts]:
    """Encode a file's prompts; the training prompts within their limit, and with wrapped copies."""

    def encode(_split: str, skip_long: bool, limit: int | None, wrap: float) -> EncodedPrompts:
        found = encode_prompts(chat.tokenizer, file, chat.context, skip_long=skip_long)
        require_classes(found.harmful, file.name, MINIMA[split])  # the last of a class may have been too long
        if limit is not None:
            rng = np.random.default_rng(0)
            sides = [rng.permutation(np.flatnonzero(found.harmful == label))[:limit] for label in (False, True)]
            found = found.subset(np.sort(np.concatenate(sides)))
        return found + _wrapped(chat, found, wrap) if wrap else found

    limit, wrap = (settings.limit, settings.wrap) if split == "train" else (None, 0.0)
    return work.derive("encoded", encode, split, settings.skip_long, limit, wrap)


def _wrapped(chat: ChatModel, train: EncodedPrompts, share: float) -> EncodedPrompts:
    """Return wrapped copies of training prompts, but for those that are then longer than the model's context."""
    return encode_prompts(
        chat.tokenizer, replace(train.file, prompts=wrap_prompts(train.prompts, share)), chat.context, skip_long=True
    )


def _tools(settings: Settings) -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in ("foreguard", "torch", "transformers", "scikit-learn", "numpy"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed as a package"
    if settings.engine != IN_PROCESS:
        found["engine"] = " ".join([settings.engine, *settings.engine_args])
    return found
