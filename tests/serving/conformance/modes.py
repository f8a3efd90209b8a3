"""The table of engines: the ways in which vLLM can be made to run a model here."""

import json
from dataclasses import dataclass

from tests.serving.lab import LAB

EAGER = ("--enforce-eager", "--block-size", "32")


@dataclass(frozen=True)
class Mode:
    """One way of running."""

    name: str
    flags: tuple[str, ...] = EAGER
    v2: bool = False
    asynchronous: bool = False

    def __str__(self) -> str:
        return self.name


def _draft(method: str, **more: str) -> tuple[str, ...]:
    settings = ", ".join(f'"{key}": {text}' for key, text in {"method": f'"{method}"', **more}.items())
    return (*EAGER, "--speculative-config", "{" + settings + "}")


def _connector(name: str, module: str, *flags: str) -> tuple[str, ...]:
    settings = {"kv_connector": name, "kv_connector_module_path": module, "kv_role": "kv_both"}
    return (*EAGER, "--kv-transfer-config", json.dumps(settings), *flags)


# So few blocks that some requests are preempted, and so many that some prompts are still cached.
_BLOCK_STORE = _connector("BlockStore", "tests.serving.conformance.block_store", "--num-gpu-blocks-override", "64")
_N_GRAM = _draft("ngram", num_speculative_tokens="3", prompt_lookup_max="3", prompt_lookup_min="1")
_DRAFT_MODEL = _draft("draft_model", model=f'"{LAB / "base"}"', num_speculative_tokens="3")

V1 = (
    Mode("v1"),
    Mode("v1-compiled", ("--block-size", "32")),
    Mode("v1-chunks-of-16", (*EAGER, "--max-num-batched-tokens", "16")),
    Mode("v1-chunks-of-64", (*EAGER, "--max-num-batched-tokens", "64")),
    Mode("v1-no-prefix-cache", (*EAGER, "--no-enable-prefix-caching")),
    Mode("v1-starved", (*EAGER, "--num-gpu-blocks-override", "36")),
    Mode("v1-n-gram", _N_GRAM),
    Mode("v1-draft-model", _DRAFT_MODEL),
    Mode("v1-ray", (*EAGER, "--distributed-executor-backend", "ray")),
    Mode("v1-connector", _BLOCK_STORE),
)
V1_ASYNCHRONOUS = (
    Mode("v1-async", asynchronous=True),
    Mode("v1-async-starved", (*EAGER, "--num-gpu-blocks-override", "36"), asynchronous=True),
    Mode("v1-async-chunks-of-16", (*EAGER, "--max-num-batched-tokens", "16"), asynchronous=True),
    Mode("v1-async-draft-model", _DRAFT_MODEL, asynchronous=True),
)
V2 = (
    Mode("v2", v2=True),
    Mode("v2-chunks-of-16", (*EAGER, "--max-num-batched-tokens", "16"), v2=True),
    Mode("v2-starved", (*EAGER, "--num-gpu-blocks-override", "36"), v2=True),
    Mode("v2-async", v2=True, asynchronous=True),
    Mode("v2-async-starved", (*EAGER, "--num-gpu-blocks-override", "36"), v2=True, asynchronous=True),
    Mode("v2-async-draft-model", _DRAFT_MODEL, v2=True, asynchronous=True),
)
EVERY = (*V1, *V1_ASYNCHRONOUS, *V2)
