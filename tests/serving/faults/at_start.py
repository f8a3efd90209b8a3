"""Faults to start a server with: each is a way in which a guard could be off without anyone noticing."""

from typing import Any

from serving.core.gate import GuardedScheduler
from serving.wire import SCORES
from serving.worker.worker import GuardedWorker


class SilentTap(GuardedWorker):
    """A worker whose taps are gone from the model, as if a graph compiled without them had been loaded."""

    def load_model(self, **options: Any) -> None:
        super().load_model(**options)
        for module in self.model_runner.get_model().modules():
            if hasattr(module, "foreguard_matrix"):
                module._forward_hooks.clear()


class FlickeringTap(GuardedWorker):
    """A worker whose taps miss every batch that is full, as if only the graph for that size had been made without
    them.
    """

    def execute_model(self, scheduler_output: Any) -> Any:
        full = scheduler_output.total_num_scheduled_tokens == self.vllm_config.scheduler_config.max_num_batched_tokens
        tapped = [m for m in self.model_runner.get_model().modules() if full and hasattr(m, "foreguard_matrix")]
        hooks = [module._forward_hooks.copy() for module in tapped]
        for module in tapped:
            module._forward_hooks.clear()
        output = super().execute_model(scheduler_output)
        for module, kept in zip(tapped, hooks, strict=True):
            module._forward_hooks.update(kept)
        return output


class OtherNumbers(GuardedWorker):
    """A worker one of whose norms holds other numbers than its file. Of a matrix a CPU's kernel keeps a copy."""

    def load_model(self, **options: Any) -> None:
        super().load_model(**options)
        next(p for name, p in self.model_runner.get_model().named_parameters() if "layernorm" in name).data.mul_(2)


class DisagreeingRank(GuardedWorker):
    """A worker that reads something else of the stream than the others, on the second rank only.

    What ranks read of their neurons is added up, so that it would be wrong on all of them.
    """

    def load_model(self, **options: Any) -> None:
        super().load_model(**options)
        if self.rank == 1:
            for module in self.model_runner.get_model().modules():
                if hasattr(module, "foreguard_matrix") and not hasattr(module, "weight"):
                    module.foreguard_matrix.mul_(1.5)


class SilentRank(SilentTap):
    """A worker whose taps are gone from the model on the second rank only."""

    def load_model(self, **options: Any) -> None:
        if self.rank == 1:
            super().load_model(**options)
        else:
            GuardedWorker.load_model(self, **options)


class LostScores(GuardedWorker):
    """A worker whose scores never reach the scheduler."""

    def sample_tokens(self, grammar_output: Any) -> Any:
        output = super().sample_tokens(grammar_output)
        if hasattr(output, SCORES):
            delattr(output, SCORES)
        return output


class LostVerdict(GuardedScheduler):
    """A scheduler whose verdicts never reach the API server."""

    def update_from_output(self, *args: Any, **kwargs: Any) -> Any:
        outputs = super().update_from_output(*args, **kwargs)
        for client in outputs.values():
            for output in client.outputs:
                output.kv_transfer_params = None
        return outputs
