"""The guard's ASGI middleware in vLLM's API server. Named by `--middleware`.

At start-up it holds the port shut until the self-test has passed. Then it lets in who may ask, whatever the route.
Health checks need no key; scores and thresholds on `/metrics` need one of their own.

It touches, of vLLM's application state: `args`, `vllm_config`, `engine_client`, `openai_serving_models`.
"""

import logging
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Any

from prometheus_client import REGISTRY
from starlette.responses import JSONResponse

from guard.decision_log import DecisionLog
from guard.journal import Journal
from guard.metrics import GuardMetrics
from guard.rollout import InForce, PolicyFile, Rollout
from guard.watched_file import WatchedFile
from probes.artifact import Artifact
from probes.errors import ForeguardError, ServingError
from serving.api import readiness, shapes
from serving.api.beams import refuse_beams
from serving.api.guarded_requests import ASGIApp, GuardedRequests, Scope
from serving.api.keys import Keys
from serving.api.placement import placed_inside
from serving.api.policy_reload import PolicyReload
from serving.api.public_metrics import public_metrics
from serving.api.readiness import Readiness
from serving.api.request_body import Limits, Message, Receive
from serving.api.responder import Send
from serving.api.routes import METRICS, OPEN, ROUTES, has_control_characters, known_path
from serving.api.selftest import Expected, ask_engines, canary, engines
from serving.api.typed_tokens import typed_spellings
from serving.api.verdict_reader import VerdictReader
from serving.checked import require_files
from serving.config import GuardConfig
from serving.policy_fit import require_guarded_adapters, require_readable_answers, require_templates
from serving.settings import body_timeout, max_body, ready_age, state_folder

logger = logging.getLogger("vllm.foreguard.middleware")


class GuardMiddleware:
    """The guard's place in the API server: around it all while it starts and stops, and next to the routes
    otherwise.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._guard = _Guard()
        self.app = placed_inside(app, self._guard)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one connection."""
        if scope["type"] != "lifespan":
            await self.app(scope, receive, send)
            return
        try:
            await self.app(scope, receive, self._opening(scope, send))
        finally:
            await self._guard.stop()

    def _opening(self, scope: Scope, send: Send) -> Send:
        async def open_when_tested(message: Message) -> None:
            if message["type"] == "lifespan.startup.complete":
                try:
                    self._guard.require_reached()
                    await self._start(scope["app"].state)
                except ForeguardError as error:
                    logger.exception("the guard does not work; refusing to serve")
                    message = {"type": "lifespan.startup.failed", "message": str(error)}
            await send(message)

        return open_when_tested

    async def _start(self, state: Any) -> None:
        await self._guard.start(state)


class _Guard:
    """The innermost middleware. `app` is what it guards."""

    app: ASGIApp

    def __init__(self) -> None:
        self._requests: GuardedRequests | None = None
        self._keys = Keys((), None)
        self._readiness: Readiness | None = None
        self._reload: PolicyReload | None = None
        self._is_reached = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one connection."""
        self._is_reached = True
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
        elif has_control_characters(scope):
            await JSONResponse({"detail": "Not Found"}, 404)(scope, receive, send)
        else:
            await self._answer(known_path(scope), scope, receive, send)

    async def _answer(self, path: str | None, scope: Scope, receive: Receive, send: Send) -> None:
        headers, keys = scope["headers"], self._keys
        if path == readiness.PATH:
            await self._tell_readiness(scope, receive, send)
        elif path in OPEN:
            await self.app(scope, receive, send)
        elif self._requests is None:
            await _not_ready(path)(scope, receive, send)
        elif not (keys.may_read_metrics(headers) if path == METRICS else keys.may_ask(headers)):
            await JSONResponse({"error": "Unauthorized"}, 401)(scope, receive, send)
        elif path != METRICS:
            await self._requests.answer(path, scope, receive, send)
        elif keys.may_read_scores(headers):
            await self.app(scope, receive, send)
        else:
            await public_metrics(scope, receive, send)

    def require_reached(self) -> None:
        """Raise `ServingError` if the start-up did not come by here: requests would not either."""
        if not self._is_reached:
            raise ServingError(
                "another middleware does not pass requests on to the `app` that it keeps",
                field="--middleware",
                remedy="leave that middleware out, or let it call self.app",
            )

    async def start(self, state: Any) -> None:
        """Test the guard, then begin. Raises `ForeguardError` where it does not work."""
        config = GuardConfig.from_vllm(state.vllm_config.additional_config)
        artifacts, models = config.load_artifacts(), state.openai_serving_models
        rollout = config.bind_policies(artifacts)
        in_force = InForce(rollout)
        subjects = [None, *(models.lora_requests[name] for name in rollout.base.adapters)]
        expected = [Expected.of(each, own) for each, own in zip(artifacts, subjects, strict=True)]
        self._keys, limits = Keys.of(state.args), Limits(max_body(), body_timeout())
        age, client = ready_age(), state.engine_client
        refuse_beams()
        verdict = await canary(client, expected, rollout.digest)
        require_files()
        metrics = GuardMetrics(REGISTRY, rollout)
        model = models.base_model_paths[0].name
        ask = partial(ask_engines, client, client.generate, expected[:1])
        self._readiness = Readiness(partial(_asked_awake, client, ask, in_force), metrics, age)
        # A client's prompt says nothing of the engines that it did not go to.
        on_scored = self._readiness.note_scored if len(engines(client)) == 1 else lambda: None
        journal = Journal(metrics, DecisionLog(model), on_drop=metrics.observe_unrecorded)
        VerdictReader(in_force, journal, on_scored).attach(client)
        self._readiness.begin()
        bind = partial(_bound, config, artifacts, state)
        self._reload = PolicyReload(WatchedFile(config.policy), in_force, metrics, bind, ask, state_folder())
        self._reload.begin()
        forces_usage = bool(getattr(state.args, "enable_force_include_usage", False))
        self._requests = GuardedRequests(
            self.app, in_force, model, limits, spellings=typed_spellings(artifacts), forces_usage=forces_usage
        )
        policy = rollout.base.policy
        logger.info("guard ready: policy %s, mode %s, canary scores %s", policy.label, policy.mode, verdict.scores)

    async def stop(self) -> None:
        """End what runs beside the requests."""
        for each in (self._reload, self._readiness):
            if each is not None:
                await each.end()

    async def _tell_readiness(self, scope: Scope, receive: Receive, send: Send) -> None:
        unready = (503, {"ready": False, "reason": "the guard has not passed its self-test"})
        status, body = unready if self._readiness is None else self._readiness.report()
        await JSONResponse(body, status, {"cache-control": "no-store"})(scope, receive, send)


async def _asked_awake(engine_client: Any, ask: Callable[[str], Awaitable[object]], in_force: InForce) -> None:
    """Ask every engine with a canary prompt. Raises `ServingError` if one does not see it, or sleeps."""
    if await engine_client.is_sleeping():
        raise ServingError("the engine sleeps", field="/sleep", remedy="wake it up")
    await ask(in_force.current.digest)


def _bound(config: GuardConfig, artifacts: Sequence[Artifact], state: Any, file: PolicyFile) -> Rollout:
    """Bind a policy file that was read later. Raises `ForeguardError` where it does not fit what is served."""
    served = [module.name for module in state.args.lora_modules or ()]
    for policy in (file.policy, *file.variants.values()):
        require_templates(policy, artifacts)
        require_guarded_adapters(policy, served, [each.name for each in config.adapters])
        require_readable_answers(policy, state.vllm_config)
    return config.bind(file, artifacts)


def _not_ready(path: str | None) -> JSONResponse:
    error = ROUTES[path].error if path in ROUTES else shapes.error
    return JSONResponse(error("The guard is not ready.", "guard_not_ready", None), 503)
