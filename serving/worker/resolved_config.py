"""What vLLM made of its arguments, environment and plugins, held against the model that an artifact is of.

The fingerprint is of files. What stands in for a part of them shows only in the resolved configuration, which it reads,
of `VllmConfig`: of `model_config` `model`, `tokenizer`, `dtype`, `quantization`, `hf_config`, and what `_ASIDE` names;
of `cache_config` `cache_dtype`.
"""

from collections.abc import Iterator
from typing import Any

from probes.errors import ArtifactMismatch
from probes.fingerprint import Fingerprint

_ASIDE = (
    "hf_overrides",
    "hf_config_path",
    "model_class_overrides",
    "quantization_config",
    "trust_remote_code",
    "enable_prompt_embeds",
    "logits_processors",
)
"""Settings that take a part of the model from elsewhere than its fingerprinted files, or change it: none may be set."""


def require_own_files(config: Any) -> None:
    """Raise `ArtifactMismatch` where the model that is about to be loaded is not what its folder's files say."""
    _refuse(_set_aside(config))


def require_calibrated(config: Any, fingerprint: Fingerprint) -> None:
    """Raise `ArtifactMismatch` where it is not, or computes otherwise than the model that `fingerprint` is of."""
    require_own_files(config)
    dtype = str(config.model_config.dtype).removeprefix("torch.")
    if dtype != fingerprint.dtype:
        raise ArtifactMismatch(
            f"the artifact was calibrated in {fingerprint.dtype}, the model is served in {dtype}",
            field="fingerprint.dtype",
            remedy=f"add `-- --dtype {fingerprint.dtype}`, or calibrate in {dtype}",
        )
    if fingerprint.quantization and not config.model_config.quantization:
        _refuse(iter([("quantization", f"None, and the artifact is of {fingerprint.quantization} weights")]))


def _set_aside(config: Any) -> Iterator[tuple[str, object]]:
    model, cache = config.model_config, config.cache_config.cache_dtype
    for name in _ASIDE:
        if found := getattr(model, name, None):  # older versions lack some
            yield name, found
    if model.tokenizer != model.model:
        yield "tokenizer", model.tokenizer
    # A quantised checkpoint may say how its cache is to be kept.
    if not _says_quantised(model):
        if model.quantization:
            yield "quantization", model.quantization
        if cache not in ("auto", str(model.dtype).removeprefix("torch.")):
            yield "kv_cache_dtype", cache


def _says_quantised(model: Any) -> bool:
    configs = (model.hf_config, getattr(model.hf_config, "text_config", None))
    return any(getattr(each, "quantization_config", None) for each in configs)


def _refuse(found: Iterator[tuple[str, object]]) -> None:
    for name, value in found:
        raise ArtifactMismatch(
            f"is {value}: the model would not compute what its files say, of which the artifact was made",
            field=f"vllm.{name}",
            remedy="leave that setting out, or calibrate a model folder whose files say so",
        )
