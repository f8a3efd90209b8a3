"""What the guard's taps are compared with: forward hooks in eager mode, and a copy of all hidden states to the host.

Both are written as published plugins work, as little as will do, and stop at the scores: nothing decides, and nothing
acts.

They touch, of `vllm/v1/worker/gpu_model_runner.py`: `requests`; and, of the subjects' model, `model.layers`.
"""

from functools import partial
from typing import Any

import torch

from benchmarks.cost.shared_weights import Unguarded
from probes.scoring import ProbeBank, Tap
from serving.config import GuardConfig
from serving.worker.guarded_pass import Layout
from serving.worker.runner_v1 import attach_v1


class HookedWorker(Unguarded):
    """A worker with a hook on each block that is read: it scores the last rows of the prompts that a pass finishes."""

    def load_model(self, **options: Any) -> None:
        """Load the model and hook its blocks, which run as they are written: nothing may be compiled."""
        super().load_model(**options)
        artifact = GuardConfig.from_vllm(self.vllm_config.additional_config).load_artifact()
        self.bank = ProbeBank.from_artifact(artifact)
        self.scores: dict[str, Any] = {}
        self.step: Any = None
        self.ends: dict[str, int] = {}
        self.read: dict[Tap, torch.Tensor] = {}
        blocks = self.model_runner.get_model().model.layers
        for tap in self.bank.readings:
            blocks[tap.layer].register_forward_hook(partial(self._hook, tap))
        attach_v1(self.model_runner, self)

    def execute_model(self, scheduler_output: Any) -> Any:
        """Run the model, and score what the hooks read."""
        self.step, self.ends, self.read = scheduler_output, {}, {}
        output = super().execute_model(scheduler_output)
        if self.ends and self.read:
            self._score()
        return output

    def lay_out(self, layout: Layout) -> None:
        """Find the last row of each prompt that the pass finishes."""
        ending = []
        for name, scheduled in self.step.num_scheduled_tokens.items():
            request = self.model_runner.requests[name]
            if 0 < request.num_prompt_tokens - request.num_computed_tokens <= scheduled:
                ending.append(name)
        if ending:
            self.ends = dict(zip(ending, (layout.places(ending).stops - 1).tolist(), strict=True))

    def _hook(self, tap: Tap, _block: Any, _args: Any, output: Any) -> None:
        if self.ends:
            rows = list(self.ends.values())
            self.read[tap] = output[0][rows] + output[1][rows]

    def _score(self) -> None:
        scores = self.bank.token_scores(self.read)
        self.scores = dict(zip(self.ends, scores.tolist(), strict=True))


class CopyingWorker(HookedWorker):
    """A worker that copies every row of the blocks that are read to the host, and scores it there.

    On a CPU the copy is one from memory to memory; on a GPU it would wait for the device, too.
    """

    def _hook(self, tap: Tap, _block: Any, _args: Any, output: Any) -> None:
        self.read[tap] = (output[0] + output[1]).to("cpu", torch.float32, copy=True)

    def _score(self) -> None:
        scores = self.bank.token_scores(self.read)
        self.scores = {name: scores[row].tolist() for name, row in self.ends.items()}
