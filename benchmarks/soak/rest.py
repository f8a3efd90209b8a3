"""Whether anything is left at rest: two looks at the idle server, before and after the load, must see the same.

Descriptors, tasks and the containers of scheduler, gate, worker and output processor are compared one by one; of
objects, those that belong to requests. Before each look one request goes through alone: vLLM forgets a finished request
with the next step only, so that what the last one leaves there is in both.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from benchmarks.soak.books import Check
from benchmarks.soak.census import Census
from benchmarks.soak.processes import Usage

_OF_REQUESTS = ("serving.", "guard.", "vllm.v1.request.", "vllm.v1.engine.", "vllm.outputs.", "starlette.", "uvicorn.")
_KINDS = ("builtins.coroutine", "builtins.async_generator", "_asyncio.Task", "asyncio.tasks.Task")
_SHOWN = 12


@dataclass(frozen=True, slots=True)
class Rest:
    """The idle server."""

    usage: Mapping[str, Usage]
    """By process."""
    census: Mapping[str, Census]
    """By role: `api`, `engine`."""
    running: float
    waiting: float


def left_behind(before: Rest, after: Rest) -> Iterator[Check]:
    """Yield what must be as it was."""
    for name, held in after.usage.items():
        was = before.usage.get(name)
        numbers = f"{was.descriptors if was else 'none'} before, {held.descriptors} after"
        yield Check(f"{name}: file descriptors", was is not None and held.descriptors == was.descriptors, numbers)
    yield Check("the same processes", set(before.usage) == set(after.usage), ", ".join(after.usage))
    numbers = f"{after.running:.0f} running, {after.waiting:.0f} waiting"
    yield Check("requests in vLLM", after.running == after.waiting == 0, numbers)
    for role, now in after.census.items():
        was_census = before.census[role]
        yield _same(f"{role}: asyncio tasks", was_census["tasks"], now["tasks"])
        yield _same(f"{role}: entries in containers", was_census["sizes"], now["sizes"])
        yield _same(f"{role}: objects of requests", *(_of_requests(each["objects"]) for each in (was_census, now)))


def grown(before: Mapping[str, int], after: Mapping[str, int]) -> list[tuple[str, int]]:
    """Return the types of which there are more than before, most grown first."""
    more = {name: count - before.get(name, 0) for name, count in after.items()}
    return sorted(((name, count) for name, count in more.items() if count > 0), key=lambda each: -each[1])[:_SHOWN]


def _of_requests(objects: Mapping[str, int]) -> dict[str, int]:
    return {name: count for name, count in objects.items() if name.startswith(_OF_REQUESTS) or name in _KINDS}


def _same(what: str, before: Mapping[str, int], after: Mapping[str, int]) -> Check:
    differing: dict[str, Any] = {
        name: f"{before.get(name, 0)} -> {after.get(name, 0)}"
        for name in sorted({*before, *after})
        if before.get(name, 0) != after.get(name, 0)
    }
    numbers = ", ".join(f"{name} {change}" for name, change in differing.items())
    return Check(what, not differing, numbers or f"{sum(after.values())}, as before")
