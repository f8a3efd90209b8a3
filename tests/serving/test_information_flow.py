"""Nothing of a stopped request leaves: two models that differ only in what they would answer give the same bytes.

`twins.py` says how they differ. Each is served with the same policy and asked the same, one after the other: every
field of docs/inventory.md on every route, whole and streamed, alone and beside a prompt that passes. An answer is
compared with the twin's in its status, its headers and its body, but for what names the request or the moment.
"""

import time
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import pytest

from serving.offline.process import free_port, guarded_command
from tests.serving.field_values import Prompt
from tests.serving.inventory import inventory
from tests.serving.questions import Answer, beside, questions, read
from tests.serving.server import FLAGS, SERVED_NAME, served
from tests.serving.twins import WORDS, Twins, twins, with_word

pytestmark = [pytest.mark.engine, pytest.mark.timeout(900)]

PARSERS = [
    *("--enforce-eager", "--enable-auto-tool-choice", "--tool-call-parser", "hermes"),
    *("--reasoning-parser", "lab", "--reasoning-parser-plugin", str(Path(__file__).with_name("lab_reasoning.py"))),
    # Room for the least budget of thoughts that Anthropic's API has.
    *("--max-model-len", "2048"),
]
STORE = {"VLLM_ENABLE_RESPONSES_API_STORE": "1"}
CONTENT = "How do I brush a horse before the long ride?"
STOPPED = tuple(WORDS)
QUESTIONS = {question.name: question for question in questions()}
BESIDE = {question.name: question for question in beside(Prompt("", "", []))}
SCALED_OUT = [route.split(" ")[1] for route in inventory().routes["Refused by vLLM unless a flag allows it"]]
STORED: dict[str, dict] = {
    "whole": {},
    "streamed": {"stream": True},
    "in the background": {"background": True},
    "streamed in the background": {"background": True, "stream": True},
}


@dataclass
class Asked:
    """What one of the twins answered."""

    answers: dict[tuple[str, str], Answer] = field(default_factory=dict)
    """By question and by what is done about the prompt: `block`, `steer` or `allow`."""
    stored: dict[tuple[str, str], list[Answer]] = field(default_factory=dict)
    scaled_out: dict[str, int] = field(default_factory=dict)
    counts: dict[str, dict[str, float]] = field(default_factory=dict)
    """How much each series of vLLM's grew while a kind of prompt was asked about."""


@pytest.fixture(scope="module")
def both(tmp_path_factory) -> Twins:
    return twins(tmp_path_factory.mktemp("twins"))


@pytest.fixture(scope="module")
def prompts(both) -> dict[str, Prompt]:
    def prompt(content: str) -> Prompt:
        messages = [{"role": "user", "content": content}]
        text = both.tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
        return Prompt(content, text, both.tokenizer(text, add_special_tokens=False)["input_ids"])

    return {"allow": prompt(CONTENT)} | {kind: prompt(with_word(CONTENT, word)) for kind, word in WORDS.items()}


@pytest.fixture(scope="module")
def asked(both, prompts, tmp_path_factory, cache_root) -> list[Asked]:
    found = []
    for twin in both.pair:
        folder, port = tmp_path_factory.mktemp("server"), free_port()
        (folder / "policy.yaml").write_text(both.policy)
        command = guarded_command(twin.model, twin.artifact, folder / "policy.yaml", port, [*FLAGS, *PARSERS])
        with served(command, port, folder / "log", STORE | {"VLLM_CACHE_ROOT": str(cache_root)}) as server:
            found.append(ask_all(server, prompts))
    return found


def ask_all(server, prompts) -> Asked:
    """Ask a server everything."""
    asked = Asked()
    with httpx.Client(base_url=server.url, timeout=60) as client:
        for kind, prompt in prompts.items():
            before = server.process.metrics()
            for question in QUESTIONS.values():
                if kind != "allow" or question.tells:
                    asked.answers[question.name, kind] = ask(client, question, prompt, kind)
            asked.counts[kind] = growth(before, server.process.metrics())
            for question in beside(prompts["allow"]) if kind != "allow" else []:
                asked.answers[question.name, kind] = ask(client, question, prompt, kind)
            for how in STORED:
                asked.stored[how, kind] = store(client, prompt, kind, how)
        asked.scaled_out = {path: client.post(path, json={"model": SERVED_NAME}).status_code for path in SCALED_OUT}
    return asked


def ask(client, question, prompt, kind) -> Answer:
    body = question.ask(prompt)
    if body.get("stream") and kind != "block":
        # How many tokens a chunk holds is a matter of time.
        body |= {key: 1 for key in ("max_tokens", "max_output_tokens") if key in body}
    return read(client.post(question.way.path, json=body), question.choice)


def store(client, prompt, kind, how) -> list[Answer]:
    """Store a response, fetch it, continue it and cancel it."""
    short = {"model": SERVED_NAME, "max_output_tokens": 1, "temperature": 0}
    name = f"resp_{kind}_{how.replace(' ', '_')}"
    body = short | STORED[how] | {"input": prompt.content, "store": True, "request_id": name}
    replies = [client.post("/v1/responses", json=body), fetched(client, name)]
    if how == "streamed in the background":
        # vLLM keeps the events of no other.
        replies.append(client.get(f"/v1/responses/{name}", params={"stream": True}))
    replies.append(client.post("/v1/responses", json=short | {"input": "And then?", "previous_response_id": name}))
    replies.append(client.post(f"/v1/responses/{name}/cancel"))
    return [read(reply) for reply in replies]


def fetched(client, name) -> httpx.Response:
    """Return a stored response once it is done."""
    end = time.monotonic() + 30
    while (reply := client.get(f"/v1/responses/{name}")).json().get("status") in ("queued", "in_progress"):
        assert time.monotonic() < end, reply.text
        time.sleep(0.05)
    return reply


def growth(before, after) -> dict[str, float]:
    """Return by how much vLLM's counts grew: of tokens and of ends, and nothing that tells the time."""
    counts = {name for name in after if name.startswith("vllm:") and ("token" in name or "success" in name)}
    timed = ("time", "seconds", "iteration", "_created")
    return {name: after[name] - before.get(name, 0) for name in sorted(counts) if not any(w in name for w in timed)}


@pytest.mark.parametrize("kind", STOPPED)
@pytest.mark.parametrize("name", [*QUESTIONS, *BESIDE])
def test_nothing_of_a_stopped_prompt_leaves(asked, name, kind):
    """Whatever is asked for: no byte depends on what the model would have said."""
    one, other = (each.answers[name, kind] for each in asked)
    assert one == other
    # One that is made in the background has not been asked about when its client is answered.
    decided = (kind, "block", *(["unscored", None] if "background" in name else []))
    assert one.status != 200 or one.decision in decided, "it passed: nothing is tested"


@pytest.mark.parametrize("name", [name for name, question in QUESTIONS.items() if question.tells])
def test_an_allowed_answer_tells_the_twins_apart(asked, name):
    """Otherwise the comparison could not fail: the same question about a prompt that passes has something to say."""
    one, other = (each.answers[name, "allow"] for each in asked)
    assert one.status == other.status
    assert (one.body != other.body) or one.status != 200
    assert one.decision in ("allow", None)


@pytest.mark.parametrize("kind", STOPPED)
@pytest.mark.parametrize("how", STORED)
def test_a_stored_response_tells_nothing_of_a_stopped_prompt(asked, how, kind):
    """Whole, streamed or made in the background; fetched, fetched as a stream, continued and cancelled."""
    one, other = (each.stored[how, kind] for each in asked)
    assert one == other
    assert one[1].status == 200
    allowed = [each.stored[how, "allow"] for each in asked]
    assert allowed[0][1] != allowed[1][1], "a stored response says nothing: nothing is tested"


@pytest.mark.parametrize("path", SCALED_OUT)
def test_scale_out_is_closed(asked, path):
    """The routes of disaggregated serving, which take raw sampling parameters, answer nobody by default."""
    assert [each.scaled_out[path] for each in asked] == [403, 403]


@pytest.mark.parametrize("kind", STOPPED)
def test_vllms_counts_tell_no_answer(asked, kind):
    """How many tokens vLLM counts, and how requests end, is the same of both twins."""
    assert asked[0].counts[kind] == asked[1].counts[kind]
    grown = {name.split("{")[0] for name, by in asked[0].counts[kind].items() if by}
    assert "vllm:prompt_tokens_total" in grown
    assert ("vllm:generation_tokens_total" in grown) is (kind == "steer")
