"""vLLM's worker, with the sensor in its model.

Named by `--worker-cls`: a class that cannot be imported stops the server. It overrides, of
`vllm/v1/worker/gpu_worker.py`: `load_model`, `determine_available_memory`, `initialize_from_config`, `execute_model`,
`sample_tokens`, `discard` and `sleep`, and `reload_weights`, `reset_weights`, `start_weight_update` and
`update_weights`, which it refuses; and calls `get_kv_cache_spec`.
"""

from collections.abc import Sequence
from typing import Any

from vllm.platforms import current_platform
from vllm.v1.core.sched.output import SchedulerOutput
from vllm.v1.kv_cache_interface import KVCacheConfig

from probes.artifact import Artifact
from probes.errors import ModelError
from probes.scoring import ProbeBank
from probes.steering import SteeringBank
from serving.config import GuardConfig
from serving.guarded_settings import require_guarded_config
from serving.wire import NO_ORDERS, ORDERS
from serving.worker.dry_run import dry_run_of
from serving.worker.guarded_pass import GuardedPass
from serving.worker.pending_scores import Reading, with_scores
from serving.worker.pipeline_stages import relay
from serving.worker.resolved_config import require_calibrated
from serving.worker.runner_v1 import attach_v1
from serving.worker.runner_v2 import attach_v2
from serving.worker.sensor import install

if current_platform.is_cpu():
    from vllm.v1.worker.cpu_worker import CPUWorker as PlatformWorker
else:
    from vllm.v1.worker.gpu_worker import Worker as PlatformWorker


class GuardedWorker(PlatformWorker):
    """A worker whose model is tapped and whose outputs carry scores."""

    foreguard: GuardedPass
    foreguard_read: Sequence[Reading]

    def load_model(self, **options: Any) -> None:
        """Load the weights and tap the model, before anything is compiled."""
        self.foreguard_require_settings()
        artifacts = GuardConfig.from_vllm(self.vllm_config.additional_config).load_artifacts()
        self.foreguard_require_calibrated(artifacts)
        super().load_model(**options)
        (probes, subjects), steering = ProbeBank.side_by_side(artifacts), SteeringBank.side_by_side(artifacts)
        sensor = install(
            self.model_runner.get_model(),
            self.vllm_config.model_config.get_total_num_hidden_layers(),
            self.vllm_config.scheduler_config.max_num_batched_tokens,
            probes,
            steering,
            dry_run_of(self.model_runner, is_v2=self.use_v2_model_runner),
        )
        watched = [
            probes.channel(f"{subject}.{watch.probe}")
            for subject, artifact in enumerate(artifacts)
            for watch in artifact.manifest.watches
        ]
        self.foreguard = GuardedPass(sensor, probes, steering, subjects, watched)
        self.foreguard_read = ()
        attach = attach_v2 if self.use_v2_model_runner else attach_v1
        attach(self.model_runner, self.foreguard)
        if self.vllm_config.parallel_config.pipeline_parallel_size > 1:
            relay(self.model_runner, self.foreguard)

    def determine_available_memory(self) -> int:
        """Return what of the memory that vLLM found free its KV cache may have: the scores beside it need some.

        A size that somebody gave is the cache's own, and the scores come on top.
        """
        given = self.cache_config.kv_cache_memory_bytes is not None
        available = int(super().determine_available_memory())
        return available if given else self.foreguard.room_for_cache(available, self.get_kv_cache_spec().values())

    def foreguard_require_settings(self) -> None:
        """Raise `ServingError` unless vLLM is set up in a way that is guarded."""
        require_guarded_config(self.vllm_config)

    def foreguard_require_calibrated(self, artifacts: Sequence[Artifact]) -> None:
        """Raise `ArtifactMismatch` unless vLLM is about to load what the artifacts were calibrated on."""
        for artifact in artifacts:
            require_calibrated(self.vllm_config, artifact.manifest.fingerprint)

    def initialize_from_config(self, kv_cache_config: KVCacheConfig) -> None:
        """Allocate the KV cache, and the scores beside it."""
        super().initialize_from_config(kv_cache_config)
        self.foreguard.allocate(kv_cache_config)

    def execute_model(self, scheduler_output: SchedulerOutput) -> Any:
        """Run the model, and take the scores while the batch is still laid out as it ran."""
        orders = getattr(scheduler_output, ORDERS, NO_ORDERS)
        self.foreguard.begin(scheduler_output.total_num_scheduled_tokens, orders)
        output = super().execute_model(scheduler_output)
        self.foreguard_read = self.foreguard.collect()
        return output

    def sample_tokens(self, grammar_output: Any) -> Any:
        """Sample, and send the scores along with the tokens."""
        output = super().sample_tokens(grammar_output)
        readings, self.foreguard_read = self.foreguard_read, ()
        return with_scores(output, readings)

    def foreguard_require_agreement(self) -> None:
        """Raise `ModelError` unless this rank read in its last pass what the rank that reports read.

        For the self-test.
        """
        self.foreguard.require_agreement()

    def sleep(self, level: int = 1) -> None:
        """Sleep, upon which no KV-cache slot holds what it held.

        Refuses level 2, which discards the weights as well.
        """
        if level > 1:
            raise _other_weights()
        super().sleep(level)
        self.foreguard.forget_all()

    def discard(self, tags: tuple[str, ...]) -> None:
        """Give the KV cache's memory back, and forget the scores beside it."""
        super().discard(tags)
        self.foreguard.forget_all()

    def reload_weights(self, *_args: Any, **_options: Any) -> None:
        """Refuse: the artifact was made from the weights that the server started with."""
        raise _other_weights()

    def reset_weights(self) -> None:
        """Refuse likewise."""
        raise _other_weights()

    def start_weight_update(self, *_args: Any, **_options: Any) -> None:
        """Refuse likewise."""
        raise _other_weights()

    def update_weights(self, *_args: Any, **_options: Any) -> None:
        """Refuse likewise."""
        raise _other_weights()


def _other_weights() -> ModelError:
    return ModelError(
        "the weights of a guarded model do not change while it is served: its probes were calibrated on these",
        field="weights",
        remedy="calibrate the new weights, and start a server with them and their artifact",
    )
