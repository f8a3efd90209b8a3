"""Assembling the guard in an API process: from what vLLM's server is, to the parts that answer its requests.

It touches, of vLLM's application state: `args`, `vllm_config`, `engine_client`, `openai_serving_models`.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

from prometheus_client import REGISTRY

from guard.decision_log import DecisionLog
from guard.drift.exposition import DriftMetrics
from guard.journal import Journal, Sink
from guard.metrics import GuardMetrics
from guard.rollout import InForce, PolicyFile, Rollout
from guard.store.packages import require_packages
from guard.watched_file import WatchedFile
from probes.artifact import Artifact
from probes.errors import ServingError
from serving.api.beams import refuse_beams
from serving.api.drift_watch import DriftWatch
from serving.api.guarded_requests import ASGIApp, GuardedRequests
from serving.api.kept_prompts import KeptPrompts
from serving.api.keys import Keys
from serving.api.policy_reload import PolicyReload
from serving.api.readiness import Readiness
from serving.api.request_body import Limits
from serving.api.selftest import Expected, ask_engines, canary, engines
from serving.api.typed_tokens import typed_spellings
from serving.api.verdict_reader import VerdictReader
from serving.checked import require_files
from serving.config import GuardConfig
from serving.policy_fit import require_guarded_adapters, require_readable_answers, require_templates
from serving.settings import body_timeout, max_body, ready_age, state_folder
from serving.store_settings import settings_path, store_settings

if TYPE_CHECKING:
    from serving.api.decision_store import DecisionStore

logger = logging.getLogger("vllm.foreguard.middleware")


class Beside(Protocol):
    """What runs beside the requests."""

    def begin(self) -> None:
        """Begin."""
        ...

    async def end(self) -> None:
        """End, and leave nothing running."""
        ...


@dataclass(frozen=True, slots=True)
class Parts:
    """The guard of one API process."""

    keys: Keys
    requests: GuardedRequests
    readiness: Readiness
    beside: tuple[Beside, ...]

    async def end(self) -> None:
        """End what runs beside the requests."""
        for each in self.beside:
            await each.end()


async def assemble(app: ASGIApp, state: Any) -> Parts:
    """Test the guard, and return its parts, begun; `app` is what they guard. Raises `ForeguardError`."""
    config = GuardConfig.from_vllm(state.vllm_config.additional_config)
    artifacts = config.load_artifacts()
    rollout, client = config.bind_policies(artifacts), state.engine_client
    expected, in_force = _expected(artifacts, rollout, state), InForce(rollout)
    keys, limits, age = Keys.of(state.args), Limits(max_body(), body_timeout()), ready_age()
    refuse_beams()
    verdict = await canary(client, expected, rollout.digest)
    require_files()
    metrics = GuardMetrics(REGISTRY, rollout)
    model = state.openai_serving_models.base_model_paths[0].name
    ask = partial(ask_engines, client, client.generate, expected[:1])
    readiness = Readiness(partial(_ask_awake, client, ask, in_force), metrics, age)
    # A client's prompt says nothing of the engines that it did not go to.
    on_scored = readiness.note_scored if len(engines(client)) == 1 else lambda: None
    drift = DriftWatch(in_force, artifacts, DriftMetrics(REGISTRY), state_folder())
    store = _store(model)
    sinks: list[Sink] = [metrics, DecisionLog(model), drift, *([store.sink] if store else [])]
    journal = Journal(*sinks, on_drop=metrics.observe_unrecorded)
    VerdictReader(in_force, journal, on_scored, _keeper(store, client)).attach(client)
    bind = partial(_bound, config, artifacts, state)
    reload = PolicyReload(WatchedFile(config.policy), in_force, metrics, bind, ask, state_folder())
    forces_usage = bool(getattr(state.args, "enable_force_include_usage", False))
    spellings = typed_spellings(artifacts)
    requests = GuardedRequests(app, in_force, model, limits, spellings=spellings, forces_usage=forces_usage)
    parts = Parts(keys, requests, readiness, (reload, drift, readiness, *([store] if store else [])))
    for each in parts.beside:
        each.begin()
    policy = rollout.base.policy
    logger.info("guard ready: policy %s, mode %s, canary scores %s", policy.label, policy.mode, verdict.scores)
    return parts


def _store(model: str) -> "DecisionStore | None":
    """Return the decision store, if decisions are stored. Its packages are asked for only then."""
    settings, path = store_settings(), settings_path()
    if settings is None or path is None:
        return None
    require_packages()
    from serving.api.decision_store import DecisionStore

    return DecisionStore(settings, model, REGISTRY, path)


def _keeper(store: "DecisionStore | None", client: Any) -> KeptPrompts | None:
    """Return what keeps prompts, if any are kept."""
    keep = store.keep if store else None
    return None if keep is None else KeptPrompts(keep, client.get_tokenizer())


def _expected(artifacts: Sequence[Artifact], rollout: Rollout, state: Any) -> list[Expected]:
    """Return what the model and then each adapter must answer to the canary prompt."""
    models = state.openai_serving_models
    subjects = [None, *(models.lora_requests[name] for name in rollout.base.adapters)]
    return [Expected.of(each, own) for each, own in zip(artifacts, subjects, strict=True)]


async def _ask_awake(engine_client: Any, ask: Any, in_force: InForce) -> None:
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
