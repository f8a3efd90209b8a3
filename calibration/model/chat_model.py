"""The model under calibration: any Hugging Face causal language model, run batch by batch."""

from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from calibration.model.arithmetic import dtype_of, settle
from calibration.model.hooks import on_input
from calibration.model.structure import find_blocks, find_down_projections, find_writers
from calibration.prompts.batching import Batch
from probes.errors import ModelError

_NAME_A_FOLDER = "name a folder or a Hugging Face id of a causal language model in safetensors"


@dataclass(frozen=True, slots=True)
class ChatModel:
    """A loaded model with its tokenizer and the parts of it that probes read and write."""

    model: nn.Module
    tokenizer: Any
    hidden_size: int
    context: int
    """Most tokens that a prompt may have."""
    blocks: list[nn.Module]
    """The decoder blocks `[L]`; block l's output is `resid_post` of layer l."""
    writers: list[nn.Module] = field(repr=False)
    """The attention and MLP of every block."""
    head: nn.Module = field(repr=False)
    neuron_readers: list[nn.Module] | ModelError = field(repr=False)
    """Each block's down-projection `[L]`, found once, when the model is wrapped; or why a block has no single one."""

    @classmethod
    def load(
        cls, folder: Path, *, dtype: str = "auto", device: str = "cpu", arithmetic: torch.dtype | None = None
    ) -> "ChatModel":
        """Load the model in `folder`. Raises `ModelError`.

        `dtype` is the precision of its weights: `auto` (the model's own) or torch's name of another. `arithmetic` is
        what passes compute in; without it, `calibration.model.arithmetic` chooses. It never rounds the weights further.
        """
        from transformers import AutoTokenizer
        from transformers.utils import logging

        logging.disable_progress_bar()
        try:
            tokenizer = AutoTokenizer.from_pretrained(folder)
            model = _loader_of(folder).from_pretrained(folder, dtype=dtype)
        except (OSError, ValueError, KeyError) as error:
            raise ModelError(
                f"{folder.name} cannot be loaded: {error}", field="model", remedy=_NAME_A_FOLDER
            ) from error
        return cls.wrap(settle(model.to(device), arithmetic=arithmetic), tokenizer)

    @classmethod
    def wrap(cls, model: Any, tokenizer: Any) -> "ChatModel":
        """Find the parts of a model that is loaded already. Raises `ModelError`."""
        model.eval().requires_grad_(False)
        config = model.config.get_text_config()
        head = model.get_output_embeddings()
        if head is None:
            raise ModelError("the model has no output head", field="model", remedy=_NAME_A_FOLDER)
        blocks = find_blocks(model, config.num_hidden_layers, config.hidden_size)
        writers = find_writers(model, blocks, config.hidden_size)
        context = getattr(config, "max_position_embeddings", None) or 1 << 20
        readers = _neuron_readers(model, blocks, config.hidden_size)
        return cls(model, tokenizer, config.hidden_size, context, blocks, writers, head, readers)

    @property
    def num_layers(self) -> int:
        """Decoder blocks."""
        return len(self.blocks)

    @property
    def arithmetic(self) -> torch.dtype:
        """What passes compute in."""
        return dtype_of(self.model)

    def down_projections(self) -> list[nn.Module]:
        """Return each block's down-projection `[L]`, whose input is site `mlp_neurons`. Raises `ModelError`.

        It runs nothing: whoever asks may be in the middle of a pass of their own.
        """
        if isinstance(self.neuron_readers, ModelError):
            raise self.neuron_readers.with_traceback(None)
        return self.neuron_readers

    @property
    def device(self) -> torch.device:
        """Where the model computes."""
        return next(self.model.parameters()).device

    def last_logits(self, batch: Batch) -> torch.Tensor:
        """Run the batch; return each prompt's next-token logits, float32 `[B, V]`. Block hooks see the same pass."""
        return self.logits_at(batch, batch.from_end(0).unsqueeze(1))[:, 0]

    def logits_at(self, batch: Batch, positions: torch.Tensor) -> torch.Tensor:
        """Run the batch; return the logits after `positions` `[B, P]` of each prompt, float32 `[B, P, V]`."""
        with torch.inference_mode():
            return self._logits(batch, positions)

    def differentiable_logits(self, batch: Batch) -> torch.Tensor:
        """Return what `last_logits` does, as a graph where a hook made something differentiable."""
        return self._logits(batch, batch.from_end(0).unsqueeze(1))[:, 0]

    def _logits(self, batch: Batch, positions: torch.Tensor) -> torch.Tensor:
        with _only(self.head, positions):
            output = self.model(input_ids=batch.input_ids, attention_mask=batch.mask, use_cache=False)
        logits: torch.Tensor = output.logits
        return logits.float()


def _loader_of(folder: Path) -> Any:
    """Return the Transformers class that loads the model in `folder`: of text, or of text with images and audio.

    Raises `ModelError` for a model that answers with something else.
    """
    import transformers

    config = transformers.AutoConfig.from_pretrained(folder)
    if type(config) in transformers.MODEL_FOR_CAUSAL_LM_MAPPING:
        return transformers.AutoModelForCausalLM
    if type(config) in transformers.MODEL_FOR_MULTIMODAL_LM_MAPPING:
        return transformers.AutoModelForMultimodalLM
    raise ModelError(f"{folder.name} is a {config.model_type}, no language model", field="model", remedy=_NAME_A_FOLDER)


def _neuron_readers(model: nn.Module, blocks: list[nn.Module], hidden_size: int) -> list[nn.Module] | ModelError:
    """Return the down-projections, or why there are none: a model without them is still one to calibrate."""
    try:
        return find_down_projections(model, blocks, hidden_size)
    except ModelError as error:
        return error.with_traceback(None)


def _only(head: nn.Module, positions: torch.Tensor) -> AbstractContextManager[None]:
    """Give the output head these positions of each prompt: logits for all would be the largest tensor of the pass."""
    rows = torch.arange(len(positions), device=positions.device).unsqueeze(1)
    return on_input(head, lambda states: states[rows, positions])


def resolve_model(name: str) -> Path:
    """Return the folder of a model named by folder or Hugging Face id (fetched unless cached). Raises `ModelError`."""
    if Path(name).is_dir():
        return Path(name)
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(name, ignore_patterns=["*.bin", "*.pth", "*.gguf", "original/*"]))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise ModelError(
            f"{name} is no folder and cannot be fetched: {error}", field="model", remedy=_NAME_A_FOLDER
        ) from error
