"""Constraints: what a request can say about its answer's tokens that may leave steering nothing to steer to.

Steering makes a refusal likelier, and sampling then takes what the request allows. A request that forbids a refusal's
words, allows others alone, or goes on behind a refusal's end undoes it.

It touches, of `vllm/sampling_params.py`: the fields of `SamplingParams` in `_CONSTRAINTS`.
"""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

from vllm.sampling_params import SamplingParams

_MILD = 1.2
"""The strongest repetition penalty that models' own generation configurations ask for.

A prompt may hold a refusal's words, and a much stronger penalty keeps them out of the answer; one far below 1 lets the
prompt's words alone into it."""

_CONSTRAINTS: Mapping[str, Callable[[Any], bool]] = MappingProxyType(
    {
        "structured_outputs": lambda given: given is not None,
        "allowed_token_ids": lambda given: given is not None,
        "trace_decode_token_ids": lambda given: given is not None,
        "bad_words": bool,
        "logit_bias": bool,
        "min_tokens": bool,
        "ignore_eos": bool,
        "repetition_penalty": lambda given: not 1 / _MILD <= given <= _MILD,
    }
)
"""By field: whether what was given may leave no refusal.

Forced tool calls and `response_format` are `structured_outputs`.
"""


def constraint_of(params: SamplingParams | None) -> str | None:
    """Return the first field by which a request constrains its answer so, or None."""
    if params is None:
        return None
    return next(
        (
            name
            for name, constrains in _CONSTRAINTS.items()
            if hasattr(params, name) and constrains(getattr(params, name))
        ),
        None,
    )
