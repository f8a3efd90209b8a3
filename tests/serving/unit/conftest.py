"""A guarded API server without its engine: real middleware, real verdict reader, a stand-in for what the gate sends."""

import warnings
from types import MappingProxyType, SimpleNamespace

with warnings.catch_warnings():
    # vLLM's own imports warn (torch.jit); only here, and before any test module imports it.
    warnings.simplefilter("ignore")
    import vllm.outputs
    import vllm.sampling_params
    import vllm.utils.torch_utils
    from vllm.entrypoints.generate.beam_search.online import BeamSearchOnlineMixin

import pytest
import torch
from prometheus_client import CollectorRegistry

from probes.artifact import BENIGN_SCORES, HARMFUL_SCORES, Artifact
from probes.fingerprint import Fingerprint
from probes.manifest import Manifest, Probe
from serving import wire
from serving.api.middleware import GuardMiddleware
from serving.config import GuardConfig
from serving.wire import EXTRA, PROMPT, STOP_BLOCKED, VERDICT, stop_reason

POLICY = """\
name: test
version: "1"
rules:
  - {name: harmful, action: block, when: {harm: {above: 2}}}
  - {name: doubtful, action: flag, when: {harm: {above: 1}}}
callers:
  - name: red-team
    key_sha256: 41539b8bdbd1ab7dac909470e2cf95a87d348e9f6db58a2c0572aceda702ad83
    may_shadow: true
    sees_scores: true
"""


GATE_BLOCKED = object()
"""In place of the gate's signal, which has the prompt's name in it."""


def completion(index=0, text="hello", *, blocked=False):
    """One completion as vLLM hands it over."""
    reason = ("stop", GATE_BLOCKED) if blocked else ("length", None)
    return vllm.outputs.CompletionOutput(
        index,
        "" if blocked else text,
        [] if blocked else [1],
        None,
        None,
        finish_reason=reason[0],
        stop_reason=reason[1],
    )


def output(*completions, verdict=None, finished=True, request_id="chatcmpl-1", **kv):
    """One output of vLLM's engine client; a verdict rides in `kv_transfer_params`, until it has arrived."""
    params = {**kv, **({EXTRA: {VERDICT: verdict.to_wire()}} if verdict else {})}
    return vllm.outputs.RequestOutput(
        request_id, "prompt", [1, 2, 3], None, list(completions), finished, kv_transfer_params=params or None
    )


class Processor:
    """VLLM's output processor, as far as the guard knows it: the engine's outputs arrive here."""

    def process_outputs(self, outputs):
        """Make something of them."""

    def arrive(self, item, params):
        """Let the engine's output arrive that vLLM makes `item` of."""
        name = (params.extra_args or {}).get(EXTRA, {}).get(PROMPT)
        if carried := (item.kv_transfer_params or {}).get(EXTRA):
            carried[PROMPT] = name
        for each in item.outputs:
            if each.stop_reason is GATE_BLOCKED:
                each.stop_reason = stop_reason(STOP_BLOCKED, name)
        arriving = SimpleNamespace(kv_transfer_params=item.kv_transfer_params)
        self.process_outputs([arriving])
        item.kv_transfer_params = arriving.kv_transfer_params
        return item


class Engine:
    """Answers as vLLM with the gate in it does: the verdict comes with each completion's first output."""

    def __init__(self, bound, adapters=MappingProxyType({})):
        self.output_processor = Processor()
        self.model_config = SimpleNamespace(get_vocab_size=lambda: 100)
        self.scores = [0.0]
        self.asked = []
        self._bound = {None: bound, **adapters}

    async def is_sleeping(self):
        """It is awake."""
        return False

    async def collective_rpc(self, method):
        """Every rank agrees."""
        assert method == "foreguard_require_agreement"

    async def generate(self, prompt, params, request_id, **options):
        """Yield the outputs of `params.n` completions."""
        asked = (params.extra_args or {}).get(EXTRA, {})
        self.asked.append({name: word for name, word in asked.items() if name not in (PROMPT, wire.POLICY)})
        adapter = options.get("lora_request")
        bound = self._bound[adapter.lora_name if adapter else None]
        verdict = bound.judge(self.scores, tighten=bool(asked.get("tighten")), shadow=bool(asked.get("shadow")))
        for index in range(params.n or 1):
            if verdict.action == "block":
                item = output(completion(index, blocked=True), verdict=verdict, request_id=request_id)
                yield self.output_processor.arrive(item, params)
            else:
                item = output(completion(index, "hel"), verdict=verdict, finished=False, request_id=request_id)
                yield self.output_processor.arrive(item, params)
                yield output(completion(index, "lo"), request_id=request_id)


@pytest.fixture(autouse=True)
def beams(monkeypatch):
    """VLLM's beam search is back after each test."""
    monkeypatch.setattr(BeamSearchOnlineMixin, "beam_search", BeamSearchOnlineMixin.beam_search)


@pytest.fixture
def policy_text():
    """The policy that servers of these tests run, to which a test may add a section."""
    return POLICY


@pytest.fixture
def artifact(tmp_path):
    """A folder with an artifact of one probe, `harm`."""
    digests = dict.fromkeys(("config", "weights", "tokenizer", "chat_template"), "")
    fingerprint = Fingerprint(architecture="A", num_layers=1, hidden_size=2, dtype="float32", **digests)
    scores = {BENIGN_SCORES: torch.zeros(4, 1), HARMFUL_SCORES: torch.ones(3, 1)}
    probes = (Probe(name="harm", method="m", layers=(0,)),)
    manifest = Manifest(name="a", created="", fingerprint=fingerprint, probes=probes)
    Artifact(manifest, {"probe.harm.weight": torch.ones(1, 1, 2), **scores}).save(tmp_path / "artifact")
    return tmp_path / "artifact"


@pytest.fixture
def registry(monkeypatch):
    """A registry in place of the process's own, which takes each metric only once."""
    registry = CollectorRegistry()
    monkeypatch.setattr("serving.api.assembly.REGISTRY", registry)
    return registry


@pytest.fixture
def config(artifact, tmp_path):
    """A maker of the guard's configuration for a policy text."""

    def make(policy=POLICY):
        (tmp_path / "policy.yaml").write_text(policy)
        digest = Artifact.load(artifact).manifest.digest
        return GuardConfig(artifact=artifact, artifact_digest=digest, policy=tmp_path / "policy.yaml")

    return make


class Server:
    """The middleware around an inline app, with vLLM's application state."""

    def __init__(self, app, config):
        self.config = config
        policies = config.bind_policies(config.load_artifacts()).base
        names = list(policies.adapters)
        self.engine = Engine(policies.model, policies.adapters)
        self.state = SimpleNamespace(
            vllm_config=SimpleNamespace(additional_config=config.to_vllm()),
            engine_client=self.engine,
            openai_serving_models=SimpleNamespace(
                base_model_paths=[SimpleNamespace(name="served-model")],
                lora_requests={name: SimpleNamespace(lora_name=name) for name in names},
            ),
            args=SimpleNamespace(api_key=None, lora_modules=None),
        )
        self.middleware = GuardMiddleware(self._with_lifespan(app))

    def _with_lifespan(self, app):
        async def answer(scope, receive, send):
            if scope["type"] == "lifespan":
                await send({"type": "lifespan.startup.complete"})
            else:
                await app(self.engine, scope, receive, send)

        return answer

    async def start(self):
        """Run the start-up; return the messages that the server would hear."""
        return await self.call({"type": "lifespan", "app": SimpleNamespace(state=self.state)})

    async def call(self, scope, *incoming):
        """Send one connection's messages; return what was sent back."""
        pending, sent = iter(incoming), []

        async def receive():
            return next(pending, {"type": "http.disconnect"})

        async def send(message):
            sent.append(message)

        await self.middleware(scope, receive, send)
        return sent

    async def post(self, body, path="/v1/chat/completions", headers=(), chunks=None, **scope):
        """Post a body, in chunks if so asked; return (status, headers, body)."""
        parts = chunks or [body]
        incoming = [
            {"type": "http.request", "body": part, "more_body": i < len(parts) - 1} for i, part in enumerate(parts)
        ]
        scope = {"type": "http", "method": "POST", "path": path, "headers": list(headers), **scope}
        return summed(await self.call(scope, *incoming))


def summed(sent):
    """(status, headers, body) of an answer that must be well formed."""
    start, *bodies = sent
    assert start["type"] == "http.response.start"
    assert [bool(message.get("more_body")) for message in bodies] == [True] * (len(bodies) - 1) + [False]
    body = b"".join(message.get("body", b"") for message in bodies)
    names = [name.lower() for name, _ in start["headers"]]
    assert len(names) == len(set(names)), "a header was sent twice"
    headers = {name.decode().lower(): value.decode() for name, value in start["headers"]}
    if "content-length" in headers:
        assert int(headers["content-length"]) == len(body)
    return start["status"], headers, body


@pytest.fixture
def serve(config, registry):
    """A maker of started servers around an inline app `(engine, scope, receive, send)`."""

    async def make(app, policy=POLICY):
        server = Server(app, config(policy))
        assert [message["type"] for message in await server.start()] == ["lifespan.startup.complete"]
        return server

    return make


@pytest.fixture
def outputs():
    """Makers of vLLM's output objects, `outputs.one(...)`, `outputs.completion(...)`, and of what they arrive at."""
    return SimpleNamespace(one=output, completion=completion, processor=Processor)


@pytest.fixture
def unstarted(config, registry):
    """A maker of servers that have not been started."""
    return lambda app, policy=POLICY, **changes: Server(app, config(policy).model_copy(update=changes))
