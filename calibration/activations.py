"""Activations: what the residual stream held after every block, read once per prompt and kept on disk.

Shards are written whole, one after another, so an interrupted run goes on where it stopped and ends with the same
bytes, and memory holds one shard however many prompts there are. Positions count from the prompt's end, as in readouts.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

from calibration.batching import Batch, make_batch, plan_batches
from calibration.model import ChatModel
from calibration.progress import track
from calibration.structure import stream_of
from calibration.template import EncodedPrompts
from probes.errors import CalibrationError, ModelError

Where = int | Literal["mean"]
"""Tokens before the prompt's last one, or the mean over all the prompt's tokens."""

_SHARD_BYTES = 128 << 20
_BATCH_TOKENS, _BATCH_PROMPTS = 4096, 64


@contextmanager
def read_blocks(
    chat: ChatModel, layers: Sequence[int], keep: Callable[[torch.Tensor], torch.Tensor]
) -> Iterator[dict[int, torch.Tensor]]:
    """Fill the dictionary, at each pass, with `keep(resid_post [B, T, D])` by layer. Hooks are gone at exit."""
    kept: dict[int, torch.Tensor] = {}

    def hook_for(layer: int) -> Callable[..., None]:
        def hook(_block: Any, _args: Any, output: Any) -> None:
            stream = stream_of(output)
            if stream is None:
                raise ModelError(
                    f"block {layer} gave no tensor", field="model", remedy="use a decoder-only language model"
                )
            kept[layer] = keep(stream)

        return hook

    handles = [chat.blocks[layer].register_forward_hook(hook_for(layer)) for layer in layers]
    try:
        yield kept
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def read_neurons(
    projections: Mapping[int, nn.Module], keep: Callable[[torch.Tensor], torch.Tensor]
) -> Iterator[dict[int, torch.Tensor]]:
    """Fill the dictionary, at each pass, with `keep(mlp_neurons)` by layer, from blocks' down-projections by layer.

    Neurons come as `[B, T, W]`, or from a few models as `[B * T, W]`. Hooks are gone at exit.
    """
    kept: dict[int, torch.Tensor] = {}

    def hook_for(layer: int) -> Callable[..., None]:
        def hook(_projection: Any, args: tuple[torch.Tensor, ...]) -> None:
            kept[layer] = keep(args[0])

        return hook

    handles = [module.register_forward_pre_hook(hook_for(layer)) for layer, module in projections.items()]
    try:
        yield kept
    finally:
        for handle in handles:
            handle.remove()


@dataclass(frozen=True, slots=True)
class Recording:
    """Recorded activations of N prompts, on disk."""

    shards: tuple[Path, ...]
    num_prompts: int

    def features(self, layer: int, where: Where) -> npt.NDArray[np.float32]:
        """Return `resid_post` of block `layer` at `where` for every prompt, float32 `[N, D]`, in the prompts' order."""
        result: npt.NDArray[np.float32] | None = None
        for path in self.shards:
            with safe_open(path, framework="pt") as shard:
                values = shard.get_tensor(f"{where}.{layer}").float().numpy()
                rows = shard.get_tensor("rows").numpy()
            if result is None:
                result = np.empty((self.num_prompts, values.shape[1]), dtype=np.float32)
            result[rows] = values
        if result is None:
            raise CalibrationError("nothing was recorded", field="prompts", remedy="give at least one prompt")
        return result


def record(
    chat: ChatModel,
    prompts: EncodedPrompts,
    where: Sequence[Where],
    folder: Path,
    *,
    title: str = "reading activations",
) -> Recording:
    """Read every block at the positions `where` of every prompt into shards in `folder`; finished shards are reused.

    `folder` must be named for the model, the prompts and the positions, so that what lies there is of this run.
    Raises `CalibrationError` naming the prompt and the layer where an activation is NaN or infinite.
    """
    folder.mkdir(parents=True, exist_ok=True)
    shards = _plan_shards(chat, prompts, where)
    paths = [folder / f"{index:05d}.safetensors" for index in range(len(shards))]
    missing = [(batches, path) for batches, path in zip(shards, paths, strict=True) if not path.exists()]
    for batches, path in track(missing, title):
        _save_whole(_read_shard(chat, prompts, where, batches), path)
    return Recording(tuple(paths), len(prompts.prompts))


def _plan_shards(chat: ChatModel, prompts: EncodedPrompts, where: Sequence[Where]) -> list[list[list[int]]]:
    per_prompt = 4 * chat.num_layers * chat.hidden_size * len(where)
    limit = max(_SHARD_BYTES // per_prompt, 1)
    shards: list[list[list[int]]] = []
    for rows in plan_batches(
        prompts.lengths.tolist(), max_tokens=_BATCH_TOKENS, max_prompts=min(_BATCH_PROMPTS, limit)
    ):
        if not shards or sum(map(len, shards[-1])) + len(rows) > limit:
            shards.append([])
        shards[-1].append(rows)
    return shards


def _read_shard(
    chat: ChatModel, prompts: EncodedPrompts, where: Sequence[Where], batches: list[list[int]]
) -> dict[str, torch.Tensor]:
    parts: dict[str, list[torch.Tensor]] = {
        f"{place}.{layer}": [] for place in where for layer in range(chat.num_layers)
    }
    for rows in batches:
        batch = make_batch(prompts.token_ids, rows, chat.device)
        for layer, values in _read_batch(chat, batch, where).items():
            _require_finite(values, prompts, rows, layer)
            for index, place in enumerate(where):
                # A mean keeps float32; a stored token keeps the model's own precision, which loses nothing.
                exact = (
                    values[:, index] if place == "mean" else values[:, index].to(next(chat.model.parameters()).dtype)
                )
                parts[f"{place}.{layer}"].append(exact.cpu())
    tensors = {name: torch.cat(chunks) for name, chunks in parts.items()}
    return tensors | {"rows": torch.tensor([row for rows in batches for row in rows])}


def _read_batch(chat: ChatModel, batch: Batch, where: Sequence[Where]) -> dict[int, torch.Tensor]:
    def keep(stream: torch.Tensor) -> torch.Tensor:
        index = torch.arange(len(batch.lengths), device=stream.device)
        places = [
            _mean(stream, batch) if place == "mean" else stream[index, batch.from_end(place)].float() for place in where
        ]
        return torch.stack(places, dim=1)

    with read_blocks(chat, range(chat.num_layers), keep) as streams:
        chat.last_logits(batch)
    return streams


def _mean(stream: torch.Tensor, batch: Batch) -> torch.Tensor:
    weights = (batch.mask / batch.lengths[:, None]).unsqueeze(1)
    return torch.bmm(weights.float(), stream.float()).squeeze(1)


def _require_finite(values: torch.Tensor, prompts: EncodedPrompts, rows: Sequence[int], layer: int) -> None:
    finite = torch.isfinite(values).flatten(1).all(dim=1)
    if not finite.all():
        prompt = prompts.prompts[rows[int(finite.long().argmin())]]
        raise CalibrationError(
            f"the activations after block {layer} are NaN or infinite",
            field=f"prompt {prompt.id}",
            remedy="load the model in the precision it was trained in (float16 overflows where bfloat16 does not)",
        )


def _save_whole(tensors: dict[str, torch.Tensor], path: Path) -> None:
    staging = path.with_suffix(".partial")
    save_file(tensors, staging)
    staging.replace(path)
