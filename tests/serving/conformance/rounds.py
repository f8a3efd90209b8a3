"""The table of scenarios: what is asked of an engine, in which step.

A scenario is a list of rounds, each a list of requests that the engine runs to their ends before the next round.
"""

from collections.abc import Callable
from typing import Any

from tests.serving.conformance.cast import Cast

Request = dict[str, Any]
Rounds = list[list[Request]]

JSON = {"json": {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}}
REGEX = {"regex": "(yes|no|maybe)"}
GRAMMAR = {"grammar": 'root ::= "up" | "down"'}


def _request(cast: Cast, name: str, step: int = 0, /, suffix: str = "", **options: Any) -> Request:
    return {"id": f"{name}{suffix}", "prompt": cast.prompts[name], "step": step, **options}


def alone(cast: Cast) -> Rounds:
    """Each prompt alone, cold."""
    return [[_request(cast, name, suffix="-alone", salt=name)] for name in ("benign0", "long0", "harmful0", "steered")]


def mixed(cast: Cast) -> Rounds:
    """All kinds at once, in a steady stream: prompts are prefilled beside requests in mid-decode."""
    names = [*cast.prompts, "steered", "harmful1", "benign2"]
    return [[_request(cast, name, at // 2, suffix=f"-{at}") for at, name in enumerate(names)]]


def cold_then_warm(cast: Cast) -> Rounds:
    """The same prompts twice: the second time their prefixes are cached, all but the last block."""
    return [[_request(cast, name, suffix=f"-{run}") for name in cast.prompts] for run in ("cold", "warm", "again")]


def a_shared_prefix(cast: Cast) -> Rounds:
    """Long prompts that share all but their ends, arriving while the first is in mid-prefill."""
    begin = cast.prompts["long0"]
    prompts = [begin + cast.prompts[name] for name in ("benign0", "harmful0", "benign1", "harmful1", "benign2")]
    return [[{"id": f"shared{i}", "prompt": prompt, "step": i} for i, prompt in enumerate(prompts)]]


def several_completions(cast: Cast) -> Rounds:
    """N = 3, sampled: every completion of a blocked prompt is blocked.

    Without a seed: vLLM's CPU runner dies of a seeded request whose prompt comes in chunks.
    """
    params = {"n": 3, "temperature": 1.0}
    names = ("benign0", "harmful0", "benign1", "harmful1")
    return [[_request(cast, name, params=params, sampled=True) for name in names]]


def sampling_options(cast: Cast) -> Rounds:
    """`min_tokens`, stop strings, log-probabilities of answer and prompt, penalties, a length of one."""
    options: list[Request] = [
        {"min_tokens": 8, "ignore_eos": True},
        {"stop": [" the", "e"], "max_tokens": 12},
        {"logprobs": 3, "prompt_logprobs": 2},
        {"repetition_penalty": 1.3, "frequency_penalty": 0.5},
        {"max_tokens": 1},
        {"stop_token_ids": list(range(200, 400))},
    ]
    names = ("benign3", "harmful2", "steered")
    return [
        [
            _request(cast, name, number, suffix=f"-{number}", params=params)
            for number, params in enumerate(options)
            for name in names
        ]
    ]


def structured_outputs(cast: Cast) -> Rounds:
    """JSON schema, regular expression and grammar, while others are blocked and steered."""
    kinds = {"json": JSON, "regex": REGEX, "grammar": GRAMMAR}
    return [
        [
            _request(cast, name, step, suffix=f"-{kind}", params={"structured": grammar, "max_tokens": 24})
            for step, (kind, grammar) in enumerate(kinds.items())
            for name in ("benign4", "harmful3", "steered")
        ]
    ]


def cancelled(cast: Cast) -> Rounds:
    """Requests that are cancelled before, at and after their verdict; what is left answers as ever."""
    steady = [_request(cast, name) for name in ("benign0", "harmful0", "steered")]
    leaving: list[Request] = []
    for step in range(6):
        for name in ("long1", "harmful1", "benign5"):
            leaving.append(_request(cast, name, 0, suffix=f"-left{step}", leaves=True))
            leaving.append({"abort": f"{name}-left{step}", "step": step})
    after = [_request(cast, name, suffix="-after") for name in ("benign0", "long1", "harmful0", "steered")]
    return [[*steady, *leaving], after]


def reset_in_mid_flight(cast: Cast) -> Rounds:
    """The prefix cache is emptied, and all that runs starts over, in the middle of prefill and of decode."""
    names = ("benign0", "long2", "harmful0", "steered", "benign6", "long3")
    resets: list[Request] = [{"reset": "running", "step": step} for step in (1, 3, 6)]
    return [[*(_request(cast, name, at // 2) for at, name in enumerate(names)), *resets]]


def crowded(cast: Cast) -> Rounds:
    """Everything at once: with a small KV cache requests are preempted and resume."""
    params = {"max_tokens": 120, "ignore_eos": True}
    names = [name for name in cast.prompts if name != "steered"]
    return [[_request(cast, name, suffix=f"-{i}", params=params) for i, name in enumerate([*names, "steered"])]]


SCENARIOS: dict[str, Callable[[Cast], Rounds]] = {
    each.__name__: each
    for each in (
        alone,
        mixed,
        cold_then_warm,
        a_shared_prefix,
        several_completions,
        sampling_options,
        structured_outputs,
        cancelled,
        reset_in_mid_flight,
        crowded,
    )
}
