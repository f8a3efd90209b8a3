"""Ways of running vLLM that are not guarded: each is refused at the start rather than hoped for.

`vllm_arguments` says which arguments may be given at all; here is what of some of them may not.
"""

from argparse import Namespace
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from probes.errors import ServingError
from serving.launch.vllm_arguments import ALLOWED, REFUSED
from serving.load_formats import FORMATS_READ

SPECULATION_TESTED = ("ngram", "draft_model")
"""Speculative methods under which scores and steering were compared with a plain forward pass."""

CONNECTORS_TESTED = ("ExampleConnector",)
"""KV connectors that store nothing of what is computed under steering under a name that another prompt can ask for."""

HASHES_TRUSTED = ("sha256", "sha256_cbor")
"""Hashes under which nobody finds two prompts whose cached blocks, and so their scores, have one name."""


@dataclass(frozen=True, slots=True)
class Unguarded:
    """A value under which the guard would not see, or not stop, what it must."""

    flag: str
    applies: Callable[[Namespace], object]
    problem: str
    remedy: str


def _none_of(name: str, *tested: str) -> Callable[[Namespace], object]:
    return lambda args: getattr(args, name, tested[0]) not in tested


def _speculates_untested(args: Namespace) -> object:
    settings: Any = args.speculative_config
    return settings and settings.get("method") not in SPECULATION_TESTED


def _connects_untested(args: Namespace) -> object:
    settings: Any = args.kv_transfer_config
    return settings and (settings.kv_connector_module_path or settings.kv_connector not in CONNECTORS_TESTED)


def _is_cpu() -> bool:
    from vllm.platforms import current_platform

    return bool(current_platform.is_cpu())


def _compiles_in_sequence_parallel(args: Namespace) -> object:
    passes: Any = getattr(args.compilation_config, "pass_config", None)
    return getattr(passes, "enable_sp", False) or getattr(passes, "fuse_gemm_comms", False)  # which implies it


UNGUARDED = (
    Unguarded(
        "--runner",
        lambda args: args.runner == "pooling",
        "a pooling model generates nothing that the guard could stop",
        "serve it with `vllm serve`",
    ),
    Unguarded(
        "--convert",
        _none_of("convert", "auto", "none"),
        "a model that is converted to pooling generates nothing that the guard could stop",
        "serve it with `vllm serve`",
    ),
    Unguarded(
        "--speculative-config",
        _speculates_untested,
        f"the guard was tested with the methods {' and '.join(SPECULATION_TESTED)} only",
        f'give "method" as {" or ".join(SPECULATION_TESTED)}, or leave it out',
    ),
    Unguarded(
        "--pipeline-parallel-size",
        lambda args: args.pipeline_parallel_size > 1 and _is_cpu(),
        "vLLM's CPU build has no pipeline parallelism, so the guard was never run under it there",
        "use --tensor-parallel-size",
    ),
    Unguarded(
        "--compilation-config",
        _compiles_in_sequence_parallel,
        "sequence parallelism (pass_config.enable_sp, fuse_gemm_comms) leaves the guard's taps a part of the rows",
        "leave both out",
    ),
    Unguarded(
        "--kv-transfer-config",
        _connects_untested,
        f"of KV connectors the guard was tried with {' and '.join(CONNECTORS_TESTED)} only: what is computed under "
        "steering could reach others through one's store",
        "leave it out",
    ),
    Unguarded(
        "--load-format",
        _none_of("load_format", *FORMATS_READ),
        "the weights would not come from the safetensors files that the guard's artifact was compared with",
        f"use one of: {', '.join(FORMATS_READ)}",
    ),
    Unguarded(
        "--prefix-caching-hash-algo",
        _none_of("prefix_caching_hash_algo", *HASHES_TRUSTED),
        "whoever finds two prompts of one hash has the guard read one's scores for the other",
        f"use one of: {', '.join(HASHES_TRUSTED)}",
    ),
)


def require_guardable(args: Namespace, defaults: Namespace) -> None:
    """Raise `ServingError` for the first of vLLM's arguments under which requests would not be guarded.

    `defaults` are the same parser's, of a command line that has nothing but the model.
    """
    for name, value in vars(args).items():
        if value != getattr(defaults, name, None) and name not in ALLOWED:
            raise ServingError(
                REFUSED.get(name, "the guard was not tried with it: it is not in its list of vLLM's arguments"),
                field=f"--{name.replace('_', '-')}",
                remedy="leave it out",
            )
    for each in UNGUARDED:
        if each.applies(args):
            raise ServingError(each.problem, field=each.flag, remedy=each.remedy)
