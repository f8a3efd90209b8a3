"""vLLM's worker, with the sensor in its model. Named by `--worker-cls`: a class that cannot be imported stops the server.

It overrides, of `vllm/v1/worker/gpu_worker.py`: `load_model`, `initialize_from_config`, `execute_model`, `sample_tokens`.
"""

from typing import Any

import torch
from vllm.platforms import current_platform
from vllm.v1.core.sched.output import SchedulerOutput
from vllm.v1.kv_cache_interface import KVCacheConfig

from probes.errors import ArtifactMismatch
from probes.scoring import ProbeBank
from probes.steering import SteeringBank
from serving.config import GuardConfig
from serving.engine.dry_run import dry_run_of
from serving.engine.runner_v1 import RequestScores, RunnerV1
from serving.engine.sensor import install
from serving.engine.wire import SCORES

if current_platform.is_cpu():
    from vllm.v1.worker.cpu_worker import CPUWorker as PlatformWorker
else:
    from vllm.v1.worker.gpu_worker import Worker as PlatformWorker


class GuardedWorker(PlatformWorker):
    """A worker whose model is tapped and whose outputs carry scores."""

    foreguard: RunnerV1
    foreguard_scores: RequestScores

    def load_model(self, **options: Any) -> None:
        """Load the weights and tap the model, before anything is compiled."""
        super().load_model(**options)
        artifact = GuardConfig.from_vllm(self.vllm_config.additional_config).load_artifact()
        _require_precision(artifact.manifest.fingerprint.dtype, self.vllm_config.model_config.dtype)
        probes, steering = ProbeBank.from_artifact(artifact), SteeringBank.from_artifact(artifact)
        sensor = install(
            self.model_runner.get_model(),
            self.vllm_config.model_config.get_total_num_hidden_layers(),
            self.vllm_config.scheduler_config.max_num_batched_tokens,
            probes,
            steering,
            dry_run_of(self.model_runner),
        )
        self.foreguard = RunnerV1(self.model_runner, sensor, probes, steering)
        self.foreguard_scores = {}

    def initialize_from_config(self, kv_cache_config: KVCacheConfig) -> None:
        """Allocate the KV cache, and the scores beside it."""
        super().initialize_from_config(kv_cache_config)
        self.foreguard.allocate(kv_cache_config)

    def execute_model(self, scheduler_output: SchedulerOutput) -> Any:
        """Run the model, and take the scores while the batch is still laid out as it ran."""
        self.foreguard.begin(scheduler_output)
        output = super().execute_model(scheduler_output)
        self.foreguard_scores = self.foreguard.collect(scheduler_output)
        return output

    def sample_tokens(self, grammar_output: Any) -> Any:
        """Sample, and send the scores along with the tokens."""
        output = super().sample_tokens(grammar_output)
        if self.foreguard_scores:
            setattr(output, SCORES, self.foreguard_scores)
            self.foreguard_scores = {}
        return output


def _require_precision(calibrated: str, served: torch.dtype) -> None:
    """Raise `ArtifactMismatch` unless the model is served in the precision that it was calibrated in."""
    name = str(served).removeprefix("torch.")
    if name != calibrated:
        raise ArtifactMismatch(
            f"the artifact was calibrated in {calibrated}, the model is served in {name}",
            field="fingerprint.dtype",
            remedy=f"add `-- --dtype {calibrated}`, or calibrate in {name}",
        )
