"""Ways of running vLLM that are not guarded: each is refused at the start rather than hoped for.

What is not in this list runs guarded, and a test shows it (docs/compatibility.md says which).
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


@dataclass(frozen=True, slots=True)
class Unguarded:
    """A setting under which the guard would not see, or not stop, what it must."""

    flag: str
    applies: Callable[[Namespace], object]
    problem: str
    remedy: str


def _given(name: str) -> Callable[[Namespace], object]:
    return lambda args: getattr(args, name, None)


def _several(name: str) -> Callable[[Namespace], object]:
    return lambda args: (getattr(args, name, 1) or 1) > 1


def _chosen(name: str) -> Callable[[Namespace], object]:
    return lambda args: getattr(args, name, None) not in (None, "auto")


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
    Unguarded("--worker-cls", _chosen("worker_cls"), "the guard sets this itself", "leave --worker-cls out"),
    Unguarded("--scheduler-cls", _chosen("scheduler_cls"), "the guard sets this itself", "leave --scheduler-cls out"),
    Unguarded("--grpc", _given("grpc"), "the gRPC server does not run the guard's middleware", "leave --grpc out"),
    Unguarded(
        "--runner",
        lambda args: args.runner == "pooling",
        "a pooling model generates nothing that the guard could stop",
        "serve it with `vllm serve`",
    ),
    Unguarded(
        "--convert",
        lambda args: args.convert not in ("auto", "none"),
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
        "--decode-context-parallel-size",
        _several("decode_context_parallel_size"),
        "the guard keeps scores by KV-cache slot, and ranks would hold slots of their own",
        "use --tensor-parallel-size",
    ),
    Unguarded(
        "--prefill-context-parallel-size",
        _several("prefill_context_parallel_size"),
        "the guard would see one rank's part of each prompt",
        "use --tensor-parallel-size",
    ),
    Unguarded(
        "--enable-elastic-ep",
        _given("enable_elastic_ep"),
        "an engine that joins while the server runs would answer before a self-test has asked it",
        "leave it out",
    ),
    Unguarded("--enable-dbo", _given("enable_dbo"), "the guard would see half of each batch at a time", "leave it out"),
    Unguarded("--ubatch-size", _several("ubatch_size"), "the guard would see a part of each batch", "leave it out"),
    Unguarded(
        "--kv-sharing-fast-prefill",
        _given("kv_sharing_fast_prefill"),
        "later blocks skip the prompt's tokens, which the guard reads there",
        "leave it out",
    ),
    Unguarded(
        "--compilation-config",
        _compiles_in_sequence_parallel,
        "sequence parallelism (pass_config.enable_sp, fuse_gemm_comms) leaves the guard's taps a part of the rows",
        "leave both out",
    ),
    Unguarded(
        "--enable-hc-sp",
        _given("enable_hc_sp"),
        "sequence parallelism leaves the guard's taps a part of the rows",
        "leave it out",
    ),
    Unguarded(
        "--monokernel",
        _given("monokernel"),
        "a kernel that computes whole blocks passes the guard's taps by",
        "leave it out",
    ),
    Unguarded(
        "--kv-transfer-config",
        _connects_untested,
        f"of KV connectors the guard was tried with {' and '.join(CONNECTORS_TESTED)} only: what is computed under "
        "steering could reach others through one's store",
        "leave it out",
    ),
    Unguarded(
        "--kv-offloading-size",
        _given("kv_offloading_size"),
        "the guard was not tried with KV offloading: what is computed under steering could reach others through it",
        "leave it out",
    ),
    Unguarded(
        "--diffusion-config",
        _given("diffusion_config"),
        "a diffusion model has no first token for the guard to wait at",
        "serve an autoregressive model",
    ),
)


def require_guardable(args: Namespace) -> None:
    """Raise `ServingError` for the first of vLLM's arguments under which requests would not be guarded."""
    for each in UNGUARDED:
        if each.applies(args):
            raise ServingError(each.problem, field=each.flag, remedy=each.remedy)
