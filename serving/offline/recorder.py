"""The recorder: vLLM's worker, whose taps keep the residual stream itself instead of its product with probes.

The same hook on the same blocks, before anything is compiled, and the same op as the sensor's: what is kept is the
float32 sum `hidden + residual` that a probe's matrix would be multiplied by, under whatever quantisation and
compilation serves.

It overrides, of `vllm/v1/worker/gpu_worker.py`: `load_model`, `execute_model`; and reads, of the V1 model runner,
`requests` and `input_batch` (`req_ids`, `num_computed_tokens_cpu`, `num_prompt_tokens`).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn
from vllm.platforms import current_platform
from vllm.v1.core.sched.output import SchedulerOutput

from probes.errors import ModelError
from serving.guarded_settings import require_guarded_config
from serving.wire import EXTRA
from serving.worker.decoder import Decoder, DryRun, find_decoder
from serving.worker.dry_run import dry_run_of
from serving.worker.resolved_config import require_own_files
from serving.worker.tap import silence, silent, write

if current_platform.is_cpu():
    from vllm.v1.worker.cpu_worker import CPUWorker as PlatformWorker
else:
    from vllm.v1.worker.gpu_worker import Worker as PlatformWorker


@dataclass(frozen=True, slots=True)
class Streams:
    """What the taps wrote in the last forward pass."""

    values: torch.Tensor
    """float32 `[max_tokens, L * D]`, block after block."""
    marks: torch.Tensor
    """A view on the first value of every block, float32 `[max_tokens, L]`: silenced before each pass."""


def tap_streams(model: nn.Module, num_layers: int, hidden_size: int, max_tokens: int, dry_run: DryRun) -> Streams:
    """Tap every decoder block of `model`. Raises `ModelError` where they cannot be found."""
    device = next(model.parameters()).device
    values = torch.zeros(max_tokens, num_layers * hidden_size, device=device)
    streams = Streams(values, values[:, ::hidden_size])
    decoder = find_decoder(model, num_layers, dry_run)
    for layer in range(num_layers):
        _keep_stream(decoder, streams, layer, layer * hidden_size)
    return streams


def _keep_stream(decoder: Decoder, streams: Streams, layer: int, first: int) -> None:
    block = decoder.blocks[layer]
    block.register_buffer("foreguard_streams", streams.values, persistent=False)

    def keep(module: Any, _args: Any, output: Any) -> None:
        hidden, residual = decoder.parts(output)
        stream = hidden if residual is None else hidden + residual
        write(stream.float(), module.foreguard_streams, first)

    block.register_forward_hook(keep)


class Gathered:
    """The streams of N prompts at the places that were asked for, gathered step by step."""

    def __init__(
        self,
        num_prompts: int,
        where: Sequence[int | str],
        content: Sequence[Sequence[int]],
        num_layers: int,
        hidden_size: int,
    ) -> None:
        """Make room. `content` are the positions that place `content` is the mean of, for each prompt."""
        self._where = tuple(where)
        self._content = [torch.tensor(positions) for positions in content]
        self._shape = (num_layers, hidden_size)
        self._places = {place: torch.full((num_prompts, *self._shape), torch.nan) for place in self._where}
        self._sums = torch.zeros(num_prompts, num_layers * hidden_size, dtype=torch.float64)

    def add(self, row: int, before: int, length: int, streams: torch.Tensor) -> None:
        """Take in `streams` `[n, L * D]` of prompt `row` of `length` tokens, whose first `before` came earlier."""
        end = before + len(streams)
        for place in self._where:
            # As readouts have it: a prompt shorter than the place is read at its first token.
            position = max(length - 1 - place, 0) if isinstance(place, int) else -1
            if before <= position < end:
                self._places[place][row] = streams[position - before].cpu().view(self._shape)
        if "content" in self._where:
            positions = self._content[row]
            own = positions[(before <= positions) & (positions < end)] - before
            self._sums[row] += streams[own.to(streams.device)].sum(0, dtype=torch.float64).cpu()
            if end >= length:
                self._places["content"][row] = (self._sums[row] / len(positions)).float().view(self._shape)

    def tensors(self) -> dict[str, torch.Tensor]:
        """Return `<place>.<layer>` `[N, D]`, float32; a prompt that was not read whole is NaN."""
        return {
            f"{place}.{layer}": values[:, layer].contiguous()
            for place, values in self._places.items()
            for layer in range(self._shape[0])
        }


class RecordingWorker(PlatformWorker):
    """A worker whose model is tapped, and which gathers the streams of the prompts that pass through it."""

    foreguard_streams: Streams
    foreguard_gathered: Gathered | None

    def load_model(self, **options: Any) -> None:
        """Load the weights and tap the model, before anything is compiled."""
        config = self.vllm_config
        require_guarded_config(config)
        require_own_files(config)
        super().load_model(**options)
        self.foreguard_size = (
            config.model_config.get_total_num_hidden_layers(),
            config.model_config.get_hidden_size(),
        )
        self.foreguard_streams = tap_streams(
            self.model_runner.get_model(),
            *self.foreguard_size,
            config.scheduler_config.max_num_batched_tokens,
            dry_run_of(self.model_runner, is_v2=self.use_v2_model_runner),
        )
        self.foreguard_gathered = None

    def foreguard_begin(self, num_prompts: int, where: list[int | str], content: list[list[int]]) -> None:
        """Make room for `num_prompts` prompts, which say in their `extra_args` which row they are."""
        self.foreguard_gathered = Gathered(num_prompts, where, content, *self.foreguard_size)

    def foreguard_write(self, path: str) -> None:
        """Write what was gathered to the safetensors file `path`, by the first worker alone: all hold the same."""
        if self.rank == 0 and self.foreguard_gathered is not None:
            save_file(self.foreguard_gathered.tensors(), path)
        self.foreguard_gathered = None

    def execute_model(self, scheduler_output: SchedulerOutput) -> Any:
        """Run the model, and take the streams while the batch is still laid out as it ran."""
        silence(self.foreguard_streams.marks)
        output = super().execute_model(scheduler_output)
        if self.foreguard_gathered is not None and scheduler_output.total_num_scheduled_tokens:
            self._gather(scheduler_output, self.foreguard_gathered)
        return output

    def _gather(self, step: SchedulerOutput, gathered: Gathered) -> None:
        if bool(silent(self.foreguard_streams.marks[: step.total_num_scheduled_tokens]).any()):
            raise ModelError(
                "a tap stayed silent: the graph that ran is not the tapped one",
                field="engine",
                remedy="remove vLLM's compile cache, or record with --enforce-eager",
            )
        for row, before, length, own in self._prompt_rows(step):
            gathered.add(row, before, length, self.foreguard_streams.values[own])

    def _prompt_rows(self, step: SchedulerOutput) -> Iterator[tuple[int, int, int, slice]]:
        """Yield each prompt of the batch as it ran: its row, tokens before and in all, and where its tokens lie."""
        batch = self.model_runner.input_batch
        start = 0
        for index, request in enumerate(batch.req_ids):
            end = start + step.num_scheduled_tokens[request]
            row = self.model_runner.requests[request].sampling_params.extra_args[EXTRA]["row"]
            before, length = int(batch.num_computed_tokens_cpu[index]), int(batch.num_prompt_tokens[index])
            if before < length:
                yield row, before, length, slice(start, min(end, start + length - before))
            start = end
