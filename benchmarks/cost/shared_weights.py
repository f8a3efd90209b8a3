"""Workers of several engines in one process, of which those of one model compute with one copy of its weights.

Where a process happens to find memory for its weights makes it 1 to 4 % slower or faster than its twin, which is more
than a guard may cost. Engines that share the weights differ in nothing but the guard.

It touches, of `vllm/v1/worker/cpu_worker.py`: `load_model`; of vLLM's linear layers on a CPU: `cpu_linear`, which holds
the weights in the layout of their kernel.
"""

from collections.abc import Sequence
from typing import Any

from torch import nn
from vllm.v1.worker.cpu_worker import CPUWorker

from probes.artifact import Artifact
from serving.worker.worker import GuardedWorker

_FIRST: dict[str, nn.Module] = {}


class Unguarded(CPUWorker):  # type: ignore[misc]  # vLLM's classes are Any
    """vLLM's worker."""

    def load_model(self, **options: Any) -> None:
        """Load the weights, or take those that are there: before anything is compiled."""
        super().load_model(**options)
        share(self.model_runner.get_model(), self.vllm_config.model_config.model)


class Guarded(GuardedWorker):
    """The guard's worker, of a model that no artifact was calibrated on."""

    def foreguard_require_calibrated(self, artifacts: Sequence[Artifact]) -> None:
        """Take any: subjects are measured with longer contexts than their files say."""

    def load_model(self, **options: Any) -> None:
        """Load the weights, or take those that are there: before anything is compiled."""
        super().load_model(**options)
        share(self.model_runner.get_model(), self.vllm_config.model_config.model)


def share(model: nn.Module, name: str) -> None:
    """Let `model` compute with the weights of the first model of that `name`, dropping its own.

    Raises `RuntimeError` where the two are not the same model.
    """
    first = _FIRST.setdefault(name, model)
    weights, modules = dict(first.named_parameters()), dict(first.named_modules())
    for path, weight in model.named_parameters():
        if path not in weights or weights[path].shape != weight.shape:
            raise RuntimeError(f"{name}: {path} is not a weight of the first model of that name")
        weight.data = weights[path].data
    for path, module in model.named_modules():
        if "cpu_linear" in vars(module):
            module.cpu_linear = modules[path].cpu_linear
