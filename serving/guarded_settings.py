"""Values of vLLM's settings under which the guard would not see, or not stop, what it must: each is refused.

They are read twice: off the command line, where the error comes at once and names the flag, and off the resolved
`VllmConfig` before a model is loaded, whoever set them there (a default, a platform, a plugin).
"""

from argparse import Namespace
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from probes.errors import ServingError

SPECULATION_TESTED = ("ngram", "draft_model")
"""Speculative methods under which scores and steering were compared with a plain forward pass."""

CONNECTORS_TESTED = ("ExampleConnector",)
"""KV connectors that store nothing of what is computed under steering under a name that another prompt can ask for."""

HASHES_TRUSTED = ("sha256", "sha256_cbor")
"""Hashes under which nobody finds two prompts whose cached blocks, and so their scores, have one name."""

FORMATS_READ = ("auto", "hf", "safetensors", "mistral", "fastsafetensors", "runai_streamer", "instanttensor")
"""Ways to load weights from the safetensors files that a model's fingerprint is of."""

_ABSENT = object()


@dataclass(frozen=True, slots=True)
class Setting:
    """A setting that may have some values only."""

    path: str
    """Where `VllmConfig` has it."""
    is_guarded: Callable[[Any], object]
    """Takes its value. A setting of a part that is None has none, and is guarded."""
    problem: str
    remedy: str = "leave it out"
    argument: str | None = None
    """Where vLLM's parsed arguments have it, if it may be given at all (`vllm_arguments`)."""
    in_every_version: bool = True
    """Whether each supported version of vLLM knows it. One that should and does not has been renamed."""

    @property
    def flag(self) -> str:
        """How it is given."""
        name = (self.argument or self.path.rpartition(".")[2]).partition(".")[0]
        return f"--{name.replace('_', '-')}"


def _is_cpu() -> bool:
    from vllm.platforms import current_platform

    return bool(current_platform.is_cpu())


def _one_of(*guarded: object) -> Callable[[Any], object]:
    return lambda value: value in guarded


_unset = _one_of(None, False)

SETTINGS = (
    Setting(
        "model_config.runner_type",
        lambda value: value != "pooling",
        "a pooling model generates nothing that the guard could stop",
        "serve it with `vllm serve`",
        "runner",
    ),
    Setting(
        "model_config.convert_type",
        _one_of("auto", "none"),
        "a model that is converted to pooling generates nothing that the guard could stop",
        "serve it with `vllm serve`",
        "convert",
    ),
    Setting(
        "speculative_config.method",
        _one_of(*SPECULATION_TESTED),
        f"the guard was tested with the methods {' and '.join(SPECULATION_TESTED)} only",
        f'give "method" as {" or ".join(SPECULATION_TESTED)}, or leave it out',
        "speculative_config.method",
    ),
    Setting(
        "parallel_config.pipeline_parallel_size",
        lambda value: value == 1 or not _is_cpu(),
        "vLLM's CPU build has no pipeline parallelism, so the guard was never run under it there",
        "use --tensor-parallel-size",
        "pipeline_parallel_size",
    ),
    *(
        Setting(
            path := f"compilation_config.pass_config.{name}",
            _unset,
            f"sequence parallelism (pass_config.{name}) leaves the guard's taps a part of the rows",
            argument=path,
            in_every_version=False,
        )
        for name in ("enable_sp", "fuse_gemm_comms")  # the second implies the first
    ),
    Setting(
        "parallel_config.enable_hc_sp",
        _unset,
        "sequence parallelism leaves the guard's taps a part of the rows",
        in_every_version=False,
    ),
    *(
        Setting(
            path,
            is_guarded,
            f"of KV connectors the guard was tried with {' and '.join(CONNECTORS_TESTED)} only: what is computed under "
            "steering could reach others through one's store",
            argument=path,
        )
        for path, is_guarded in (
            ("kv_transfer_config.kv_connector", _one_of(*CONNECTORS_TESTED)),
            ("kv_transfer_config.kv_connector_module_path", _unset),
        )
    ),
    Setting(
        "load_config.load_format",
        _one_of(*FORMATS_READ),
        "the weights would not come from the safetensors files that the guard's artifact was compared with",
        f"use one of: {', '.join(FORMATS_READ)}",
        "load_format",
    ),
    Setting(
        "cache_config.prefix_caching_hash_algo",
        _one_of(*HASHES_TRUSTED),
        "whoever finds two prompts of one hash has the guard read one's scores for the other",
        f"use one of: {', '.join(HASHES_TRUSTED)}",
        "prefix_caching_hash_algo",
    ),
    *(
        Setting(f"parallel_config.{name}", _one_of(*guarded), problem)
        for name, guarded, problem in (
            ("decode_context_parallel_size", [1], "ranks would hold KV-cache slots, and so scores, of their own"),
            ("prefill_context_parallel_size", [1], "the guard would see a part of each prompt"),
            ("enable_dbo", [False], "the guard would see a part of each batch"),
            ("ubatch_size", [0, 1], "the guard would see a part of each batch"),
        )
    ),
    Setting(
        "cache_config.kv_sharing_fast_prefill",
        _unset,
        "later blocks skip the prompt's tokens, which the guard reads there",
    ),
    Setting("kv_events_config.enable_kv_cache_events", _unset, "what is computed of prompts would be told to others"),
    Setting("ec_transfer_config", _unset, "what is computed of prompts would go where the guard was not tried"),
    Setting(
        "diffusion_config",
        _unset,
        "a diffusion model has no first token for the guard to wait at",
        in_every_version=False,
    ),
)
"""All such settings."""


def require_guarded_arguments(args: Namespace) -> None:
    """Raise `ServingError` for the first of vLLM's parsed arguments whose value is not guarded."""
    for each in SETTINGS:
        if each.argument and _refuses(each, _at(args, each.argument)):
            raise ServingError(each.problem, field=each.flag, remedy=each.remedy)


def require_guarded_config(config: Any) -> None:
    """Raise `ServingError` for the first setting of a `VllmConfig` that is not guarded, or is not there."""
    for each in SETTINGS:
        value = _at(config, each.path)
        if value is _ABSENT and each.in_every_version:
            raise ServingError(
                "this version of vLLM has no such setting, so the guard cannot see whether it is guarded",
                field=f"vllm.{each.path}",
                remedy="serve with a version that the guard was tried with (docs/compatibility.md), or report it",
            )
        if _refuses(each, value):
            raise ServingError(f"is {value!r}: {each.problem}", field=f"vllm.{each.path}", remedy=each.remedy)


_NO_SUCH_PART = object()


def _refuses(setting: Setting, value: object) -> bool:
    return value is not _ABSENT and value is not _NO_SUCH_PART and not setting.is_guarded(value)


def _at(owner: Any, path: str) -> Any:
    """Return what stands at a path of attributes or keys. A part that is None or empty has nothing further down."""
    *parts, last = path.split(".")
    for part in parts:
        owner = owner.get(part) if isinstance(owner, dict) else getattr(owner, part, _ABSENT)
        if owner is _ABSENT:
            return _ABSENT
        if not owner:
            return _NO_SUCH_PART
    return owner.get(last) if isinstance(owner, dict) else getattr(owner, last, _ABSENT)
