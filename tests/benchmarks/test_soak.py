"""The soak's books find a prompt that is missing, its memory test a leak, its looks what is left behind."""

import asyncio
import gc
import os
import subprocess
import sys
from copy import deepcopy
from types import SimpleNamespace

import pytest

from benchmarks.document import write_between
from benchmarks.soak import memory
from benchmarks.soak.books import Books, Reading
from benchmarks.soak.bulk import BULK
from benchmarks.soak.census import census
from benchmarks.soak.insider_api import KIND, Entry, SoakMiddleware
from benchmarks.soak.kinds import CUT, KINDS
from benchmarks.soak.memory import Sample
from benchmarks.soak.mix import Mixed
from benchmarks.soak.processes import Usage, session_pids, usage
from benchmarks.soak.rest import Rest, left_behind

SENT = 10
BULK_RESULT = {"completed": 100, "failed": 0}


def planted() -> tuple[Reading, Mixed]:
    """Return the books of a soak in which every kind was sent ten times, every other cut request before its verdict."""
    kinds = {BULK: {"requests": 100, "answered": 100, "prompts": 100, "ended": 100, "left": 0, "failed": 0}}
    for kind in KINDS:
        prompts = SENT * kind.prompts
        outcome = "failed" if kind.fails_in_engine else "left" if kind.is_cut else "ended"
        kinds[kind.name] = {"requests": SENT, "answered": SENT, "prompts": prompts, "ended": 0, "left": 0, "failed": 0}
        kinds[kind.name][outcome] = prompts
    given = sum(entry["prompts"] for entry in kinds.values())
    left = sum(entry["left"] for entry in kinds.values())
    refused = sum(entry["failed"] for entry in kinds.values())
    aborted = left // 2 + refused
    metrics = {
        'foreguard_requests_total{action="allow",mode="enforce"}': given - aborted - 30,
        **{
            f'foreguard_requests_total{{action="{action}",mode="enforce"}}': 10 for action in ("flag", "steer", "block")
        },
        'foreguard_unscored_total{reason="aborted"}': aborted,
        'foreguard_unscored_total{reason="missing"}': 0,
        'foreguard_errors_total{type="missing"}': 0,
        'foreguard_score_count{probe="lda"}': given - aborted,
        'foreguard_score_count{probe="pooled"}': given - aborted,
        'vllm:request_params_n_count{engine="0"}': given - left - refused,
    }
    ledger = {"kinds": kinds, "added": given - refused, "given_up": left, "in_flight": 0}
    mixed = Mixed()
    mixed.sent.update({kind.name: SENT for kind in KINDS})
    return Reading(metrics, ledger), mixed


EMPTY = Reading({}, {"kinds": {}, "added": 0, "given_up": 0, "in_flight": 0})


def broken(after: Reading, mixed: Mixed, bulk=BULK_RESULT) -> list[str]:
    return [check.what for check in Books(EMPTY, after).checks(mixed, bulk) if not check.holds]


def test_books_that_balance_balance():
    """Given, scored, aborted, finished, given up and refused prompts add up."""
    assert broken(*planted()) == []


@pytest.mark.parametrize(
    ("metric", "found"),
    [
        ('foreguard_score_count{probe="lda"}', "every probe scored"),
        ('foreguard_unscored_total{reason="aborted"}', "scored + unscored"),
        ('foreguard_unscored_total{reason="missing"}', "faults inside the guard"),
        ('foreguard_errors_total{type="missing"}', "errors counted"),
        ('foreguard_requests_total{action="block",mode="enforce"}', "decided + aborted"),
        ('vllm:request_params_n_count{engine="0"}', "finished + given up + refused"),
    ],
)
def test_one_prompt_too_many_or_too_few_is_found(metric, found):
    """Exactly: a difference of one in any counter breaks a check that names it."""
    for change in (1, -1):
        reading, mixed = planted()
        metrics = {**reading.metrics, metric: reading.metrics[metric] + change}
        assert any(found in what for what in broken(Reading(metrics, reading.ledger), mixed))


@pytest.mark.parametrize("column", ["prompts", "ended", "left", "failed"])
@pytest.mark.parametrize("kind", ["chat", "malformed JSON", "impossible grammar", "cut in the middle", BULK])
def test_a_prompt_under_the_wrong_kind_is_found(kind, column):
    """What a kind brings is fixed by what its client sent; only cut ones may bring less."""
    reading, mixed = planted()
    ledger = deepcopy(reading.ledger)
    ledger["kinds"][kind][column] += 1
    if (kind, column) not in ((BULK, "left"), (BULK, "failed")):
        assert broken(Reading(reading.metrics, ledger), mixed)


def test_cut_requests_need_not_reach_the_engine():
    """A client that hangs up early brings fewer prompts than it sent, which is no fault."""
    reading, mixed = planted()
    mixed.sent[CUT[0].name] += 5
    assert broken(reading, mixed) == []


def test_what_the_clients_saw_counts():
    """A request of the bulk that failed, or an answer that no kind may get, breaks the books."""
    reading, mixed = planted()
    assert broken(reading, mixed, {"completed": 99, "failed": 1})
    mixed.surprise("chat: status 500")
    assert broken(reading, mixed)


def test_a_leak_of_half_a_kilobyte_a_request_is_told_from_noise():
    """Growth per 1,000 requests is found within a tenth, under noise of some MB; flat memory stays under the limit."""
    noise = [(place * 37 % 17) / 8 - 1 for place in range(400)]
    for leak, is_flat in ((0.0, True), (0.5, False)):
        samples = [
            Sample(place * 125, {"api": 700 + min(place, 40) * 3 + leak * place * 125 / 1000 + wobble})
            for place, wobble in enumerate(noise)
        ]
        assert memory.can_tell(samples)
        found = memory.growth(samples)["api"]
        assert found.per_thousand_mb == pytest.approx(leak, abs=0.05)
        assert (found.per_thousand_mb <= memory.LIMIT_MB) is is_flat


def test_a_short_run_says_nothing_of_memory():
    samples = [Sample(place * 10, {"api": 700.0}) for place in range(100)]
    assert not memory.can_tell(samples)
    assert memory.growth(samples)["api"].per_thousand_mb == 0


class Left:
    """An object that a request left behind."""


async def test_the_census_sees_objects_tasks_and_containers():
    """What is kept is counted, by type, by coroutine and by attribute."""
    holder = SimpleNamespace(kept=[], name="not a container")
    before = census([holder])
    kept, waiting = [Left(), Left()], asyncio.create_task(asyncio.sleep(60), name="left")
    holder.kept.append(1)
    after = census([holder])
    name = f"{Left.__module__}.Left"
    assert (before["objects"].get(name, 0), after["objects"][name]) == (0, len(kept))
    assert after["tasks"]["sleep"] == before["tasks"].get("sleep", 0) + 1
    assert (before["sizes"], after["sizes"]) == ({"SimpleNamespace.kept": 0}, {"SimpleNamespace.kept": 1})
    waiting.cancel()
    gc.collect()


def test_a_census_of_a_process_without_a_loop_has_no_tasks():
    assert census()["tasks"] == {}


REST = Rest(
    {"api": Usage(1, 10, 1)},
    {"api": {"objects": {"guard.verdict.Verdict": 1, "builtins.dict": 5}, "tasks": {"serve": 1}, "sizes": {"A.b": 0}}},
    0,
    0,
)


@pytest.mark.parametrize(
    ("change", "found"),
    [
        ({"usage": {"api": Usage(1, 11, 1)}}, "file descriptors"),
        ({"usage": {"api": Usage(1, 10, 1), "new": Usage(1, 1, 1)}}, "the same processes"),
        ({"running": 1}, "requests in vLLM"),
        ({"census": {"api": {**REST.census["api"], "tasks": {"serve": 1, "handle": 1}}}}, "asyncio tasks"),
        ({"census": {"api": {**REST.census["api"], "sizes": {"A.b": 1}}}}, "containers"),
        ({"census": {"api": {**REST.census["api"], "objects": {"guard.verdict.Verdict": 2}}}}, "objects"),
    ],
)
def test_what_is_left_behind_is_named(change, found):
    """Each kind of thing that can be left breaks the check that names it; more of other objects breaks none."""
    fields = {name: getattr(REST, name) for name in ("usage", "census", "running", "waiting")}
    more = {"api": {**REST.census["api"], "objects": {"guard.verdict.Verdict": 1, "builtins.dict": 500}}}
    assert all(check.holds for check in left_behind(REST, Rest(**{**fields, "census": more})))
    wrong = [check.what for check in left_behind(REST, Rest(**{**fields, **change})) if not check.holds]
    assert any(found in what for what in wrong)


def test_processes_are_found_by_their_session():
    """A session of its own has its process in it, with memory, descriptors and threads; ended, it is gone."""
    program = [sys.executable, "-c", "print(flush=True); input()"]
    process = subprocess.Popen(program, stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True)
    try:
        process.stdout.readline()  # it runs
        assert list(session_pids(process.pid)) == [process.pid]
        [held] = usage(process.pid).values()
        assert held.resident_bytes > 2**20
        assert held.descriptors >= 3
        assert held.threads == 1
        assert process.pid not in session_pids(os.getsid(0))
    finally:
        process.communicate(b"\n")
    assert list(session_pids(process.pid)) == []


class Processor:
    """vLLM's output processor, as far as the insider knows it."""

    def __init__(self):
        self.states: set[str] = set()

    def add_request(self, request, prompt, parent=None, index=0, queue=None):
        self.states.add(request)

    def abort_requests(self, request_ids, internal):
        found = [request for request in self.states if request.endswith(tuple(request_ids))]
        self.states.difference_update(found)
        return found

    def get_num_unfinished_requests(self):
        return len(self.states)


class Client:
    """vLLM's engine client: two outputs a prompt, and an abort when nobody waits."""

    def __init__(self):
        self.output_processor = Processor()

    async def generate(self, prompt, params, request_id):
        if prompt == "bad":
            raise ValueError(prompt)
        for index in range(params):
            self.output_processor.add_request(f"{index}_{request_id}", prompt, None, index)
        try:
            yield 1
            yield 2
            self.output_processor.states.clear()
        except GeneratorExit:
            self.output_processor.abort_requests((request_id,), internal=True)
            raise


async def test_the_ledger_says_what_became_of_each_prompt():
    """Ended, left and failed prompts are entered under the kind of their request, n completions as one prompt."""
    client = Client()

    async def app(scope, receive, send):
        if scope["type"] == "lifespan":
            await send({"type": "lifespan.startup.complete"})
            return
        async for _ in client.generate(scope["prompt"], 3, "id"):
            if scope["prompt"] == "leave":
                break

    insider = SoakMiddleware(app)

    async def ignore(_message):
        pass

    await insider(
        {"type": "lifespan", "app": SimpleNamespace(state=SimpleNamespace(engine_client=client))}, None, ignore
    )
    for prompt in ("good", "good", "leave", "bad"):
        scope = {"type": "http", "path": "/", "headers": [(KIND.encode(), prompt.encode())], "prompt": prompt}
        try:
            await insider(scope, None, ignore)
        except ValueError:
            assert prompt == "bad"
        gc.collect()
        await asyncio.sleep(0.01)  # the loop closes the generator that was left
    ledger = insider._ledger()
    assert ledger["kinds"] == {
        "good": {"requests": 2, "answered": 2, "prompts": 2, "ended": 2, "left": 0, "failed": 0},
        "leave": {"requests": 1, "answered": 1, "prompts": 1, "ended": 0, "left": 1, "failed": 0},
        "bad": {"requests": 1, "answered": 1, "prompts": 1, "ended": 0, "left": 0, "failed": 1},
    }
    assert (ledger["added"], ledger["given_up"], ledger["in_flight"]) == (3, 1, 0)
    assert Entry().prompts == 0


def test_every_kind_has_a_name_of_its_own():
    assert len({kind.name for kind in KINDS} | {BULK}) == len(KINDS) + 1


def test_a_document_keeps_what_stands_around_the_markers(tmp_path):
    document = tmp_path / "notes.md"
    document.write_text("before <!-- a -->old<!-- b --> after")
    write_between(document, "<!-- a -->", "<!-- b -->", "new")
    assert document.read_text() == "before <!-- a -->\n\nnew\n\n<!-- b --> after"
