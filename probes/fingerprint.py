"""Fingerprints: which model an artifact belongs to.

A probe reads one model's hidden states as that model computes them. Other weights, another tokenizer, chat template or
precision give other numbers under the same names, so an artifact refuses every model but its own.
"""

import hashlib
import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from probes.errors import ArtifactMismatch, ModelError

_VOLATILE = {"_name_or_path", "transformers_version", "dtype", "torch_dtype", "use_cache"}
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "merges.txt", "tekken.json")
_SETTINGS_FILES = (
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.json",
    "params.json",
    "hf_quant_config.json",
)
"""Smaller files that change token ids, rendered prompts or numbers where a model has them. `generation_config.json` is
not one: it says how answers are sampled."""
_UNREAD = {"name_or_path", "tokenizer_file", "special_tokens_map_file"}
"""Keys of these files that change nothing."""
ADAPTER_FILES = ("adapter_config.json", "adapter_model.safetensors")
_LAYERS = ("num_hidden_layers", "n_layer", "n_layers")
_WIDTH = ("hidden_size", "n_embd", "d_model")
"""What configurations call the number of decoder blocks and the width of the residual stream."""
_CHUNK_BYTES = 1 << 22
_NOT_A_MODEL = "name a folder that holds a Hugging Face model"


class Fingerprint(BaseModel):
    """What must be equal for an artifact to fit a model; digests are hexadecimal SHA-256."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    architecture: str
    num_layers: int
    hidden_size: int
    config: str
    weights: str
    tokenizer: str
    chat_template: str
    dtype: str
    """The precision that the model computes in: `bfloat16`, `float16` or `float32`."""
    quantization: str | None = None
    lora: str | None = None
    settings: str | None = None
    """Of the tokenizer's and the checkpoint's smaller files.

    None in an artifact from before it was kept: not compared.
    """

    def require(self, model: "Fingerprint") -> None:
        """Raise `ArtifactMismatch`, naming each field that differs, unless `model` is the model of this artifact."""
        expected, found = self.model_dump(), model.model_dump()
        if self.settings is None:
            found["settings"] = None
        differing = [name for name in expected if expected[name] != found[name]]
        if not differing:
            return
        details = "; ".join(
            f"{name}: artifact has {_short(expected[name])}, model has {_short(found[name])}" for name in differing
        )
        raise ArtifactMismatch(
            f"the artifact was made from another model ({details})",
            field=f"fingerprint.{differing[0]}",
            remedy="serve the model that the artifact was calibrated on, or run `foreguard calibrate` on this one",
        )


def fingerprint(
    model: Path, *, dtype: str | None = None, chat_template: str | None = None, adapter: Path | None = None
) -> Fingerprint:
    """Return the fingerprint of the model folder `model` (config, tokenizer and safetensors files).

    `dtype` and `chat_template` (its text) stand in for the folder's own where the server overrides them. With a LoRA
    `adapter`'s folder it is that of the model under the adapter. Raises `ModelError` when a folder lacks a part.
    """
    config = _read_json(model / "config.json")
    text = config.get("text_config") or config
    if not isinstance(text, dict):
        raise ModelError("is not an object", field="config.text_config", remedy=_NOT_A_MODEL)
    return Fingerprint(
        architecture=(config.get("architectures") or [config.get("model_type", "unknown")])[0],
        num_layers=_positive(text, _LAYERS, model),
        hidden_size=_positive(text, _WIDTH, model),
        config=_digest_json({key: value for key, value in config.items() if key not in _VOLATILE}),
        weights=_digest_weights(model),
        tokenizer=_digest_files(
            [model / name for name in _TOKENIZER_FILES if (model / name).exists()], model, "tokenizer"
        ),
        chat_template=hashlib.sha256((chat_template or read_chat_template(model)).encode()).hexdigest(),
        dtype=dtype or str(text.get("dtype") or text.get("torch_dtype") or config.get("dtype") or "float32"),
        quantization=(config.get("quantization_config") or {}).get("quant_method"),
        lora=_digest_adapter(adapter) if adapter else None,
        settings=_digest_settings(model),
    )


def read_chat_template(model: Path) -> str:
    """Return the model folder's chat template, or an empty string where it has none."""
    if (model / "chat_template.jinja").exists():
        return _read_text(model / "chat_template.jinja")
    tokenizer_config = model / "tokenizer_config.json"
    template = _read_json(tokenizer_config).get("chat_template") if tokenizer_config.exists() else None
    return template if isinstance(template, str) else json.dumps(template) if template else ""


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise ModelError(f"cannot read {path.name}: {error}", field="model", remedy=_NOT_A_MODEL) from error


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(_read_text(path))
    except (ValueError, RecursionError) as error:
        raise ModelError(
            f"cannot read {path.name}: {error}", field="model", remedy="name a folder that holds a Hugging Face model"
        ) from error
    if not isinstance(content, dict):
        raise ModelError(
            f"{path.name} is not a JSON object", field="model", remedy="name a folder that holds a Hugging Face model"
        )
    return content


def _positive(config: dict[str, Any], keys: Sequence[str], model: Path) -> int:
    value = next((config[key] for key in keys if config.get(key) is not None), None)
    if not isinstance(value, int) or value < 1:
        raise ModelError(
            f"config.json of {model.name} has no {keys[0]}",
            field=f"config.{keys[0]}",
            remedy="name a decoder-only language model",
        )
    return value


def _digest_json(content: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def _digest_settings(model: Path) -> str:
    content: dict[str, Any] = {
        name: {key: value for key, value in _read_json(model / name).items() if key not in _UNREAD}
        for name in _SETTINGS_FILES
        if (model / name).exists()
    }
    content.get("tokenizer_config.json", {}).pop("chat_template", None)  # which has a digest of its own
    for template in sorted(model.glob("additional_chat_templates/*.jinja")):
        content[template.name] = _read_text(template)
    return _digest_json(content)


def _digest_weights(model: Path) -> str:
    return _digest_files(sorted(model.glob("*.safetensors")), model, "weights (*.safetensors)")


def _digest_adapter(adapter: Path) -> str:
    missing = [name for name in ADAPTER_FILES if not (adapter / name).is_file()]
    if missing:
        raise ModelError(
            f"{adapter.name} has no {' and no '.join(missing)}",
            field="adapter",
            remedy="name the folder of a LoRA adapter, as PEFT saves it in safetensors",
        )
    return _digest_files([adapter / name for name in ADAPTER_FILES], adapter, "adapter")


def _digest_files(paths: list[Path], model: Path, what: str) -> str:
    if not paths:
        raise ModelError(
            f"{model.name} has no {what}",
            field="model",
            remedy="name a complete model folder; convert pickled weights to safetensors",
        )
    total = hashlib.sha256()
    # hashlib lets go of the interpreter lock, so shards are read side by side.
    with ThreadPoolExecutor(max_workers=8) as pool:
        for path, digest in zip(paths, pool.map(_digest_file, paths), strict=True):
            total.update(f"{path.name}:{digest};".encode())
    return total.hexdigest()


def _digest_file(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def _short(value: object) -> str:
    return f"{value[:12]}…" if isinstance(value, str) and len(value) > 40 else repr(value)
