"""The engines' own process: `python -m benchmarks.cost.stepper SPECS`. SPECS is JSON: by engine, its `_Spec`'s options.

Reads batches as JSON lines, `[by engine [[[token id, ...], max tokens, what is asked of the guard], ...], how many are
under way at once, 0 for all]`. All engines named do their batches in lockstep: every turn each makes one step, in an
order that chance gives. Answers, by engine, the seconds of its steps, apart for `prefill` steps (some request of the
batch has no token yet) and `decode` steps, and the `actions` of its guard, counted.
"""

import json
import os
import random
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import IO, Any

MAX_MODEL_LEN = 8448
_KV_CACHE_BYTES = 300 * 2**20
_ROOM = 2**14
"""Values on the interpreter's stack: the piece that holds them is twice as large."""


@dataclass(frozen=True, slots=True)
class _Spec:
    """How one engine is started."""

    model: str
    worker: str
    eager: bool = False
    files: Sequence[str] = ()
    """The artifact, and the policy."""


_Request = tuple[str, Sequence[int], int, Mapping[str, Any]]
"""Its name, its prompt, how many tokens out, and what is asked of the guard."""


@dataclass(slots=True)
class _Batch:
    """The batch that an engine is at work on."""

    llm: Any
    to_come: Iterator[_Request]
    waiting: set[str] = field(default_factory=set)
    steps: dict[str, list[float]] = field(default_factory=lambda: {"prefill": [], "decode": []})
    actions: Counter[str] = field(default_factory=Counter)

    def step(self) -> None:
        """Make one step, and note how long it took."""
        kind = "prefill" if self.waiting else "decode"
        began = time.perf_counter()
        outputs = self.llm.step()
        self.steps[kind].append(time.perf_counter() - began)
        self.waiting -= {output.request_id for output in outputs}
        self.actions.update(action for output in outputs if (action := _action(output)))
        self.add(sum(output.finished for output in outputs))

    def add(self, count: int | None) -> None:
        """Let so many of the requests to come arrive, or all of them."""
        from vllm import SamplingParams

        from serving.wire import EXTRA

        for name, prompt, max_tokens, asks in islice(self.to_come, count):
            extra = {EXTRA: dict(asks)} if asks else None
            params = SamplingParams(max_tokens=max_tokens, temperature=0, ignore_eos=True, extra_args=extra)
            self.llm.add_request(name, {"prompt_token_ids": prompt}, params)
            self.waiting.add(name)


def _serve_batches(batches: IO[str], answers: IO[str], specs: Mapping[str, _Spec]) -> None:
    engines = {name: _engine(spec) for name, spec in specs.items()}
    chance = random.Random(0)  # noqa: S311 - orders the engines, guards nothing
    print(json.dumps(list(engines)), file=answers, flush=True)
    for number, line in enumerate(batches):
        asked, at_once = json.loads(line)
        begun = {name: _begin(engines[name], number, each, at_once or None) for name, each in asked.items()}
        found = _in_lockstep(begun, chance)
        print(json.dumps(found), file=answers, flush=True)


def _with_room() -> None:
    """Serve, from a frame so large that all calls under it fit into the same piece of the interpreter's stack.

    CPython takes its stack from the system in pieces of 16 KiB and gives a piece back as soon as a call returns from it
    (`push_chunk` and `_PyThreadState_PopFrame` in its Python/pystate.c). A call that is made for every layer and
    happens to begin a piece costs 25 µs each time, and one frame more or less decides for which engine it does.
    """
    pipe = os.fdopen(os.dup(1), "w")
    # Everything that prints goes to the log; the answers have the pipe to themselves.
    os.dup2(2, 1)
    _serve_batches(sys.stdin, pipe, {name: _Spec(**options) for name, options in json.loads(sys.argv[1]).items()})


_with_room.__code__ = _with_room.__code__.replace(co_stacksize=_ROOM)


def _engine(spec: _Spec) -> Any:
    from vllm.engine.arg_utils import EngineArgs
    from vllm.v1.engine.llm_engine import LLMEngine

    options: dict[str, Any] = {
        "model": spec.model,
        "max_model_len": MAX_MODEL_LEN,
        # Longer prompts than a subject was trained on take as long as any of their length.
        "hf_overrides": {"max_position_embeddings": MAX_MODEL_LEN},
        "max_num_seqs": 128,
        "max_num_batched_tokens": 2048,
        "kv_cache_memory_bytes": _KV_CACHE_BYTES,
        "seed": 0,
        "worker_cls": spec.worker,
        "enforce_eager": spec.eager,
    }
    if spec.files:
        from probes.artifact import Artifact
        from serving.config import GuardConfig

        artifact, policy = (Path(file).resolve() for file in spec.files)
        digest = Artifact.load(artifact).manifest.digest
        options["additional_config"] = GuardConfig(artifact=artifact, artifact_digest=digest, policy=policy).to_vllm()
    if spec.worker.endswith(".Guarded"):
        from serving.launch.server import SCHEDULER

        options["scheduler_cls"] = SCHEDULER
    return LLMEngine.from_engine_args(EngineArgs(**options))


def _begin(
    llm: Any, number: int, requests: Sequence[tuple[Sequence[int], int, Mapping[str, Any]]], at_once: int | None
) -> _Batch:
    batch = _Batch(llm, iter([(f"{number}-{place}", *request) for place, request in enumerate(requests)]))
    batch.add(at_once)
    return batch


def _in_lockstep(batches: Mapping[str, _Batch], chance: random.Random) -> dict[str, dict[str, Any]]:
    while under_way := [batch for batch in batches.values() if batch.llm.has_unfinished_requests()]:
        for batch in chance.sample(under_way, len(under_way)):
            batch.step()
    return {name: {**batch.steps, "actions": batch.actions} for name, batch in batches.items()}


def _action(output: Any) -> str | None:
    from serving.wire import EXTRA, VERDICT

    carried = (output.kv_transfer_params or {}).get(EXTRA)
    return str(carried[VERDICT]["action"]) if carried else None


if __name__ == "__main__":
    _with_room()
