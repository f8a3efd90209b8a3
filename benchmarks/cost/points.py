"""What is measured: one factor at a time around a base, as points, each with its arms and its number of pairs.

Everything that the engine does is measured in the engine (`engines`), where twins make the same steps; the servers are
asked only for what a client sees.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

PARTS = {
    "http": "what a client sees, through real servers, at 1 to 128 requests at once",
    "prompt_length": "one prompt of 32 to 8192 tokens",
    "concurrency": "1 to 128 prompts at once",
    "mix": "prompts of which most lies in the prefix cache, long answers to short prompts, and requests that arrive as "
    "others end",
    "probes": "1 to 64 probes, on one block to all",
    "channels": "a perceptron of 64 to 768 hidden units that reads every token of four blocks",
    "blocked": "a share of the requests is blocked, and all of them",
    "steered": "a share of the requests is steered, and all of them",
    "watched": "every answer is read along",
    "alternatives": "forward hooks, a copy to the host, judge models: on the same work",
}

Arms = Mapping[str, str]
"""By the arm's name: which server or engine does its work."""


@dataclass(frozen=True, slots=True)
class Work:
    """A batch of requests.

    Prompts are of `prompt_tokens`, of which the first `cached_tokens` lie in the prefix cache.
    """

    requests: int
    prompt_tokens: int
    output_tokens: int
    cached_tokens: int = 0
    blocked: int = 0
    steered: int = 0
    at_once: int = 0
    """In the engine, so many are under way, one arriving as another ends; 0: all are there at the beginning."""


@dataclass(frozen=True, slots=True)
class Load:
    """How the requests of a batch reach a server."""

    at_once: int
    streamed: bool = True


@dataclass(frozen=True, slots=True)
class Point:
    """One level of one factor. Without a `load` it is measured in the engine."""

    part: str
    level: str
    work: Work
    arms: Arms
    budget_s: float
    """About how long its pairs may take together."""
    load: Load | None = None


@dataclass(frozen=True, slots=True)
class Speed:
    """How fast two cores run an unguarded subject: good enough to share out time, and to say how much is left."""

    prefill_tokens_per_s: float
    step_s: float
    step_per_request_s: float
    arm_s: float
    """Between two arms of a pair through servers: one is stopped, another wakes up."""


SPEEDS = {
    "half_billion": Speed(270, 0.055, 0.003, 0.6),
    "lab": Speed(18_000, 0.0025, 0.0001, 0.15),
}
_BASES = {"half_billion": Work(8, 64, 16), "lab": Work(32, 48, 16)}
_ENGINE_S = {"half_billion": 60.0, "lab": 24.0}
_HTTP_S = {"half_billion": 120.0, "lab": 45.0}
_MOST, _FEWEST, _FEWEST_OF_LONG, _LONG_S = 60, 3, 2, 100.0

_PLAIN: Arms = {"unguarded": "unguarded", "control": "control", "guarded": "guarded"}
_ACTING: Arms = {"unguarded": "unguarded", "control": "control", "guarded": "acting"}
_WATCHED: Arms = {"unguarded": "unguarded", "control": "control", "guarded": "watching"}
_COUNTED: Arms = {
    "unguarded": "unguarded",
    "control": "control",
    "1 probe": "probes_1",
    "4 probes": "guarded",
    "16 probes": "probes_16",
    "64 probes": "probes_64",
    "64 probes on all blocks": "every_block",
}
_WIDE: Arms = {
    "unguarded": "unguarded",
    "control": "control",
    "4 probes": "guarded",
    "64 channels": "channels_64",
    "256 channels": "channels_256",
    "768 channels": "channels_768",
}
_ALTERNATIVES: Arms = {
    "unguarded": "unguarded",
    "guarded": "guarded",
    "eager": "eager",
    "hooks": "hooks",
    "host_copy": "host_copy",
    "judge": "control",
    "small_judge": "small_judge",
}
_JUDGED: Arms = {**_PLAIN, "judge": "unguarded", "small_judge": "unguarded"}


def points(subject: str) -> list[Point]:
    """Return all points of a subject, those of one part next to each other."""
    return [*_through_servers(subject), *_through_engines(subject)]


def seconds(point: Point, subject: str) -> float:
    """Return about how long one pair of the point takes."""
    speed, work = SPEEDS[subject], point.work
    at_once = min(work.requests, point.load.at_once if point.load else work.at_once or work.requests)
    rounds = work.requests / at_once
    prefill = (
        work.requests * (work.prompt_tokens - work.cached_tokens) + work.cached_tokens
    ) / speed.prefill_tokens_per_s
    # Attention over a long prompt adds about half at 8192 tokens.
    prefill *= 1 + work.prompt_tokens / 16_384
    decode = rounds * work.output_tokens * (speed.step_s + speed.step_per_request_s * at_once)
    return len(point.arms) * (prefill + decode + (speed.arm_s if point.load else 0.0))


def count(point: Point, subject: str, times: int = 1) -> int:
    """Return how many pairs of the point are taken: what its time allows, within bounds; `times` as many if that is
    asked.
    """
    each = seconds(point, subject)
    fewest = _FEWEST_OF_LONG if each > _LONG_S else _FEWEST
    return times * min(max(int(point.budget_s / each), fewest), _MOST)


def chosen(names: Sequence[str], subjects: Sequence[str]) -> dict[str, list[Point]]:
    """Return, by subject, the points that `names` ask for; all where there are none.

    A name is a subject, a part, `subject.part` or `subject.part.level`. Raises `ValueError` for one that is none of
    these.
    """
    every = {subject: points(subject) for subject in subjects}
    known = {name for subject, own in every.items() for point in own for name in _names(subject, point)}
    for name in names:
        if name not in known:
            raise ValueError(
                f"{name!r} is none of {', '.join(subjects)}, {', '.join(PARTS)}, nor two with a dot between, nor these "
                "with a dot and a level"
            )
    asked = {
        subject: [point for point in own if not names or not _names(subject, point).isdisjoint(names)]
        for subject, own in every.items()
    }
    return {subject: own for subject, own in asked.items() if own}


def _names(subject: str, point: Point) -> set[str]:
    part = f"{subject}.{point.part}"
    return {subject, point.part, part, f"{part}.{point.level}"}


def _through_servers(subject: str) -> Iterator[Point]:
    base, budget = _BASES[subject], _HTTP_S[subject]

    def point(level: str, work: Work, load: Load, arms: Arms = _PLAIN) -> Point:
        return Point("http", level, work, arms, budget * len(arms) / len(_PLAIN), load)

    yield point("1 at once", replace(base, requests=1), Load(1), _JUDGED)
    if subject == "half_billion":
        yield point("1 at once, 512 tokens", replace(base, requests=1, prompt_tokens=512), Load(1), _JUDGED)
    yield point("8 at once", replace(base, requests=8), Load(8), _JUDGED)
    yield point("32 at once", replace(base, requests=32), Load(32))
    yield point("128 at once", replace(base, requests=128), Load(128))
    if subject == "lab":
        # Long, so that its beginning and its end, when fewer are at once, are little of it; and it has a goal.
        full = point("saturation", replace(base, requests=512), Load(64, streamed=False))
        yield replace(full, budget_s=4 * full.budget_s)
        yield replace(full, level="saturation, judged", arms=_JUDGED)


def _through_engines(subject: str) -> Iterator[Point]:
    base, budget = _BASES[subject], _ENGINE_S[subject]

    def point(part: str, level: str, arms: Arms = _PLAIN, **changed: int) -> Point:
        return Point(part, level, replace(base, **changed), arms, budget * len(arms) / len(_PLAIN))

    for tokens in (32, 128, 512, 2048, 8192):
        yield point("prompt_length", str(tokens), requests=1, prompt_tokens=tokens, output_tokens=4)
    for requests in (1, 8, 32, 128):
        yield point("concurrency", str(requests), requests=requests)
    yield point("mix", "prefix cache", prompt_tokens=544, cached_tokens=512)
    yield point("mix", "long answers", prompt_tokens=32, output_tokens=64)
    # What a busy server does: nearly every step finishes prompts and goes on with answers.
    under_way = 2 * base.requests if subject == "lab" else base.requests
    yield point("mix", "arrivals", requests=8 * under_way, at_once=under_way)
    yield point("probes", "base", _COUNTED)
    wide = point("channels", "base", _WIDE)
    yield replace(wide, budget_s=wide.budget_s / 2)
    for part in ("blocked", "steered"):
        for eighths, level in ((1, "12.5 %"), (2, "25 %"), (4, "50 %"), (8, "100 %")):
            yield point(part, level, _ACTING, **{part: base.requests * eighths // 8})
    # A steered prompt's last KV-cache block is computed again: 128 tokens on a CPU, of which these have used 32.
    yield point("steered", "100 %, 544 tokens", _ACTING, requests=2, prompt_tokens=544, steered=2)
    yield point("watched", "base", _WATCHED)
    yield point("watched", "long answers", _WATCHED, prompt_tokens=32, output_tokens=64)
    yield point("alternatives", "base", _ALTERNATIVES)
