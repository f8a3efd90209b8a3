"""What a client without a key, with a strange path or a huge body can make a real server do, and what metrics tell
it.
"""

import asyncio
import json
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from serving.api.routes import OPEN, ROUTES
from serving.settings import BODY_TIMEOUT, MAX_BODY
from tests.serving.server import SERVED_NAME
from tests.serving.world import BENIGN, OBSERVER_KEY, World, clearly_harmful, policy_text, steered_prompt

pytestmark = [pytest.mark.engine, pytest.mark.timeout(600)]

KEY = "right"
ORIGIN = "https://page.test"
LONGEST = 20_000_000
PATIENCE_S = 3


@pytest.fixture(scope="module")
def closed(start, reference, artifact):
    """A server with keys, CORS and request ids, whose bodies have a size and a time."""
    flags = ["--enforce-eager", "--api-key", KEY, OBSERVER_KEY, "--enable-request-id-headers"]
    limits = {MAX_BODY: str(LONGEST), BODY_TIMEOUT: str(PATIENCE_S)}
    with start(policy_text(reference, artifact), *flags, "--allowed-origins", json.dumps([ORIGIN]), **limits) as server:
        harmful, steered = clearly_harmful(reference, artifact, 8), steered_prompt(reference, artifact)
        yield World(server, reference, harmful, steered)


def ask(closed, path, body, key=KEY, method="POST", **headers):
    """Ask by a key, or by none."""
    headers = {"authorization": f"Bearer {key}"} | headers if key else headers
    return httpx.request(method, closed.server.url + path, json=body, headers=headers, timeout=60)


def chat(closed, messages, key=KEY, **options):
    """Ask a chat question."""
    headers = {name.replace("_", "-"): options.pop(name) for name in ("origin", "x_request_id") if name in options}
    body = {"model": SERVED_NAME, "messages": messages, "max_tokens": 4, "temperature": 0, **options}
    return ask(closed, "/v1/chat/completions", body, key, **headers)


def body_of(path, messages):
    """A small question for any route."""
    if path.endswith("batch"):
        messages = [messages]
    asked = {"messages": messages, "prompt": "Hello", "input": "Hello"}
    wanted = {"/v1/completions": "prompt", "/v1/responses": "input"}.get(path, "messages")
    return {"model": SERVED_NAME, "max_tokens": 4, wanted: asked[wanted]}


@pytest.mark.parametrize("behind", ["%0A", "%0D", "%0D%0A", "%09", "%00", "%7F", "%C2%85", "%E2%80%A8", "?a=1%0A"])
@pytest.mark.parametrize("path", sorted(ROUTES))
def test_a_path_has_one_spelling(closed, path, behind):
    """With a control character behind it, it is no path of the server's; in the query it is no part of the path."""
    for more in ({}, {"use_beam_search": True, "n": 2}, {"moderation": {"mode": "block"}}):
        reply = ask(closed, path + behind, body_of(path, closed.steered) | more)
        if behind.startswith("?"):
            assert reply.status_code in (200, 400)
            assert ("x-guardrail-decision" in reply.headers) is (reply.status_code == 200)
        else:
            assert reply.status_code == 404


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16", "utf-32"])
@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions", "/invocations"])
def test_beams_are_refused(closed, path, encoding):
    """On every route that has them, in every encoding that vLLM reads."""
    content = json.dumps(body_of(path, BENIGN[0]) | {"use_beam_search": 1, "n": 2}).encode(encoding)
    headers = {"authorization": f"Bearer {KEY}", "content-type": "application/json"}
    reply = httpx.post(closed.server.url + path, content=content, headers=headers, timeout=60)
    assert (reply.status_code, "Beam search" in reply.text) == (400, True)


def scoring(closed, messages, **more):
    """Ask the route that scores what might come next, with the prompt in two parts."""
    ids = closed.reference.token_ids(messages)
    return ask(
        closed,
        "/generative_scoring",
        {"model": SERVED_NAME, "query": ids[:-1], "items": [ids[-1:]], "label_token_ids": [5, 6], **more},
    )


def test_a_route_of_unknown_form_is_guarded(closed):
    """An allowed prompt has the route's answer; a blocked one an HTTP error; and a wish to tighten is heard."""
    allowed = scoring(closed, BENIGN[0])
    assert (allowed.status_code, allowed.headers["x-guardrail-decision"]) == (200, "allow")
    blocked = [scoring(closed, messages) for messages in closed.harmful[:3]]
    blocked.append(scoring(closed, closed.steered, moderation={"mode": "block"}))
    for reply in blocked:
        assert (reply.status_code, reply.headers["x-guardrail-decision"]) == (400, "block")
        assert reply.json()["error"]["code"] == "content_filter"
        assert set(reply.json()) == {"error"}


PRIVATE = (
    *("foreguard_score", "foreguard_threshold", "foreguard_answer_tokens"),
    *("foreguard_drift", "foreguard_shadow_decisions"),
)


def samples(closed, key, path="/metrics"):
    """Every sample of a page, by name and labels."""
    lines = ask(closed, path, None, key, method="GET").text.splitlines()
    heads = (line.rpartition(" ") for line in lines if line and not line.startswith("#"))
    return {name: value for name, _, value in heads}


@pytest.mark.parametrize("path", ["/metrics", "/metrics/", "/metricsfoo", "/metrics?name[]=foreguard_score_bucket"])
def test_metrics_tell_no_score(closed, path):
    """Between two looks at them, a request moves nothing that depends on its score, under any spelling of the path."""
    before = samples(closed, KEY, path)
    assert chat(closed, closed.harmful[0]).headers["x-guardrail-decision"] == "block"
    after = samples(closed, KEY, path)
    moved = {name for name in after if name.startswith("foreguard") and after[name] != before.get(name)}
    counted = {'foreguard_requests_total{action="block",mode="enforce"}'}
    assert counted <= moved
    assert {name.split("{")[0] for name in moved - counted} <= {
        "foreguard_decision_seconds_bucket",
        "foreguard_decision_seconds_count",
        "foreguard_decision_seconds_sum",
        "foreguard_last_scored_timestamp_seconds",
    }
    assert not [name for name in after if name.startswith(PRIVATE) or "harmful" in name or "r_swim" in name]


def test_metrics_tell_everything_to_their_key(closed):
    """Also where `--api-key` closes the route; vLLM's own series are on both pages."""
    everything = closed.server.process.metrics()
    assert all(any(name.startswith(private) for name in everything) for private in PRIVATE)
    public = {name.split("{")[0] for name in samples(closed, KEY)}
    assert {
        name for name in {head.split("{")[0] for head in everything} - public if not name.startswith(PRIVATE)
    } == set()


def test_without_a_key_nothing_answers_but_health(closed):
    """Every route of the server's own description, and those that are in none; with the wrong key and with none."""
    described = ask(closed, "/openapi.json", None, method="GET").json()["paths"]
    asked = {
        (method.upper(), path.replace("{response_id}", "r")) for path, each in described.items() for method in each
    }
    asked |= {("GET", path) for path in ("/metrics", "/docs", "/openapi.json", "/redoc", "/nowhere", "/")}
    assert len(asked) > 20
    for method, path in sorted(asked):
        for key in (None, "wrong", KEY + "x"):
            reply = ask(closed, path, body_of(path, BENIGN[0]) if method == "POST" else None, key, method)
            assert (reply.status_code == 401) is (path not in OPEN), (method, path, reply.text[:80])
    assert ask(closed, "/guard/ready", None, None, "GET").status_code == 200


class Raw:
    """A connection that sends what it likes."""

    def __init__(self, closed, path="/v1/chat/completions", key="wrong", length=None):
        self.socket = socket.create_connection(("127.0.0.1", closed.server.process.port), timeout=30)
        framing = f"Content-Length: {length}" if length else "Transfer-Encoding: chunked"
        head = f"POST {path} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {key}\r\n{framing}"
        self.socket.sendall(f"{head}\r\nContent-Type: application/json\r\n\r\n".encode())

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.socket.close()

    def said(self):
        """The status, and the seconds until it came."""
        began = time.monotonic()
        status = self.socket.recv(64).split(b" ")[1]
        return int(status), time.monotonic() - began

    def is_closed(self):
        """Whether the server ends the connection once it has answered."""
        self.socket.settimeout(10)
        while self.socket.recv(65536):
            pass
        return True


PATHS = ["/v1/chat/completions", "/invocations", "/tokenize", "/generative_scoring"]


@pytest.mark.parametrize("path", PATHS)
def test_a_body_without_a_key_is_not_waited_for(closed, path):
    """200 MB are announced: the server says 401 at once."""
    with Raw(closed, path, length=200_000_000) as client:
        client.socket.sendall(b"{")
        status, seconds = client.said()
        assert (status, seconds < 2) == (401, True)


@pytest.mark.parametrize("path", PATHS)
def test_a_body_that_is_announced_too_long(closed, path):
    """413 at once, and the connection ends."""
    with Raw(closed, path, KEY, LONGEST + 1) as client:
        status, seconds = client.said()
        assert (status, seconds < 2) == (413, True)
        assert client.is_closed()


def test_a_body_without_an_end(closed):
    """In pieces whose number nobody announced: 413 when they are too many."""
    piece = b"f4240\r\n" + b" " * 1_000_000 + b"\r\n"
    with Raw(closed, key=KEY) as client:
        sent = 0
        try:
            for _ in range(200):
                client.socket.sendall(piece)
                sent += 1
        except OSError:  # the server has closed
            pass
        assert LONGEST / 1e6 <= sent < 200


@pytest.mark.parametrize("drips", [False, True])
def test_half_a_body(closed, drips):
    """408 after the time, also where a byte comes now and then."""
    with Raw(closed, key=KEY, length=1000) as client:
        client.socket.sendall(b'{"messages":')
        ended = threading.Event()

        def drip():
            while not ended.wait(0.2):
                client.socket.sendall(b" ")

        dripping = threading.Thread(target=drip, daemon=True)
        if drips:
            dripping.start()
        status, seconds = client.said()
        ended.set()
        assert (status, PATIENCE_S - 1 < seconds < PATIENCE_S + 10) == (408, True)


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/invocations"])
def test_brackets_hold_nobody_up(closed, path):
    """15 MB of them by whoever has no key: health answers as before."""
    content = b'{"moderation":null,"x":[' + b",".join([b"[]"] * 5_000_000) + b"]}"
    took, ended = [], threading.Event()

    def watch():
        with httpx.Client(base_url=closed.server.url, timeout=60) as client:
            while not ended.is_set():
                began = time.perf_counter()
                client.get("/health")
                took.append(time.perf_counter() - began)
                time.sleep(0.02)

    def watched(times):
        while len(took) < times and watching.is_alive():
            time.sleep(0.01)

    watching = threading.Thread(target=watch)
    watching.start()
    watched(3)
    try:
        headers = {"content-type": "application/json", "authorization": "Bearer wrong"}
        status = httpx.post(closed.server.url + path, content=content, headers=headers, timeout=60).status_code
    except httpx.WriteError:  # the server has said so before the body was sent
        status = 401
    watched(len(took) + 10)
    ended.set()
    watching.join()
    assert status == 401
    assert max(took) < 1


@pytest.mark.parametrize("name", ["same", "foreguard-canary-0", "0_chatcmpl-same", "\u0000", "x" * 300])
def test_one_request_id_for_many(closed, name):
    """At once, in body and header: every verdict is its own prompt's."""
    asked = [*closed.harmful, *BENIGN[:8], closed.steered]
    expected = ["block"] * len(closed.harmful) + ["allow"] * 8 + ["steer"]

    def decision(messages):
        header = {"x_request_id": name} if name.isprintable() else {}
        return chat(closed, messages, request_id=name, **header).headers["x-guardrail-decision"]

    with ThreadPoolExecutor(16) as pool:
        assert list(pool.map(decision, asked * 3)) == expected * 3


@pytest.mark.parametrize("stream", [False, True])
def test_every_answer_has_vllm_s_headers(closed, stream):
    """Allowed, steered, blocked and refused by the guard: browsers may read each, and traces keep its id."""
    replies = {
        "allow": chat(closed, BENIGN[0], stream=stream, origin=ORIGIN, x_request_id="trace-1"),
        "steer": chat(closed, closed.steered, stream=stream, origin=ORIGIN, x_request_id="trace-1"),
        "block": chat(closed, closed.harmful[0], stream=stream, origin=ORIGIN, x_request_id="trace-1"),
        "beams": chat(closed, BENIGN[0], use_beam_search=True, origin=ORIGIN, x_request_id="trace-1"),
        "413": chat(closed, BENIGN[0], padding="x" * LONGEST, origin=ORIGIN, x_request_id="trace-1"),
    }
    for kind, reply in replies.items():
        assert reply.headers["access-control-allow-origin"] == ORIGIN, kind
        assert reply.headers["x-request-id"] == "trace-1", kind
    assert [replies[kind].headers["x-guardrail-decision"] for kind in ("allow", "steer", "block")] == [
        "allow",
        "steer",
        "block",
    ]


async def test_clients_without_a_key_do_not_slow_the_others(closed):
    """Fifty connections that announce a body and send none of it: a client with a key is answered."""
    reader_writers = [await asyncio.open_connection("127.0.0.1", closed.server.process.port) for _ in range(50)]
    for _, writer in reader_writers:
        writer.write(b"POST /invocations HTTP/1.1\r\nHost: x\r\nContent-Length: 9999999\r\n\r\n{")
    reply = await asyncio.to_thread(chat, closed, BENIGN[0])
    assert reply.status_code == 200
    for reader, writer in reader_writers:
        assert b"401" in await asyncio.wait_for(reader.readline(), 10)
        writer.close()
