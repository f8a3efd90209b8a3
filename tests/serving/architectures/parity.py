"""Parity: how far what the served taps read is from what Transformers computes, prompt by prompt and block by block."""

import json
import os
import re
import subprocess
import sys
import time
from dataclasses import dataclass
from itertools import takewhile

import torch
from safetensors.torch import load_file

from probes.manifest import EMBEDDINGS
from serving.offline.process import SMALL
from tests.serving.architectures import checkpoint, quantised
from tests.serving.architectures.configs import LONGEST, VOCABULARY
from tests.serving.architectures.reference import Reference

LENGTHS = (1, 2, 7, 31, 33, 64, 90, 150, 200)
"""Of the prompts, in tokens."""
CHUNK = 64
"""Tokens a step: longer prompts pass in chunks, shorter ones share a step."""
_EVERY = ("--max-model-len", str(LONGEST), "--max-num-seqs", "8", "--max-num-batched-tokens", str(CHUNK))
_PREFIX = re.compile(r"^(?:\[rank\d+\]: |\([^)]*pid=\d+\) )+")
_RAISED = re.compile(r"(?:[\w.]*(?:Error|Exception|Invalid)\w*|probes\.errors\.\w+)(?:: |$)")


class EngineFailed(Exception):
    """vLLM ended; the message is what was raised last in its log."""


@dataclass(frozen=True, slots=True)
class Parity:
    """What one run found."""

    vllm_class: str
    kv_cache: tuple[str, ...]
    """The spec classes of the KV-cache groups."""
    streams: tuple[float, ...]
    """Relative errors |served - reference| / |reference| over all tokens of a prompt: prompts times blocks, and before
    them.
    """
    neurons: tuple[float, ...]
    """The same at the neurons, of those blocks that have them."""
    without_neurons: str
    """Why some blocks, or all, have no neurons to read, or nothing."""
    seconds: float


def measure(case, folder):
    """Return the `Parity` of `case`; `folder` gets its weights and vLLM's log. Raises `EngineFailed`."""
    config, weights = case.architecture.config(), folder / "model"
    if case.scheme:
        model = quantised.save(config, weights, case.dtype, case.scheme)
    else:
        checkpoint.save(config, weights, case.dtype)
        model = checkpoint.load(weights, case.dtype, **case.architecture.reference)
    mode = () if case.compiled else ("--enforce-eager",)
    arguments = (*case.architecture.arguments, *mode, "--dtype", case.dtype)
    # In float32, which holds the shipped weights: CPUs differ in how Transformers rounds bfloat16 on the way.
    return compare(folder, Reference(model.float()), prompts(), arguments)


def compare(folder, reference, asked, arguments):
    """Return the `Parity` of the model served from `folder` with `reference` on prompts. Raises `EngineFailed`."""
    began = time.monotonic()
    about = serve(folder, asked, arguments, {"widths": reference.widths})
    served = load_file(folder / "read.safetensors")
    blocks = range(EMBEDDINGS, len(reference.blocks))
    widths = {int(layer): width for layer, width in about["widths"].items()}
    sites = [*(("resid_post", layer) for layer in blocks), *(("mlp_neurons", layer) for layer in widths)]
    columns = [*(reference.hidden_size for _ in blocks), *widths.values()]
    errors = {"resid_post": [], "mlp_neurons": []}
    for row, token_ids in enumerate(asked):
        expected = reference.read(token_ids)
        # Places count from the prompt's end.
        read = torch.stack([served[str(place)][row] for place in reversed(range(len(token_ids)))])
        for (site, layer), values in zip(sites, read.split(columns, dim=1), strict=True):
            there = expected[site, layer]
            errors[site].append(float((values - there).norm() / there.norm()))
    return Parity(
        vllm_class=about["vllm_class"],
        kv_cache=tuple(about["kv_cache"]),
        streams=tuple(errors["resid_post"]),
        neurons=tuple(errors["mlp_neurons"]),
        without_neurons="; ".join(sorted({*reference.without_neurons.values(), *about["without_neurons"].values()})),
        seconds=time.monotonic() - began,
    )


def prompts():
    """Return prompts of random tokens, the same every time."""
    generator = torch.Generator().manual_seed(2)
    return [torch.randint(3, VOCABULARY, (length,), generator=generator).tolist() for length in LENGTHS]


def serve(folder, asked, arguments, config, worker="tests.serving.architectures.worker.ParityWorker"):
    """Pass prompts through vLLM in a process of its own; return what it says of the model. Raises `EngineFailed`."""
    order = {
        "model": str(folder / "model"), "prompts": asked, "arguments": [*_EVERY, *arguments], "config": config,
        "worker": worker, "path": str(folder / "read.safetensors"), "about": str(folder / "about.json"),
    }  # fmt: skip
    environment = {**SMALL, **os.environ, "VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_USE_V2_MODEL_RUNNER": "0"}
    command = [sys.executable, "-m", "tests.serving.architectures.served"]
    log = folder / "engine.log"
    with log.open("w") as output:
        ended = subprocess.run(
            command, input=json.dumps(order), stdout=output, stderr=output, text=True, env=environment, check=False
        )
    if ended.returncode:
        raise EngineFailed(last_raised(log.read_text(errors="replace")))
    return json.loads((folder / "about.json").read_text())


def last_raised(log):
    """Return what was raised last, as a log has it, or its last line."""
    lines = [_PREFIX.sub("", line) for line in log.splitlines()]
    raised = [number for number, line in enumerate(lines) if _RAISED.match(line)]
    if not raised:
        return lines[-1] if lines else "no output"
    rest = takewhile(lambda line: line.startswith(" "), lines[raised[-1] + 1 :])
    return " ".join(line.strip() for line in (lines[raised[-1]], *rest))
