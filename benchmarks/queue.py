"""`python -m benchmarks.queue`: what the guard takes of a step in vLLM's scheduler while requests wait.

vLLM's real scheduler, once bare and once with the gate in it, has the same requests in mid-answer and the same queue
behind them; what workers do is played. The two take their steps in random order, and a pair of steps is compared. The
guard's share must not depend on how many requests wait.
"""

import random
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from vllm.engine.arg_utils import EngineArgs
from vllm.sampling_params import SamplingParams
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.kv_cache_interface import FullAttentionSpec, KVCacheConfig, KVCacheGroupSpec
from vllm.v1.outputs import ModelRunnerOutput
from vllm.v1.request import Request

from benchmarks.cost.guards import guards
from benchmarks.cost.subjects import LAB
from benchmarks.document import write_between
from benchmarks.machine import machine
from benchmarks.paired import Spread, spread
from probes.artifact import Artifact
from serving.config import GuardConfig
from serving.core.gate import GuardedScheduler
from serving.wire import NO_ORDERS, ORDERS, SCORES

WAITING = (0, 1_000, 10_000, 50_000)
_MARKS = "<!-- queue: written by python -m benchmarks.queue -->", "<!-- end of queue -->"
_PROMPT, _ANSWER, _BLOCK = 16, 2032, 16
_WARM_UP, _QUICK = 20, 10


def main(
    running: Annotated[int, typer.Option(min=1, help="Requests in mid-answer.")] = 256,
    steps: Annotated[int, typer.Option(min=2, help="Pairs of steps for each length of the queue.")] = 200,
    document: Annotated[Path | None, typer.Option(help="Write the table into this document.")] = None,
    quick: Annotated[bool, typer.Option("--quick", help="A few steps and a short queue: proves nothing.")] = False,
) -> None:
    """Measure what a step costs in the scheduler, guarded and not, with up to 50,000 requests waiting."""
    console = Console()
    lines = [
        "| waiting | a step, unguarded | guarded | the guard's share |",
        "| --- | --- | --- | --- |",
    ]
    with tempfile.TemporaryDirectory() as folder:
        guard = _guard(Path(folder))
        for waiting in WAITING[: 2 if quick else None]:
            bare, guarded = compare(guard, running, waiting, _QUICK if quick else steps)
            share = spread([more - less for more, less in zip(guarded, bare, strict=True)])
            lines.append(f"| {waiting:,} | {_ms(spread(bare))} | {_ms(spread(guarded))} | {_ms(share)} |")
            console.print(lines[-1], highlight=False, soft_wrap=True)
    if document:
        about = f"{machine()}. Milliseconds, {running} requests in mid-answer, medians of {steps} pairs of steps."
        write_between(document, *_MARKS, "\n".join([about, "", *lines]))


def compare(guard: GuardConfig, running: int, waiting: int, steps: int) -> tuple[list[float], list[float]]:
    """Return each step's seconds, unguarded and guarded, with so many requests running and waiting."""
    arms = [Steps(Scheduler, None, running), Steps(GuardedScheduler, guard, running)]
    for arm in arms:
        arm.queue(waiting)
        for _ in range(_WARM_UP):
            arm.step()
    seconds: tuple[list[float], list[float]] = ([], [])
    chance = random.Random(0)  # noqa: S311 - orders the arms, guards nothing
    for _ in range(steps):
        for index in chance.sample(range(2), 2):
            seconds[index].append(arms[index].step())
    return seconds


class Steps:
    """A scheduler with requests in mid-answer, whose worker is played: every token is 1, and every score 0."""

    def __init__(self, scheduler: type[Any], guard: GuardConfig | None, running: int) -> None:
        config = EngineArgs(
            str(LAB), enforce_eager=True, max_model_len=_PROMPT + _ANSWER, max_num_seqs=running, **_NO_CACHE
        ).create_engine_config()
        blocks = running * (_PROMPT + _ANSWER) // _BLOCK + 1
        config.cache_config.num_gpu_blocks, config.cache_config.block_size = blocks, _BLOCK
        config.additional_config = guard.to_vllm() if guard else {}
        self._num_probes = len(guard.load_artifact().manifest.probes) if guard else 0
        spec = FullAttentionSpec(block_size=_BLOCK, num_kv_heads=1, head_size=8, dtype=torch.float32)
        self._scheduler = scheduler(
            vllm_config=config,
            kv_cache_config=KVCacheConfig(blocks, [], [KVCacheGroupSpec(["layer"], spec)]),
            structured_output_manager=SimpleNamespace(accept_tokens=lambda *_: True),
            block_size=_BLOCK,
        )
        self._names = (f"r{number}" for number in range(10**9))
        self.queue(running)
        while self._scheduler.waiting:
            self.step()

    def queue(self, count: int) -> None:
        """Let so many more requests arrive."""
        for name in self._some(count):
            params = SamplingParams(max_tokens=_ANSWER, ignore_eos=True)
            params.update_from_generation_config({}, 2)
            self._scheduler.add_request(Request(name, list(range(_PROMPT)), params, None))

    def step(self) -> float:
        """Take a step; return the seconds that the scheduler took."""
        began = time.perf_counter()
        step = self._scheduler.schedule()
        scheduled = time.perf_counter()
        output = self._played(step)
        played = time.perf_counter()
        self._scheduler.update_from_output(step, output)
        return time.perf_counter() - played + scheduled - began

    def _played(self, step: Any) -> ModelRunnerOutput:
        names = list(step.num_scheduled_tokens)
        output = ModelRunnerOutput(names, {name: place for place, name in enumerate(names)}, [[1] for _ in names])
        scores = [[0.0] * self._num_probes]
        setattr(output, SCORES, dict.fromkeys(getattr(step, ORDERS, NO_ORDERS).due, scores))
        return output

    def _some(self, count: int) -> Iterator[str]:
        return (next(self._names) for _ in range(count))


_NO_CACHE: dict[str, Any] = {"enable_prefix_caching": False, "gpu_memory_utilization": 0.1}


def _guard(folder: Path) -> GuardConfig:
    made = guards(LAB, folder)["guarded"]
    digest = Artifact.load(made.artifact).manifest.digest
    return GuardConfig(artifact=made.artifact, artifact_digest=digest, policy=made.policy)


def _ms(found: Spread) -> str:
    return f"{found.median * 1e3:.3f} ({found.low * 1e3:.3f} to {found.high * 1e3:.3f})"


if __name__ == "__main__":
    typer.run(main)
