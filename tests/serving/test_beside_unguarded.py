"""A guarded server beside an unguarded one, asked the same: tools, thoughts, pauses, and routes that are left alone."""

import asyncio
import json
from contextlib import nullcontext
from pathlib import Path

import httpx
import pytest

from tests.serving.planted import naive_scores
from tests.serving.server import SERVED_NAME
from tests.serving.world import (
    BENIGN,
    LONG,
    MESSAGE,
    STRENGTH,
    World,
    alike,
    clearly_harmful,
    policy_text,
    steered_prompt,
)

pytestmark = [pytest.mark.engine, pytest.mark.long, pytest.mark.timeout(900)]

FLAGS = [
    *("--enforce-eager", "--enable-auto-tool-choice", "--tool-call-parser", "hermes"),
    *("--reasoning-parser", "lab", "--reasoning-parser-plugin", str(Path(__file__).with_name("lab_reasoning.py"))),
]
LOOK_UP = {
    "type": "function",
    "function": {
        "name": "look_up",
        "strict": True,  # otherwise a forced call's arguments may be anything, such as a number without end
        "parameters": {
            "type": "object",
            "properties": {"what": {"type": "string", "maxLength": 8}},
            "required": ["what"],
            "additionalProperties": False,
        },
    },
}
CHOICES = {"auto": "auto", "required": "required", "named": {"type": "function", "function": {"name": "look_up"}}}


@pytest.fixture(scope="module")
def both(start, reference, artifact):
    """The guarded one's world, and the unguarded server."""
    dev = {"VLLM_SERVER_DEV_MODE": "1"}
    policy = policy_text(reference, artifact, constrained="steer")
    with start(None, *FLAGS, **dev) as plain, start(policy, *FLAGS, permit=tuple(dev), **dev) as guarded:
        harmful, steered = clearly_harmful(reference, artifact, 4), steered_prompt(reference, artifact)
        yield World(guarded, reference, harmful, steered, artifact=artifact), plain


def said(client, messages, *, stream=False, **options):
    """Return what an answer consists of, streamed or not, and what the guard's header says."""
    options = {"max_tokens": 64, "temperature": 0, **options}
    raw = client.chat.completions.with_raw_response.create(
        model=SERVED_NAME, messages=messages, stream=stream, **options
    )
    found = {"content": "", "reasoning": "", "tools": {}, "finish": None}
    for chunk in raw.parse() if stream else [raw.parse()]:
        for choice in chunk.choices:
            part = choice.delta if stream else choice.message
            found["content"] += part.content or ""
            found["reasoning"] += (part.model_extra or {}).get("reasoning") or ""
            for place, call in enumerate(part.tool_calls or []):
                index = call.index if stream else place
                name, arguments = found["tools"].get(index, ("", ""))
                found["tools"][index] = (
                    name + (call.function.name or ""),
                    arguments + (call.function.arguments or ""),
                )
            found["finish"] = choice.finish_reason or found["finish"]
    return found, raw.headers.get("x-guardrail-decision")


REFUSED = {"content": MESSAGE, "reasoning": "", "tools": {}, "finish": "content_filter"}


def blanks(tokenizer):
    """Return the ids of the tokens that are whitespace alone."""
    return [number for number in range(len(tokenizer)) if tokenizer.decode([number]).isspace()]


def require_call(found, choice):
    """Require that a tool is called where it must be: with arguments that keep to its schema."""
    if choice != "auto":
        [(name, arguments)] = found["tools"].values()
        assert name == "look_up"
        assert len(json.loads(arguments)["what"]) <= 8


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("choice", CHOICES)
def test_tools(both, choice, stream):
    """Where tools may or must be called, an allowed answer is the unguarded one's, and a blocked prompt calls
    nothing.
    """
    here, plain = both
    # Where a grammar allows blanks, a small model fills a forced call with nothing else.
    unsaid = dict.fromkeys(blanks(here.reference.tokenizer), -100)
    options = {"max_tokens": 96, "logit_bias": unsaid, "stream": stream}
    options |= {"tools": [LOOK_UP], "tool_choice": CHOICES[choice]}
    for messages in BENIGN[:3]:
        found, decision = said(here.client, messages, **options)
        assert (found, decision) == (said(plain.client(), messages, **options)[0], "allow")
        require_call(found, choice)
    assert said(here.client, here.harmful[0], **options) == (REFUSED, "block")
    # Steered, it would refuse, and never end the thought that a call follows.
    [end] = here.reference.tokenizer.encode(":", add_special_tokens=False)
    found, decision = said(here.client, here.steered, **options | {"logit_bias": {**unsaid, end: 100}})
    assert decision == "steer"
    require_call(found, choice)


@pytest.mark.parametrize("stream", [False, True])
def test_thoughts(both, stream):
    """An allowed answer is divided as the unguarded one's; a refusal is no thought."""
    here, plain = both
    thought = []
    for messages in BENIGN[:4]:
        found, decision = said(here.client, messages, stream=stream)
        assert (found, decision) == (said(plain.client(), messages, stream=stream)[0], "allow")
        thought.append(found["reasoning"])
    assert any(thought), "nobody thinks: nothing is tested"
    assert said(here.client, here.harmful[0], stream=stream) == (REFUSED, "block")
    steered, decision = said(here.client, here.steered, stream=stream)
    assert decision == "steer"
    assert steered != said(plain.client(), here.steered, stream=stream)[0]


def test_a_template_with_options_is_scored_as_rendered(both, artifact, reference):
    """What a client says to the chat template changes no more than the tokens that are scored."""
    here, _ = both
    for messages in [BENIGN[0], here.harmful[0]]:
        offline = naive_scores(artifact, reference.read(reference.token_ids(messages)))
        found = here.observe(messages, chat_template_kwargs={"enable_thinking": False}, cache_salt="template")
        assert found == pytest.approx(offline, abs=0.15)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("echo", [False, True])
@pytest.mark.parametrize("logprobs", [None, 1])
def test_prompts_of_every_kind_in_one_request(both, stream, echo, logprobs):
    """Echoed or not, with log-probabilities or without: each choice is what its prompt's verdict calls for."""
    here, plain = both
    prompts = [here.rendered(messages) for messages in (BENIGN[0], here.harmful[0], here.steered, BENIGN[1])]
    options = {"max_tokens": 6, "temperature": 0, "echo": echo, "logprobs": logprobs, "stream": stream}

    def texts(client):
        reply = client.completions.create(model=SERVED_NAME, prompt=prompts, **options)
        found, finish, numbers = [""] * 4, [None] * 4, [0] * 4
        for chunk in reply if stream else [reply]:
            for choice in chunk.choices:
                found[choice.index] += choice.text
                finish[choice.index] = choice.finish_reason or finish[choice.index]
                numbers[choice.index] += len(choice.logprobs.token_logprobs) if choice.logprobs else 0
        return found, finish, numbers

    ours, theirs = texts(here.client), texts(plain.client())
    for allowed in (0, 3):
        assert [each[allowed] for each in ours] == [each[allowed] for each in theirs]
    assert ours[1][1] == "content_filter"
    assert ours[0][1].removeprefix(prompts[1]) == MESSAGE
    assert ours[0][2] != theirs[0][2]
    assert ours[2][2] == theirs[2][2]


LEFT_ALONE = [
    *(
        ("GET", path, None)
        for path in ("/health", "/version", "/v1/models", "/ping", "/load", "/is_sleeping", "/nowhere")
    ),
    ("GET", "/v1/chat/completions", None),
    ("POST", "/tokenize", {"prompt": "How do I brush a horse?"}),
    ("POST", "/tokenize", {"messages": BENIGN[0]}),
    ("POST", "/detokenize", {"tokens": [5, 6, 7]}),
    *(("POST", path, {"model": SERVED_NAME, "input": "a"}) for path in ("/v1/embeddings", "/pooling", "/classify")),
    ("POST", "/score", {"model": SERVED_NAME, "text_1": "a", "text_2": "b"}),
    ("POST", "/rerank", {"model": SERVED_NAME, "query": "a", "documents": ["b"]}),
    ("POST", "/v1/chat/completions/render", {"model": SERVED_NAME, "messages": BENIGN[0]}),
]


@pytest.mark.parametrize(("method", "path", "body"), LEFT_ALONE)
def test_other_routes_are_left_alone(both, method, path, body):
    """Byte for byte, headers too, but for what names the moment or the server."""
    here, plain = both
    ours, theirs = (httpx.request(method, server.url + path, json=body) for server in (here.server, plain))
    assert ours.status_code == theirs.status_code
    assert set(ours.headers) == set(theirs.headers)
    if path in ("/v1/models", "/v1/chat/completions/render"):
        assert timeless(ours.json()) == timeless(theirs.json())
    else:
        assert ours.content == theirs.content


def timeless(content):
    if isinstance(content, dict):
        return {k: timeless(v) for k, v in content.items() if k not in ("created", "id", "request_id", "arrival_time")}
    return [timeless(each) for each in content] if isinstance(content, list) else content


def test_vllms_metrics_are_all_there(both):
    """Beside the guard's own, whose names begin with its name."""
    ours, theirs = ({name.split("{")[0] for name in server.process.metrics()} for server in (both[0].server, both[1]))
    assert {name for name in ours - theirs if not name.startswith("foreguard_")} == set()
    assert theirs <= ours


@pytest.mark.parametrize("path", ["/v1/messages", "/invocations", "/v1/chat/completions/batch"])
def test_other_ways_to_generate_are_guarded(both, path):
    """A harmful prompt has no token there either, and no parser bends the message."""
    here, _ = both
    messages = [here.harmful[0]] if path.endswith("batch") else here.harmful[0]
    body = {"model": SERVED_NAME, "messages": messages, "max_tokens": 16}
    reply = httpx.post(here.server.url + path, json=body, timeout=60)
    assert reply.status_code == 200
    assert reply.headers["x-guardrail-decision"] == "block"
    assert MESSAGE in reply.text
    usage = reply.json()["usage"]
    assert usage.get("completion_tokens", usage.get("output_tokens")) == 0


async def answers(here):
    """What one of each kind gets, all at once."""

    async def ask(messages):
        async with here.server.async_client() as client:
            reply = await client.chat.completions.create(
                model=SERVED_NAME, messages=messages, max_tokens=64, temperature=0, extra_body={"ignore_eos": True}
            )
        [choice] = reply.choices
        return whole_text(choice.message), choice.finish_reason

    return await asyncio.gather(*[ask(messages) for messages in asked_at_once(here)])


def whole_text(message):
    """What the model said, its thought and the mark behind that included: a tie is one of the whole text."""
    thought, content = (message.model_extra or {}).get("reasoning") or "", message.content or ""
    return f"{thought}:{content}" if thought and content else thought + content


def asked_at_once(here):
    """Some of each kind."""
    return (*BENIGN[:3], here.harmful[0], here.steered, LONG[0], here.harmful[1], LONG[1])


def require_alike(here, found, quiet):
    """Require that all are answered as on a quiet day, but for ties: who runs together is another matter each time."""
    for messages, (text, finish), (before, finish_before) in zip(asked_at_once(here), found, quiet, strict=True):
        assert finish == finish_before
        with as_it_is_run(here, messages):
            assert alike(here.reference, messages, text, before), (text, before)


def as_it_is_run(here, messages):
    """Let the reference be the steered model where the prompt is steered: its ties are others."""
    if messages != here.steered:
        return nullcontext()
    last = len(here.reference.token_ids(messages)) - 1
    return here.reference.steered(here.artifact, "refusal", STRENGTH, last)


INTERRUPTIONS = {
    "cache emptied": ["/reset_prefix_cache"],
    "all started over": ["/reset_prefix_cache?reset_running_requests=true"],
    "paused where it is": ["/pause?mode=keep", "/resume"],
    "paused when done": ["/pause?mode=wait", "/resume"],
    "asleep at level 0": ["/sleep?level=0&mode=keep", "/wake_up?tags=scheduling"],
}


@pytest.mark.parametrize("interruption", INTERRUPTIONS)
async def test_an_interruption_changes_nothing(both, interruption):
    """Whatever an operator does to the engine in mid-flight, everyone ends with the answer of a quiet day."""
    here, _ = both
    quiet = await answers(here)
    assert quiet[3] == (MESSAGE, "content_filter")
    asked = asyncio.create_task(answers(here))
    async with httpx.AsyncClient(base_url=here.server.url, timeout=60) as operator:
        for path in INTERRUPTIONS[interruption]:
            await asyncio.sleep(0.1)
            assert (await operator.post(path)).status_code == 200
    require_alike(here, await asked, quiet)


async def test_a_pause_that_aborts_lets_nobody_through(both):
    """Who was waiting is sent away, with nothing that a verdict had not passed; then all is as before."""
    here, _ = both
    quiet = await answers(here)
    asked = asyncio.create_task(answers(here))
    async with httpx.AsyncClient(base_url=here.server.url, timeout=60) as operator:
        await asyncio.sleep(0.05)
        assert (await operator.post("/pause?mode=abort")).status_code == 200
        assert (await operator.post("/resume")).status_code == 200
    for (content, finish), (whole, _) in zip(await asked, quiet, strict=True):
        assert (whole or "").startswith(content or ""), finish
    require_alike(here, await answers(here), quiet)


async def test_the_weights_stay(both):
    """Neither zeroed nor discarded: the call fails, and answers are those of before."""
    here, _ = both
    quiet = await answers(here)
    # uvicorn hangs up after a 500.
    options = {"base_url": here.server.url, "timeout": 60, "headers": {"connection": "close"}}
    async with httpx.AsyncClient(**options) as operator:
        for path, body in (("/collective_rpc", {"method": "reset_weights"}), ("/sleep?level=2", None)):
            assert (await operator.post(path, json=body)).status_code == 500
            assert (await operator.post("/wake_up")).status_code == 200
            require_alike(here, await answers(here), quiet)


def test_no_prompt_was_unscored(both):
    """After all of the above, but those that an abort cut off."""
    here, _ = both
    metric = here.server.metric
    assert metric("foreguard_unscored_total") == metric("foreguard_unscored_total", reason="aborted")
