"""Pipeline parallelism: what the taps of one stage read travels on with the hidden states, to the stage that samples.

It touches, of `vllm/v1/worker/gpu_worker.py`: that hidden states arrive in and leave `model_runner.execute_model`
(wrapped) as `IntermediateTensors`, whose entries vLLM sends between stages whatever their names.
"""

from typing import Any

from vllm.sequence import IntermediateTensors
from vllm.v1.core.sched.output import SchedulerOutput

from serving.wire import STREAM_PARTS
from serving.worker.guarded_pass import GuardedPass


def relay(runner: Any, guard: GuardedPass) -> None:
    """Let `guard` send along what it read on this stage, and receive what earlier ones read."""
    execute = runner.execute_model

    def execute_and_relay(
        step: SchedulerOutput, intermediate_tensors: IntermediateTensors | None = None, *args: Any, **options: Any
    ) -> Any:
        # Taken out before the runner sees it: the V1 runner has a buffer for every entry that it expects, and no other.
        received = intermediate_tensors.tensors.pop(STREAM_PARTS, None) if intermediate_tensors is not None else None
        if received is not None:
            guard.receive(received)
        output = execute(step, intermediate_tensors, *args, **options)
        if isinstance(output, IntermediateTensors):
            output.tensors[STREAM_PARTS] = guard.send()
        return output

    runner.execute_model = execute_and_relay
