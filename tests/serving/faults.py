"""Faults to start a server with: each is a way in which a guard could be off without anyone noticing."""

from typing import Any

from serving.engine.gate import GuardedScheduler
from serving.engine.wire import SCORES
from serving.engine.worker import GuardedWorker


class SilentTap(GuardedWorker):
    """A worker whose taps are gone from the model, as if a graph compiled without them had been loaded."""

    def load_model(self, **options: Any) -> None:
        super().load_model(**options)
        for module in self.model_runner.get_model().modules():
            if hasattr(module, "foreguard_matrix"):
                module._forward_hooks.clear()


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
