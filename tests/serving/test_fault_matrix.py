"""Whatever part of the guard fails on a request, its client gets what the policy says of unscored prompts, or an error.

Real servers, one for each `on_unscored`, and the official client; the expected outcome of each cell is in
`faults/matrix.py`.
"""

import re
import time
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass

import httpx
import openai
import psutil
import pytest

from serving.offline.process import free_port, guarded_command
from tests.serving.faults.at_run_time import ARGUMENT, HEADER
from tests.serving.faults.matrix import DEATHS, FAULTS, NORMAL, POLICIES, Outcome, matrix
from tests.serving.faults.server import faulty_command
from tests.serving.lab import MODEL
from tests.serving.server import FLAGS, SERVED_NAME, Server, served
from tests.serving.world import LONG, MESSAGE, block_limit, clearly_harmful

pytestmark = [pytest.mark.engine, pytest.mark.timeout(300)]

PARTS = {"WORKER": "FaultyWorker", "SCHEDULER": "FaultyScheduler", "MIDDLEWARE": "FaultyVoice"}
# Small blocks: prompts share some, and what a fault leaves in them would be found.
EAGER = ["--enforce-eager", "--block-size", "32", "--max-num-seqs", "8"]
TOKENS = 6
KILLED = {"engine killed": "EngineCore", "worker killed": "Worker"}
"""Processes by the fault that is their end."""


@dataclass
class Column:
    """One server, of whose policy the column is, with the prompts that it is asked."""

    server: Server
    policy: str
    prompts: dict[str, list[dict]]
    answer: str
    """To the harmless prompt, without a fault."""


@pytest.fixture(scope="module")
def serve_faulty(reference, artifact, artifact_folder, tmp_path_factory):
    """Return a function that starts a server with faulty parts, for one `on_unscored`."""
    limit = block_limit(reference, artifact)

    def serve_faulty(on_unscored: str):
        folder, port = tmp_path_factory.mktemp("faulty"), free_port()
        (folder / "policy.yaml").write_text(
            f"name: faults\nversion: '1'\noff_template: allow\non_unscored: {on_unscored}\n"
            f"response: {{message: {MESSAGE!r}}}\n"
            f"rules:\n  - {{name: harmful, action: block, when: {{harm: {{above: {limit}}}}}}}\n"
        )
        command = guarded_command(MODEL, artifact_folder, folder / "policy.yaml", port, [*FLAGS, *EAGER])
        parts = {part: f"tests.serving.faults.at_run_time.{name}" for part, name in PARTS.items()}
        # A list of plugins that names none hides nothing of the guard: it is not one.
        return served(faulty_command(command, parts), port, folder / "log", {"VLLM_PLUGINS": ""})

    return serve_faulty


COLUMNS = ["block", *(pytest.param(policy, marks=pytest.mark.long) for policy in ("flag", "allow"))]


@pytest.fixture(scope="module", params=COLUMNS)
def column(request, serve_faulty, reference, artifact):
    """A server for the rows of one column; the last test of a column kills it."""
    [harmful] = clearly_harmful(reference, artifact, 1)
    prompts = {"harmless": LONG[0], "harmful": harmful}
    with serve_faulty(request.param) as server:
        found, answer = ask(server, prompts["harmless"], stream=False)
        assert found.decision == "allow"
        yield Column(server, request.param, prompts, answer)


@pytest.mark.parametrize("fault", FAULTS)
def test_a_cell_of_the_matrix(column, fault):
    """Status, finish, tokens, header and counters are the cell's, streamed and whole; then all is as if nothing had
    been.
    """
    cell = matrix(column.policy)[fault]
    for kind, messages in column.prompts.items():
        for stream in (False, True):
            before = counters(column.server)
            found, answer = ask(column.server, messages, stream=stream, fault=fault)
            found.counted.update(growth(column.server, before, cell[kind].counted))
            agree(found, cell[kind], stream=stream)
            assert found.has_tokens or answer in ("", MESSAGE)
            assert found.decision != "block" or answer == MESSAGE
            unharmed(column)


def unharmed(column: Column) -> None:
    """The same prompts, asked without a fault, are judged and answered as ever: no block of the prefix cache is
    spoilt.
    """
    for kind, messages in column.prompts.items():
        before = counters(column.server)
        found, answer = ask(column.server, messages, stream=False)
        found.counted.update(growth(column.server, before, NORMAL[kind].counted))
        agree(found, NORMAL[kind], stream=False)
        assert answer == (column.answer if kind == "harmless" else MESSAGE)


def test_an_engine_that_dies_ends_its_answers(column):
    """The stream that it was in the middle of ends with an error, and the server answers nothing more."""
    dies(column.server, DEATHS[0], column.prompts["harmless"])


@pytest.mark.long
@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("fault", DEATHS[1:])
def test_a_fault_that_leaves_no_engine_to_trust_ends_it(serve_faulty, fault, policy):
    """Whatever the policy. No executor makes a worker again that has died."""
    with serve_faulty(policy) as server:
        dies(server, fault, LONG[0])


def dies(server: Server, fault: str, messages: list[dict]) -> None:
    stream = server.client().chat.completions.create(
        model=SERVED_NAME,
        messages=messages,
        stream=True,
        max_tokens=700,
        extra_body={"ignore_eos": True, "vllm_xargs": {ARGUMENT: fault}},
    )
    pieces: list[str] = []
    finishes: set[str | None] = set()

    def read() -> None:
        for chunk in stream:
            finishes.update(choice.finish_reason for choice in chunk.choices)
            pieces.extend(choice.delta.content for choice in chunk.choices if choice.delta.content)
            if fault in KILLED and len(pieces) == 3:
                process_of(server, KILLED[fault]).kill()

    with pytest.raises((openai.APIError, httpx.TransportError)):
        read()
    assert pieces
    assert finishes <= {None}
    gone_within(server, 60)


def process_of(server: Server, name: str) -> psutil.Process:
    [found] = [each for each in psutil.Process(server.process.pid).children(recursive=True) if name in each.name()]
    return found


def gone_within(server: Server, seconds: float) -> None:
    """Wait until nothing listens; an answer until then is none that calls the server healthy."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            assert httpx.get(f"{server.url}/health", timeout=5).status_code == 503
        except httpx.TransportError:
            with suppress(psutil.NoSuchProcess):
                psutil.Process(server.process.pid).wait(30)
            return
        time.sleep(0.2)
    raise AssertionError("the server goes on without its engine")


def ask(server: Server, messages: list[dict], *, stream: bool, fault: str = "") -> tuple[Outcome, str]:
    """Return what became of a request, but for what was counted, and its text."""
    options = {"model": SERVED_NAME, "messages": messages, "max_tokens": TOKENS, "temperature": 0, "stream": stream}
    if stream:
        options["stream_options"] = {"include_usage": True}
    if fault:
        options |= {"extra_body": {"vllm_xargs": {ARGUMENT: fault}}, "extra_headers": {HEADER: fault}}
    text, finish, tokens = "", "none", 0
    try:
        raw = server.client().chat.completions.with_raw_response.create(**options)
    except openai.InternalServerError as error:
        return Outcome(error.status_code, ("error",), False, error.response.headers.get("x-guardrail-decision")), ""
    try:
        for part in raw.parse() if stream else [raw.parse()]:
            tokens = part.usage.completion_tokens if part.usage else tokens
            for choice in part.choices:
                text += (choice.delta if stream else choice.message).content or ""
                finish = choice.finish_reason or finish
    except openai.APIError:
        finish = "error"
    return Outcome(raw.status_code, (finish,), tokens > 0, raw.headers.get("x-guardrail-decision")), text


def agree(found: Outcome, cell: Outcome, *, stream: bool) -> None:
    """Require that what became of a request is what the cell says; a stream may have begun before it failed."""
    begun = stream and cell.status == 500 and found.status == 200
    assert found.status == (200 if begun else cell.status)
    assert found.decision == ("unscored" if begun else cell.decision)
    assert found.finish[0] in cell.finish
    assert (found.has_tokens, found.counted) == (cell.has_tokens, cell.counted)


def counters(server: Server) -> Counter[tuple[str, str]]:
    """Return the guard's counters, by name and first label."""
    found = Counter()
    for head, value in server.process.metrics().items():
        if match := re.match(r'(foreguard_\w+_total)\{\w+="(\w+)"', head):
            found[match.groups()] += int(value)
    return found


def growth(server: Server, before: Counter[tuple[str, str]], expected: dict[str, str]) -> dict[str, str]:
    """Return which counters grew by one, waiting a little for those expected; any that grew by more fails the test."""
    for _ in range(20):
        grown = counters(server) - before
        if set(grown) == set(expected.items()):
            break
        time.sleep(0.05)
    assert set(grown.values()) <= {1}
    return dict(grown.keys())
