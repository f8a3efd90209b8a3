"""Parity: how far what the served taps read is from what Transformers computes, prompt by prompt and block by block."""

import json
import os
import re
import subprocess
import sys
import time
from dataclasses import dataclass, field

import torch
from safetensors.torch import load_file

from serving.process import SMALL
from tests.serving.architectures import checkpoint
from tests.serving.architectures.configs import LONGEST, VOCABULARY
from tests.serving.architectures.reference import Reference

LENGTHS = (1, 2, 7, 31, 33, 64, 90, 150, 200)
"""Of the prompts; those above `CHUNK` tokens pass in chunks, others share a batch."""
CHUNK = 64
_EVERY = ("--max-model-len", str(LONGEST), "--max-num-seqs", "8", "--max-num-batched-tokens", str(CHUNK))


_RAISED = re.compile(r"^(?:\[rank\d+\]: |\(.*?\) )*([\w.]*(?:Error|Exception|Invalid)\w*: .*)$", re.MULTILINE)


class EngineFailed(Exception):
    """vLLM ended; the message is the last error in its log."""


@dataclass(frozen=True)
class Parity:
    """What one run found."""

    vllm_class: str
    kv_cache: list[str]
    stream: list[float]
    """Relative errors |served - reference| / |reference| of a whole prompt at a block, prompts times blocks."""
    neurons: list[float]
    without_neurons: dict[int, str]
    seconds: float = field(compare=False)


def prompts():
    """Return prompts of random tokens, the same every time."""
    generator = torch.Generator().manual_seed(2)
    return [torch.randint(3, VOCABULARY, (length,), generator=generator).tolist() for length in LENGTHS]


def measure(architecture, dtype, folder, *, eager=True):
    """Return the `Parity` of `architecture` in `dtype`; `folder` gets its weights and vLLM's log. Raises `EngineFailed`."""
    checkpoint.save(architecture.config(), folder / "model", dtype)
    mode = ("--enforce-eager",) if eager else ()
    return compare(folder, Reference(checkpoint.load(folder / "model", dtype)), (*architecture.arguments, *mode, "--dtype", dtype))


def compare(folder, reference, arguments):
    """Return the `Parity` of the served model in `folder` with `reference`. Raises `EngineFailed`."""
    asked, began = prompts(), time.monotonic()
    about = serve(folder, asked, reference.widths, arguments)
    seconds = time.monotonic() - began
    served = load_file(folder / "read.safetensors")
    streams, neurons = [], []
    for row, token_ids in enumerate(asked):
        # Place p counts from the prompt's end.
        read = torch.stack([served[str(place)][row] for place in reversed(range(len(token_ids)))]).squeeze(1)
        widths = [reference.hidden_size] * len(reference.blocks) + list(about["widths"].values())
        sites = [("resid_post", n) for n in range(len(reference.blocks))]
        sites += [("mlp_neurons", int(layer)) for layer in about["widths"]]
        expected = reference.read(token_ids)
        for site, values in zip(sites, read.split(widths, dim=1), strict=True):
            error = float((values - expected[site]).norm() / expected[site].norm())
            (streams if site[0] == "resid_post" else neurons).append(error)
    missing = {layer: "" for layer in reference.without_neurons} | {int(k): v for k, v in about["without_neurons"].items()}
    return Parity(about["vllm_class"], about["kv_cache"], streams, neurons, missing, seconds)


def serve(folder, asked, widths, arguments, worker="tests.serving.architectures.worker.ParityWorker"):
    """Pass prompts through vLLM in a process of its own; return what it says of the model. Raises `EngineFailed`."""
    order = {
        "model": str(folder / "model"), "prompts": asked, "widths": widths, "arguments": [*_EVERY, *arguments], "worker": worker,
        "path": str(folder / "read.safetensors"), "about": str(folder / "about.json"),
    }  # fmt: skip
    environment = {**SMALL, **os.environ, "VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_USE_V2_MODEL_RUNNER": "0"}
    command = [sys.executable, "-m", "tests.serving.architectures.served"]
    log = folder / "engine.log"
    with log.open("w") as output:
        ended = subprocess.run(command, input=json.dumps(order), stdout=output, stderr=output, text=True, env=environment)
    if ended.returncode:
        raise EngineFailed(last_error(log.read_text(errors="replace")))
    return json.loads((folder / "about.json").read_text())


def last_error(log):
    """Return the line of a log that says what was raised last, without what stands before it."""
    return (_RAISED.findall(log) or log.strip().splitlines()[-1:] or ["no output"])[-1]
