"""The middleware in front of an app: shut until tested, then judging its own routes and touching no other."""

import asyncio
import json
from dataclasses import replace
from pathlib import Path

import httpx
import openai
import pytest
from vllm.sampling_params import SamplingParams

from guard.verdict import Unscored
from probes.artifact import Artifact
from serving.api.exchange import current
from serving.api.guarded_requests import _REFUSED
from serving.api.routes import OPEN, ROUTES
from serving.checked import VARIABLE, Checked
from serving.config import AdapterConfig
from serving.settings import BODY_TIMEOUT, MAX_BODY, METRICS_KEY

KEY = [(b"authorization", b"Bearer red-team-key")]
ERROR_STYLE = '\nresponse: {style: error, message: "Not here."}\n'


async def start(send, kind):
    """Begin an answer of this content type."""
    headers = [(b"content-type", kind.encode())]
    await send({"type": "http.response.start", "status": 200, "headers": headers})


async def chat(engine, scope, receive, send):
    """A chat route in small: reads the body, asks the engine, answers in JSON or as a stream."""
    chunks = []
    while True:
        message = await receive()
        chunks.append(message.get("body", b""))
        if not message.get("more_body"):
            break
    request = json.loads(b"".join(chunks))
    params = SamplingParams(n=request.get("n", 1), extra_args=request.get("vllm_xargs"))
    outputs = engine.generate("prompt", params, "chatcmpl-1")
    if request.get("stream"):
        await start(send, "text/event-stream; charset=utf-8")
        await send({"type": "http.response.body", "body": chunk({"role": "assistant"}), "more_body": True})
        async for output in outputs:
            for completion in output.outputs:
                event = chunk({"content": completion.text}, completion.index, completion.finish_reason)
                await send({"type": "http.response.body", "body": event, "more_body": True})
        await send({"type": "http.response.body", "body": b"data: [DONE]\n\n", "more_body": False})
        return
    text = {}
    async for output in outputs:
        for completion in output.outputs:
            text[completion.index] = text.get(completion.index, "") + completion.text
    choices = [
        {"index": index, "message": {"role": "assistant", "content": words}, "finish_reason": "length"}
        for index, words in text.items()
    ]
    await start(send, "application/json")
    await send({"type": "http.response.body", "body": json.dumps(envelope("chat.completion", choices)).encode()})


def envelope(kind, choices):
    """What vLLM puts around choices."""
    return {"id": "chatcmpl-1", "object": kind, "created": 1, "model": "served-model", "choices": choices}


def chunk(delta, index=0, finish_reason=None):
    """One event of a chat stream."""
    choices = [{"index": index, "delta": delta, "finish_reason": finish_reason}]
    return f"data: {json.dumps(envelope('chat.completion.chunk', choices))}\n\n".encode()


async def echo(engine, scope, receive, send):
    """Answer with what was asked, and whether the guard watches."""
    message = await receive()
    await start(send, "text/plain")
    watched = b"watched" if current.get() else b"free"
    await send({"type": "http.response.body", "body": watched + b":" + message.get("body", b"")})


async def test_start_up_waits_for_the_canary(unstarted):
    """The canary goes through the engine before start-up is complete, unguarded by any exchange, and is not counted."""
    server = unstarted(chat)
    assert [message["type"] for message in await server.start()] == ["lifespan.startup.complete"]
    assert server.engine.asked == [{}]


async def test_the_canary_is_no_traffic(unstarted, registry):
    """Metrics begin with the first client."""
    await unstarted(chat).start()
    assert registry.get_sample_value("foreguard_score_count", {"probe": "harm", "adapter": ""}) == 0


@pytest.mark.parametrize("scores", [Unscored.TAP_SILENT, [float("nan")]])
async def test_a_guard_that_does_not_see_stays_shut(unstarted, scores):
    """A canary without a score fails the start-up, saying so, and no request is ever let in."""
    server = unstarted(chat)
    server.engine.scores = scores
    (message,) = await server.start()
    assert message["type"] == "lifespan.startup.failed"
    assert "not scored" in message["message"]
    status, _, body = await server.post(b"{}")
    assert status == 503
    assert json.loads(body)["error"]["code"] == "guard_not_ready"


async def test_a_model_that_is_not_the_calibrated_one_stays_shut(unstarted, artifact):
    """Every score is finite and none is right: the artifact keeps what the canary's was."""
    loaded = Artifact.load(artifact)
    sealed = replace(loaded, manifest=loaded.manifest.model_copy(update={"canary": {"harm": 0.0}})).save(artifact)
    server = unstarted(chat)
    assert server.config.artifact_digest == sealed.digest
    server.engine.scores = [5.0]
    (message,) = await server.start()
    assert message["type"] == "lifespan.startup.failed"
    assert "harm 5, not 0" in message["message"]


async def test_a_model_whose_files_changed_while_it_was_loaded_stays_shut(unstarted, tmp_path, monkeypatch):
    """What was compared with the artifact may not be what was loaded."""
    monkeypatch.setenv(VARIABLE, "")
    (tmp_path / "config.json").write_text("{}")
    server = unstarted(chat)
    bound = server.config.bind_policy(server.config.load_artifact())
    Checked.begin([tmp_path]).with_policy(bound.policy).publish()
    (tmp_path / "config.json").write_text("{ }")
    (message,) = await server.start()
    assert message["type"] == "lifespan.startup.failed"
    assert "files changed" in message["message"]


async def test_an_adapter_with_other_probes_than_the_model_is_counted(unstarted, artifact, tmp_path, registry):
    """Its artifact has a probe that the model's lacks: it is asked with the canary, and has series of its own."""
    loaded = Artifact.load(artifact)
    probe = loaded.manifest.probes[0]
    manifest = loaded.manifest.model_copy(update={"probes": (probe, probe.model_copy(update={"name": "depth"}))})
    tensors = {name: t.repeat(1, 2) if name.startswith("scores") else t for name, t in loaded.tensors.items()}
    own = Artifact(manifest, tensors | {"probe.depth.weight": tensors["probe.harm.weight"]})
    digest = own.save(tmp_path / "own").digest
    adapter = AdapterConfig(name="polite", path=tmp_path, artifact=tmp_path / "own", artifact_digest=digest)
    server = unstarted(chat, adapters=(adapter,))
    scores = {None: [0.0], "polite": [3.0, 1.0]}
    generate = server.engine.generate

    def scored(prompt, params, request_id, **options):
        server.engine.scores = scores[getattr(options.get("lora_request"), "lora_name", None)]
        return generate(prompt, params, request_id, **options)

    server.engine.generate = scored
    assert [message["type"] for message in await server.start()] == ["lifespan.startup.complete"]
    lora = server.state.openai_serving_models.lora_requests["polite"]
    [output] = [each async for each in server.engine.generate("p", SamplingParams(), "r", lora_request=lora)]
    assert output.outputs[0].finish_reason == "content_filter"
    for probe in ("harm", "depth"):
        assert registry.get_sample_value("foreguard_score_count", {"probe": probe, "adapter": "polite"}) == 1
    assert registry.get_sample_value("foreguard_score_count", {"probe": "harm", "adapter": ""}) == 0
    labels = {"rule": "harmful", "probe": "harm", "adapter": "polite", "variant": ""}
    assert registry.get_sample_value("foreguard_threshold", labels) == 2
    assert registry.get_sample_value("foreguard_errors_total", {"type": "unrecorded"}) == 0


async def test_a_server_without_our_configuration_stays_shut(unstarted):
    """Named in the flags but not configured: a clear failure instead of an unguarded server."""
    server = unstarted(chat)
    server.state.vllm_config.additional_config = {}
    (message,) = await server.start()
    assert message["type"] == "lifespan.startup.failed"
    assert "foreguard serve" in message["message"]


@pytest.mark.parametrize("path", sorted(ROUTES))
async def test_not_ready_is_503(unstarted, path):
    """Before the self-test has passed, guarded routes answer 503 and the app is not called."""

    async def never(*_):
        raise AssertionError("the app was called")

    status, headers, body = await unstarted(never).post(b"{}", path)
    assert (status, headers["content-type"]) == (503, "application/json")
    assert json.loads(body)["error"]["code"] == "guard_not_ready"


async def test_allowed_request(serve):
    """The app's JSON, byte for byte, with our headers beside it."""
    server = await serve(chat)
    status, headers, body = await server.post(b'{"n": 2}')
    assert status == 200
    assert [choice["message"]["content"] for choice in json.loads(body)["choices"]] == ["hello", "hello"]
    assert headers["x-guardrail-decision"] == "allow"
    assert headers["x-guardrail-policy"] == "test@1"
    assert headers["x-guardrail-event-id"].startswith("fge_")


async def test_flagged_request_passes_and_says_so(serve):
    """A flag is a record, not an intervention."""
    server = await serve(chat)
    server.engine.scores = [1.5]
    status, headers, body = await server.post(b"{}")
    assert (status, headers["x-guardrail-decision"]) == (200, "flag")
    assert json.loads(body)["choices"][0]["message"]["content"] == "hello"


@pytest.mark.parametrize("stream", [False, True])
async def test_blocked_request(serve, stream):
    """Nothing of the model's, in JSON and in a stream."""
    server = await serve(chat)
    server.engine.scores = [3.0]
    status, headers, body = await server.post(json.dumps({"stream": stream, "n": 2}).encode())
    assert (status, headers["x-guardrail-decision"]) == (200, "block")
    assert b"hel" not in body.replace(b"help", b"")
    assert body.count(b'"content_filter"') == 2


async def test_a_body_in_pieces_reaches_the_app_whole(serve):
    """Chunked uploads are read, looked at, and given on."""
    server = await serve(chat)
    raw = json.dumps({"n": 3, "padding": "x" * 1000}).encode()
    _, _, body = await server.post(None, chunks=[raw[:10], b"", raw[10:500], raw[500:]])
    assert len(json.loads(body)["choices"]) == 3


async def test_the_app_hears_the_client_leave(serve):
    """After the body, `receive` gives the server's own messages: a disconnect reaches vLLM, which aborts the
    request.
    """
    heard = []

    async def app(engine, scope, receive, send):
        heard.extend([await receive(), await receive()])

    server = await serve(app)
    incoming = {"type": "http.request", "body": b"{}", "more_body": False}
    scope = {"type": "http", "method": "POST", "path": "/v1/completions", "headers": []}
    assert await server.call(scope, incoming) == []
    assert [message["type"] for message in heard] == ["http.request", "http.disconnect"]
    assert current.get() is None


async def test_a_client_that_leaves_before_its_body_ends(serve):
    """A disconnect in place of the rest of the body is replayed too, and nothing fails."""
    heard = []

    async def app(engine, scope, receive, send):
        heard.extend([await receive(), await receive()])

    server = await serve(app)
    scope = {"type": "http", "method": "POST", "path": "/v1/completions", "headers": []}
    await server.call(scope, {"type": "http.request", "body": b"{", "more_body": True})
    assert [message["type"] for message in heard] == ["http.request", "http.disconnect"]


async def test_an_app_that_fails_leaves_nothing_behind(serve):
    """The exception reaches the server, nothing was sent, and the context is closed."""

    async def app(engine, scope, receive, send):
        await start(send, "application/json")
        raise RuntimeError("engine died")

    server = await serve(app)
    with pytest.raises(RuntimeError, match="engine died"):
        await server.post(b"{}")
    assert current.get() is None


@pytest.mark.parametrize("method", ["GET", "HEAD", "POST"])
@pytest.mark.parametrize("path", OPEN)
async def test_health_checks_are_untouched(unstarted, method, path):
    """No header, no holding, no exchange; also before the guard is ready."""
    server = unstarted(echo)
    for _ in range(2):
        status, headers, body = await server.post(b"x", path, method=method)
        assert (status, body, list(headers)) == (200, b"free:x", ["content-type"])
        await server.start()


EVERYWHERE = [
    "/v1/models",
    "/tokenize",
    "/generative_scoring",
    "/v1/responses/",
    "/api/v1/completions",
    "/v1//messages",
    "",
]


@pytest.mark.parametrize("root", ["", "/api"])
@pytest.mark.parametrize("method", ["GET", "POST", "PUT"])
@pytest.mark.parametrize("path", EVERYWHERE)
async def test_every_other_path_is_watched(serve, method, path, root):
    """The exchange is open whatever the path is, and the answer is the app's own where no prompt reaches the engine."""
    server = await serve(echo)
    status, headers, body = await server.post(b"x", path, method=method, root_path=root)
    assert (status, body, list(headers)) == (200, b"watched:x", ["content-type"])


@pytest.mark.parametrize("path", [*EVERYWHERE, "/metrics", "/openapi.json", "/v1/responses/1"])
async def test_nothing_but_health_checks_answers_before_the_guard_is_ready(unstarted, path):
    """The app is not asked, whatever the path is."""
    status, _, body = await unstarted(echo).post(b"x", path)
    assert (status, json.loads(body)["error"]["code"]) == (503, "guard_not_ready")


@pytest.mark.parametrize("character", ["\n", "\r", "\r\n", "\t", "\0", "\x7f", "\x85", "\u2028"])
@pytest.mark.parametrize("path", [*ROUTES, *OPEN, "/metrics", "/generative_scoring", "/guard/ready"])
async def test_no_path_has_control_characters(unstarted, path, character):
    """A router's pattern also matches before a newline at the end (%0A): such a path reaches no route."""

    async def never(*_):
        raise AssertionError("the app was called")

    server = unstarted(never)
    for spelt in (path + character, f"/{character}{path[1:]}", path.replace("/", f"/{character}")):
        assert (await server.post(b"{}", spelt))[0] == 404


async def test_a_websocket_is_watched(serve):
    """What a session sends to the engine finds the exchange, and its caller."""
    seen = []

    async def app(engine, scope, receive, send):
        seen.append(current.get())

    server = await serve(app)
    await server.call({"type": "websocket", "path": "/v1/realtime", "headers": KEY})
    assert (seen[0].caller, seen[0].asked) == ("red-team", {})
    assert current.get() is None


@pytest.mark.parametrize(
    ("body", "headers", "status", "code"),
    [
        (b"x" * 1001, [], 413, "request_too_large"),
        (b"", [(b"content-length", b"1001")], 413, "request_too_large"),
        (b"x" * 1000, [], 200, None),
    ],
)
@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/messages", "/tokenize", "/nowhere"])
async def test_a_body_has_a_size(unstarted, monkeypatch, path, body, headers, status, code):
    """On every route; the connection is closed with what nobody read."""
    monkeypatch.setenv(MAX_BODY, "1000")
    server = unstarted(echo)
    await server.start()
    answered, told, content = await server.post(body, path, headers=headers)
    assert (answered, told.get("connection")) == (status, "close" if code else None)
    assert code is None or json.loads(content)["error"]["code"] == code


async def test_a_body_has_a_time(unstarted, monkeypatch):
    """A client that sends half of one is told."""
    monkeypatch.setenv(BODY_TIMEOUT, "0.05")
    server = unstarted(echo)
    await server.start()
    sent = []

    async def receive():
        await asyncio.Event().wait()

    async def send(message):
        sent.append(message)

    scope = {"type": "http", "method": "POST", "path": "/v1/chat/completions", "headers": []}
    await server.middleware(scope, receive, send)
    assert sent[0]["status"] == 408
    assert json.loads(sent[1]["body"])["error"]["code"] == "request_timeout"


async def test_a_long_body_that_is_no_json_by_the_letter(serve):
    """Its wish would be lost: the client is told, and the app is not asked."""
    server = await serve(echo)
    body = b'{"moderation": {"mode": "block"}, "x": NaN, "y": "' + b"x" * (1 << 20) + b'"}'
    headers = [(b"content-type", b"application/json")]
    status, _, content = await server.post(body, headers=headers)
    assert (status, json.loads(content)["error"]["code"]) == (400, "invalid_json")


async def test_the_exchange_is_one_request_s_own(serve):
    """Requests that run side by side do not see each other's verdicts."""
    gate = asyncio.Event()

    async def app(engine, scope, receive, send):
        if (await receive())["body"] == b'{"slow":1}':
            await gate.wait()
        await chat(engine, scope, lambda: asyncio.sleep(0, {"type": "http.request", "body": b"{}"}), send)

    server = await serve(app)
    slow = asyncio.create_task(server.post(b'{"slow":1}'))
    await asyncio.sleep(0)
    _, fast, _ = await server.post(b"{}")
    server.engine.scores = [3.0]
    gate.set()
    _, slowed, _ = await slow
    assert (fast["x-guardrail-decision"], slowed["x-guardrail-decision"]) == ("allow", "block")


async def test_a_client_can_tighten(serve):
    """`moderation: {mode: block}` makes a flag a block, for anyone."""
    server = await serve(chat)
    server.engine.scores = [1.5]
    _, headers, body = await server.post(b'{"moderation": {"mode": "block"}}')
    assert headers["x-guardrail-decision"] == "block"
    assert json.loads(body)["moderation"]["input"]["results"][0]["flagged"] is True


@pytest.mark.parametrize("headers", [(), [(b"authorization", b"Bearer guess")]])
@pytest.mark.parametrize(
    "body",
    [
        {"moderation": {"mode": "score"}},
        {"vllm_xargs": {"foreguard": {"shadow": True}}},
        {"moderation": {"mode": "score"}, "vllm_xargs": {"foreguard": {"shadow": True, "tighten": False}}},
    ],
)
async def test_no_client_can_loosen(serve, headers, body):
    """Neither by asking nor by forging does the public get past a block, or at a score."""
    server = await serve(chat)
    server.engine.scores = [3.25]
    _, answered, answer = await server.post(json.dumps(body).encode(), headers=headers)
    assert answered["x-guardrail-decision"] == "block"
    assert server.engine.asked[-1] == {}
    assert b"3.25" not in answer


async def test_a_caller_named_by_the_policy_can_look_without_acting(serve):
    """The red team's key gives shadow and scores; the same request without the key is blocked."""
    server = await serve(chat)
    server.engine.scores = [3.25]
    _, headers, body = await server.post(b'{"moderation": {"mode": "score"}}', headers=KEY)
    result = json.loads(body)["moderation"]["input"]["results"][0]
    assert headers["x-guardrail-decision"] == "allow"
    assert result["flagged"] is True
    assert result["category_scores"] == {"harm": 3.25}
    assert (await server.post(b"{}", headers=KEY))[1]["x-guardrail-decision"] == "block"


async def test_malformed_moderation_is_the_client_s_fault(serve):
    """HTTP 400 in OpenAI's envelope, before vLLM is asked."""
    server = await serve(chat)
    status, _, body = await server.post(b'{"moderation": {"mode": "off"}}')
    error = json.loads(body)["error"]
    assert (status, error["code"], error["param"]) == (400, "invalid_moderation", "moderation")
    assert len(server.engine.asked) == 1  # the canary's


async def test_metrics_count_each_request_once(serve, registry):
    """Two allowed (one of n = 3) and one blocked."""
    server = await serve(chat)
    await server.post(b"{}")
    await server.post(b'{"n": 3}')
    server.engine.scores = [3.0]
    await server.post(b"{}")

    def count(action):
        return registry.get_sample_value("foreguard_requests_total", {"action": action, "mode": "enforce"})

    assert (count("allow"), count("block"), count("flag")) == (2, 1, 0)


def client(server):
    """OpenAI's own client, talking to the middleware in this process."""
    transport = httpx.ASGITransport(app=server.middleware)
    return openai.AsyncOpenAI(
        api_key="k", base_url="http://test/v1", max_retries=0, http_client=httpx.AsyncClient(transport=transport)
    )


QUESTION = {"model": "served-model", "messages": [{"role": "user", "content": "hello"}]}


async def test_openai_s_client_understands_a_block(serve):
    """The official client sees a refusal with `content_filter`, whole and streamed."""
    server = await serve(chat)
    server.engine.scores = [3.0]
    async with client(server) as api:
        whole = await api.chat.completions.create(**QUESTION)
        assert (whole.choices[0].finish_reason, whole.choices[0].message.refusal) == (
            "content_filter",
            "I can't help with that request.",
        )
        chunks = [chunk async for chunk in await api.chat.completions.create(**QUESTION, stream=True)]
        assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == "I can't help with that request."


async def test_openai_s_client_understands_an_error(serve, policy_text):
    """In error style both ways raise BadRequestError, which the client does not retry."""
    server = await serve(chat, policy=policy_text + ERROR_STYLE)
    server.engine.scores = [3.0]
    async with client(server) as api:
        for stream in (False, True):
            with pytest.raises(openai.BadRequestError) as caught:
                await api.chat.completions.create(**QUESTION, stream=stream)
            assert caught.value.code == "content_filter"
            assert caught.value.param == "messages"


async def test_openai_s_client_reads_moderation(serve):
    """The official client's `moderation` field is filled, whole and streamed."""
    server = await serve(chat)
    extra = {"extra_body": {"moderation": {"mode": "score"}}}
    async with client(server) as api:
        whole = await api.chat.completions.create(**QUESTION, **extra)
        assert whole.moderation.input.results[0].flagged is False
        chunks = [chunk async for chunk in await api.chat.completions.create(**QUESTION, stream=True, **extra)]
        assert sum(bool(chunk.moderation) for chunk in chunks) == 1


def test_documentation_names_every_guarded_route_and_header():
    """docs/api.md has each route, header and error code."""
    text = (Path(__file__).parents[3] / "docs" / "api.md").read_text()
    names = [*ROUTES, "x-guardrail-decision", "x-guardrail-policy", "x-guardrail-event-id"]
    names += ["content_filter", "invalid_moderation", "guard_not_ready", "not_evaluated", "unscored"]
    names += [code for _, code, _ in _REFUSED.values()] + [MAX_BODY, BODY_TIMEOUT, METRICS_KEY, *OPEN]
    assert [name for name in names if f"`{name}`" not in text] == []


async def test_there_is_no_way_around_to_beam_search(serve):
    """SageMaker's route hands its body to the guarded ones: it refuses beams too, and leaves everything else alone."""
    received = []

    async def app(engine, scope, receive, send):
        received.append((await receive())["body"])
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"{}"})

    server = await serve(app)
    status, _, body = await server.post(b'{"messages": [], "use_beam_search": true}', path="/invocations")
    assert (status, json.loads(body)["error"]["param"]) == (400, "use_beam_search")
    assert received == []
    assert await server.post(b'{"messages": []}', path="/invocations") == (200, {}, b"{}")
    assert received == [b'{"messages": []}']


async def test_errors_on_the_messages_route_are_anthropic_s(serve):
    """Its clients read `type: error`, and know the error's type."""
    server = await serve(chat)
    status, _, body = await server.post(b'{"moderation": {"mode": "off"}}', "/v1/messages")
    content = json.loads(body)
    assert (status, content["type"], content["error"]["type"]) == (400, "error", "invalid_request_error")
    assert content["error"]["code"] == "invalid_moderation"


async def test_a_refusal_in_a_responses_history_reaches_vllm_as_text(serve):
    """VLLM fails on the part that a blocked response has.

    The rest of the body stays; other bodies stay byte for byte.
    """
    received = []

    async def app(engine, scope, receive, send):
        received.append((await receive())["body"])

    server = await serve(app)
    for part in ({"type": "refusal", "refusal": "No."}, {"type": "output_text", "text": "refusal"}):
        body = json.dumps({"model": "m", "input": [{"role": "assistant", "content": [part]}]}, indent=1).encode()
        scope = {"type": "http", "method": "POST", "path": "/v1/responses", "headers": []}
        await server.call(scope, {"type": "http.request", "body": body})
    changed, same = received
    assert json.loads(changed)["input"][0]["content"] == [{"type": "output_text", "text": "No.", "annotations": []}]
    assert same == body


@pytest.mark.parametrize("forced", [False, True])
async def test_forced_usage_is_in_a_blocked_stream(unstarted, forced):
    """`--enable-force-include-usage` holds for refusals as for answers."""
    server = unstarted(chat)
    server.state.args.enable_force_include_usage = forced
    await server.start()
    server.engine.scores = [3.0]
    _, _, body = await server.post(b'{"stream": true}')
    assert (b'"usage"' in body) is forced


@pytest.mark.parametrize("method", ["GET", "HEAD"])
async def test_readiness_is_told(unstarted, method):
    """503 before the self-test has passed, 200 after it, whatever the mount point."""
    server = unstarted(echo)
    assert (await server.post(b"", "/guard/ready", method=method))[0] == 503
    await server.start()
    status, headers, _ = await server.post(b"", "/api/guard/ready", method=method, root_path="/api")
    assert (status, headers["cache-control"]) == (200, "no-store")
