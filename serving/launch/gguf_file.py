"""GGUF: a chat model in one file, as llama.cpp has it, made a folder that Transformers and vLLM read.

The weights are dequantised and written as bfloat16. The folder's model computes what the file's does, and not what
the model computed before somebody quantised it.
"""

import importlib.util
import shutil
import struct
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from probes.errors import ModelError

_MAGIC = b"GGUF"
_NEEDED = ("gguf", "accelerate")
_BROKEN = (OSError, ValueError, KeyError, NotImplementedError, RuntimeError, struct.error)


def convert(source: Path, out: Path) -> Path:
    """Write the model, tokenizer and chat template of the GGUF file `source` into the folder `out`; return that.

    A folder that is there is left alone: raises `ModelError`, as it does for a file that is none, that Transformers
    cannot read, or that has no chat template.
    """
    _require_packages()
    _require_gguf(source)
    if out.exists():
        raise ModelError(f"{out} is there already", field="--out", remedy="name another folder, or remove this one")
    model, tokenizer = _load(source)
    part = out.with_name(f"{out.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    try:
        part.mkdir(parents=True)
        model.to(torch.bfloat16).save_pretrained(part)
        tokenizer.save_pretrained(part)
        # safetensors writes files that nobody else may read; whoever may read the config may read the weights.
        for file in part.iterdir():
            file.chmod((part / "config.json").stat().st_mode)
        part.rename(out)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(part, ignore_errors=True)
        raise ModelError(
            f"{out} cannot be written: {error}", field="--out", remedy="name a folder with room"
        ) from error
    return out


def _require_packages() -> None:
    missing = [name for name in _NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise ModelError(
            f"reading GGUF needs {' and '.join(missing)}, which is not installed",
            field="model",
            remedy=f"pip install {' '.join(missing)}",
        )


def _require_gguf(source: Path) -> None:
    try:
        with source.open("rb") as file:
            begins = file.read(len(_MAGIC))
    except OSError as error:
        raise ModelError(
            f"{source} cannot be read: {error.strerror}", field="model", remedy="name a GGUF file"
        ) from error
    if begins != _MAGIC:
        raise ModelError(f"{source} is no GGUF file", field="model", remedy="name a file that llama.cpp would load")


def _load(source: Path) -> tuple[Any, Any]:
    """Return the model, in float32, and its tokenizer."""
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig
    from transformers.utils import logging

    logging.disable_progress_bar()
    where = {"pretrained_model_name_or_path": source.parent, "gguf_file": source.name}
    plain = GgufConfig(dequantize=True)
    try:
        tokenizer = AutoTokenizer.from_pretrained(**where)
        model = AutoModelForCausalLM.from_pretrained(**where, dtype=torch.float32, quantization_config=plain)
    except _BROKEN as error:
        raise ModelError(
            f"Transformers cannot read {source.name}: {error}",
            field="model",
            remedy="take the model's safetensors, or a GGUF file of a family that Transformers converts",
        ) from error
    if not tokenizer.chat_template:
        raise ModelError(
            f"{source.name} has no chat template, and probes are calibrated on prompts as a chat template has them",
            field="model",
            remedy="take a file of a chat model",
        )
    # The file does not say, and Transformers then takes any length for one that fits.
    tokenizer.model_max_length = model.config.max_position_embeddings
    return model, tokenizer
