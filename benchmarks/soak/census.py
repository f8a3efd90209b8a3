"""What lives in a Python process: its objects by type, its asyncio tasks, and the sizes of given objects' containers.

Taken twice at rest, before and after a load, it shows what the load left behind. Looking takes some hundred
milliseconds, in which the process does nothing else.
"""

import asyncio
import gc
from collections import Counter
from collections.abc import Iterable

Census = dict[str, dict[str, int]]
"""`objects`: how many there are, by type; `tasks`: asyncio tasks, by coroutine; `sizes`: of containers, by
attribute."""

_CONTAINERS = (dict, list, set, frozenset)


def census(holders: Iterable[object] = ()) -> Census:
    """Return what lives in this process; `sizes` are those of the `holders`' own containers, by `Class.attribute`.

    Of objects, only those that the garbage collector follows: vLLM takes what it made at start-up out of its sight.
    """
    gc.collect()
    objects = Counter(_name(type(each)) for each in gc.get_objects())
    sizes = {f"{type(holder).__name__}.{name}": size for holder in holders for name, size in _sizes(holder)}
    return {"objects": dict(objects), "tasks": dict(_tasks()), "sizes": sizes}


def _name(kind: type) -> str:
    return f"{kind.__module__}.{kind.__qualname__}"


def _tasks() -> Counter[str]:
    try:
        tasks = asyncio.all_tasks()
    except RuntimeError:  # no loop runs in this thread, as in vLLM's engine
        return Counter()
    return Counter(getattr(task.get_coro(), "__qualname__", "?") for task in tasks)


def _sizes(holder: object) -> Iterable[tuple[str, int]]:
    for name, value in sorted(getattr(holder, "__dict__", {}).items()):
        # By name: asking whether it is `Sized` leaves thousands of notes in the caches of abstract classes.
        if isinstance(value, _CONTAINERS) or type(value).__name__.endswith("RequestQueue"):
            yield name, len(value)
