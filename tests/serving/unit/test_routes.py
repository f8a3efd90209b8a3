"""Around vLLM's own application: which route a path leads to, and which routes answer whom."""

import asyncio
import json
from types import SimpleNamespace

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, Counter
from starlette.routing import Match
from vllm.entrypoints.generate.beam_search.online import BeamSearchOnlineMixin
from vllm.entrypoints.launchers.app import build_app
from vllm.entrypoints.launchers.cli_args import make_arg_parser
from vllm.utils.argparse_utils import FlexibleArgumentParser

from serving.api.middleware import GuardMiddleware
from serving.api.routes import METRICS, OPEN, ROUTES, has_control_characters, known_path
from serving.settings import METRICS_KEY
from tests.serving.unit.conftest import Engine

ASK, READ = "a-key-to-ask-with", "a-key-to-read-with"
TASKS = ("generate", "transcription", "translation", "realtime", "render")
PUBLIC = {*OPEN, "/guard/ready"}


def built(*flags, tasks=("generate",)):
    """VLLM's application with the guard in it."""
    parser = make_arg_parser(FlexibleArgumentParser())
    return build_app(parser.parse_args(["--middleware", "serving.api.middleware.GuardMiddleware", *flags]), tasks)


APP = built(tasks=TASKS)


@pytest.fixture
def started(config, registry, monkeypatch):
    """A maker of vLLM's application with a guard that has passed its self-test, and an engine that only says that."""
    monkeypatch.setenv(METRICS_KEY, READ)
    vllm = CollectorRegistry()
    Counter("vllm:tokens", "Something of vLLM's.", registry=vllm).inc(3)
    both = SimpleNamespace(collect=lambda: [*vllm.collect(), *registry.collect()])
    monkeypatch.setattr("serving.api.public_metrics.get_prometheus_registry", lambda: both)

    async def make(*flags, tasks=("generate",)):
        app, made = built(*flags, tasks=tasks), config()
        app.state.vllm_config = SimpleNamespace(additional_config=made.to_vllm())
        app.state.engine_client = Engine(made.bind_policy(made.load_artifact()))
        app.state.openai_serving_models = SimpleNamespace(base_model_paths=[SimpleNamespace(name="m")])
        app.middleware_stack = app.build_middleware_stack()
        guard = app.middleware_stack
        while not isinstance(guard, GuardMiddleware):
            guard = guard.app
        await guard._start(app.state)
        return app

    return make


async def ask(app, method, path, key=None, **options):
    """Ask the application."""
    transport = httpx.ASGITransport(app=app, raise_app_exceptions=False)
    headers = {"authorization": f"Bearer {key}"} if key else {}
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        return await client.request(method, path, headers=headers, **options)


def routed(path, root_path=""):
    """The path of the route, as vLLM wrote it, that its own router takes this path to."""
    scope = {"type": "http", "method": "POST", "path": path, "root_path": root_path, "headers": []}
    found = [(route.matches(scope)[0], route.path) for route in APP.routes]
    return next((path for match in (Match.FULL, Match.PARTIAL) for each, path in found if each is match), None)


WRITTEN = [route.path for route in APP.routes] + ["/guard/ready", "/metricsfoo"]
spellings = st.sampled_from(["", "/", "//", "\n", "%0A", " ", ".", "?", ";", "\u2028", "\u00e9", "/..", "\x00", "A"])


@given(path=st.sampled_from(WRITTEN), before=spellings, behind=spellings, root=st.sampled_from(["", "/api", "/v1"]))
def test_a_path_leads_where_vllm_s_router_takes_it(path, before, behind, root):
    """However it is spelt: a route that the guard knows is known to be that one, and no other path is taken for it."""
    for spelt in (f"{root}{before}{path}{behind}", f"{path}{before}{behind}", path.replace("/", f"/{before}")):
        scope = {"type": "http", "path": spelt, "root_path": root}
        if has_control_characters(scope):
            continue  # answered before
        theirs = routed(spelt, root)
        theirs = METRICS if theirs == "/metrics" else theirs
        known = known_path(scope)
        assert known == (theirs if theirs in (*ROUTES, *OPEN, METRICS) else None) or known == "/guard/ready"


def test_the_table_is_of_routes_that_vllm_has():
    """Every path that the guard knows is one of vLLM's, but for its own."""
    assert {*ROUTES, *OPEN, "/metrics"} <= {route.path for route in APP.routes}


def reachable():
    """Every method and path of vLLM's, parameters filled in."""
    for route in APP.routes:
        path = route.path.replace("{response_id}", "resp_1")
        for method in getattr(route, "methods", None) or ["GET"]:
            if path != "/v1/realtime":
                yield method, path


@pytest.mark.parametrize("variable", [False, True])
async def test_with_a_key_every_route_is_closed_but_health(started, monkeypatch, variable):
    """Found in vLLM's application, not in a list of ours: what is new is closed. The metrics key opens nothing else."""
    monkeypatch.setenv("VLLM_API_KEY", ASK if variable else "")
    app = await started(*([] if variable else ["--api-key", ASK]), tasks=TASKS)
    asked = set()
    for method, path in reachable():
        asked.add(path)
        for key in (None, "wrong", READ):
            reply = await ask(app, method, path, key)
            closed = path not in PUBLIC and not (path == "/metrics" and key == READ)
            assert (reply.status_code == 401) is closed, (method, path, key)
    assert {"/invocations", "/generative_scoring", "/tokenize", "/detokenize", "/scale_elastic_ep"} <= asked
    assert {"/openapi.json", "/docs", "/kv_event_sources", "/load", "/version", "/metrics"} <= asked
    assert (await ask(app, "GET", "/guard/ready")).status_code == 200


@pytest.mark.parametrize("path", ["/version", "/openapi.json", "/docs", "/v1/chat/completions", "/generative_scoring"])
async def test_the_key_opens_what_it_closed(started, path):
    """The route itself answers."""
    app = await started("--api-key", "another", "--api-key", ASK)
    assert (await ask(app, "GET", path, ASK)).status_code in (200, 405)


async def test_without_a_key_nothing_is_closed(started):
    """As vLLM has it: the operator has chosen."""
    app = await started()
    assert (await ask(app, "GET", "/version")).status_code == 200


async def test_who_has_no_key_is_not_read_anywhere(started):
    """Not one byte of the body, also on routes that vLLM leaves open."""
    app = await started("--api-key", ASK)
    taken = []

    async def body():
        taken.append(1)
        yield b"{}"

    for path in ("/invocations", "/tokenize", "/v1/chat/completions", "/nowhere"):
        assert (await ask(app, "POST", path, "wrong", content=body())).status_code == 401
    assert taken == []


PATHS = ["/metrics", "/metrics/", "/metrics/x", "/metricsfoo", "/metrics?name[]=foreguard_score_count"]


@pytest.mark.parametrize("accept", ["*/*", "application/openmetrics-text", "text/plain; version=0.0.4"])
@pytest.mark.parametrize("path", PATHS)
async def test_metrics_tell_scores_to_the_key_alone(started, path, accept):
    """Under every path that vLLM takes for its metrics, in every format and compressed: by the key, not by the
    spelling.
    """
    app = await started()
    headers = {"accept": accept, "accept-encoding": "gzip"}
    transport = httpx.ASGITransport(app=app)
    async with httpx.AsyncClient(transport=transport, base_url="http://test", headers=headers) as client:
        public = await client.get(path)
        wrong = await client.get(path, headers={"authorization": "Bearer wrong"})
    assert public.status_code == 200
    for text in (public.text, wrong.text):
        assert "vllm:tokens_total 3.0" in text
        assert 'foreguard_requests_total{action="allow",mode="enforce"} 0.0' in text
        for told in ("foreguard_score", "foreguard_threshold", "foreguard_answer_tokens", "harmful", "doubtful"):
            assert told not in text


async def test_the_key_for_metrics_asks_vllm(started, monkeypatch):
    """VLLM's own route answers, and it has everything."""
    app, asked = await started("--api-key", ASK), []
    guard = app.middleware_stack
    while not hasattr(guard, "_parts"):
        guard = guard.app

    async def vllm(scope, receive, send):
        asked.append(scope["path"])
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body"})

    guard.app = vllm
    assert (await ask(app, "GET", "/metrics", READ)).status_code == 200
    assert (await ask(app, "GET", "/metrics", ASK)).status_code == 200
    assert asked == ["/metrics"]


async def test_beams_are_refused_where_they_are_made(started):
    """By whatever route and body they were asked for: vLLM's own method is an error, which vLLM answers with 400."""
    await started()
    with pytest.raises(ValueError, match="Beam search"):
        BeamSearchOnlineMixin.beam_search(SimpleNamespace(), {"type": "tokens"}, "id", None)
    assert "beam_search" not in {name for each in BeamSearchOnlineMixin.__subclasses__() for name in vars(each)}


async def test_an_error_of_a_beam_search_is_a_400(started):
    """The route that asks for one has no other way."""
    app = await started()

    async def create(*_):
        return BeamSearchOnlineMixin.beam_search(SimpleNamespace(), {}, "id", None)

    app.state.openai_serving_chat = SimpleNamespace(create_chat_completion=create)
    body = {"model": "m", "messages": [{"role": "user", "content": "hello"}]}
    reply = await ask(app, "POST", "/v1/chat/completions", json=body)
    assert reply.status_code == 400
    assert "Beam search" in json.dumps(reply.json())


async def test_requests_beside_each_other(started):
    """A client without a key holds nobody up."""
    app = await started("--api-key", ASK)

    async def endless():
        while True:
            yield b"x" * 1000
            await asyncio.sleep(0)

    replies = await asyncio.gather(
        ask(app, "POST", "/tokenize", content=endless()),
        ask(app, "GET", "/version", ASK),
        ask(app, "GET", "/guard/ready"),
    )
    assert [reply.status_code for reply in replies] == [401, 200, 200]
