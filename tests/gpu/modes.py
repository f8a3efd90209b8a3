"""The table of engines on a GPU: both model runners, every kind of CUDA graph, and what a GPU alone can do of the
rest.
"""

import json

from tests.serving.conformance.modes import Mode
from tests.serving.lab import LAB

# So many blocks hold sixteen requests of the longest kind; a device's whole memory would only take longer to fill.
_CACHE = ("--block-size", "32", "--num-gpu-blocks-override", "1024", "--gpu-memory-utilization", "0.5")


def _mode(name: str, graphs: str, *flags: str, v2: bool = True, asynchronous: bool = True) -> Mode:
    compilation = ("--compilation-config", json.dumps({"cudagraph_mode": graphs}))
    scheduling = "--async-scheduling" if asynchronous else "--no-async-scheduling"
    return Mode(name, (*_CACHE, *compilation, scheduling, *flags), v2=v2, asynchronous=asynchronous)


def _draft(**settings: object) -> tuple[str, str]:
    return "--speculative-config", json.dumps({"num_speculative_tokens": 3, **settings})


_DRAFT_MODEL = _draft(method="draft_model", model=str(LAB / "base"))
_N_GRAM = _draft(method="ngram", prompt_lookup_max=3, prompt_lookup_min=1)

DEFAULT = "FULL_AND_PIECEWISE"
MODES = (
    _mode("v2-default", DEFAULT),
    _mode("v2-full", "FULL"),
    _mode("v2-piecewise", "PIECEWISE"),
    _mode("v2-none", "NONE"),
    _mode("v1-default", DEFAULT, v2=False, asynchronous=False),
    _mode("v1-async", DEFAULT, v2=False),
    _mode("v2-eager", "NONE", "--enforce-eager"),
    _mode("v2-synchronous", DEFAULT, asynchronous=False),
    _mode("v2-starved", DEFAULT, "--num-gpu-blocks-override", "36"),
    _mode("v2-chunks-of-64", DEFAULT, "--max-num-batched-tokens", "64"),
    _mode("v2-no-prefix-cache", DEFAULT, "--no-enable-prefix-caching"),
    _mode("v2-n-gram", DEFAULT, *_N_GRAM, asynchronous=False),
    _mode("v2-draft-model", DEFAULT, *_DRAFT_MODEL),
    _mode("v1-full", "FULL", v2=False, asynchronous=False),
    _mode("v1-piecewise", "PIECEWISE", v2=False, asynchronous=False),
    _mode("v1-none", "NONE", v2=False, asynchronous=False),
)
"""The most telling first: device time ends."""


def graphs_of(mode: Mode) -> str:
    """Return the kind of CUDA graphs that a mode asks for."""
    kind: str = json.loads(mode.flags[mode.flags.index("--compilation-config") + 1])["cudagraph_mode"]
    return kind
