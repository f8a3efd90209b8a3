"""The decoder of a served model: which modules are its blocks, and how the residual stream enters and leaves them.

Both are found by structure, in two short forward passes over made-up tokens, and never by name. Most of vLLM's blocks
hand the stream on in two parts, which the next block adds up; some hand on the sum, and a few of those something else
beside it that looks like a second part and is not. So the next block is asked: a part is what changes its answer.

It touches, of vLLM: `AttentionLayerBase`, `PPMissingLayer`, and `do_not_compile` of the modules that vLLM compiles.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from vllm.model_executor.layers.attention_layer_base import AttentionLayerBase
from vllm.model_executor.models.utils import PPMissingLayer

from probes.errors import ModelError

DryRun = Callable[[], object]
"""One forward pass of the model over a few made-up tokens, without a KV cache."""

Entry = int | str
"""Which argument of a block the stream is: its place, or its name."""

_REMEDY = "serve a decoder-only language model; docs/compatibility.md lists those that were tried"
_NOTABLE = 1e-3


@dataclass(frozen=True, slots=True)
class Decoder:
    """A model's decoder blocks `[L]`."""

    blocks: nn.ModuleList
    is_split: bool
    """Whether the stream leaves a block in two parts, to be summed by whoever reads it."""

    def parts(self, output: Any) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Return a block's output as (hidden `[T, D]`, residual `[T, D]` or None): their sum is the stream."""
        if isinstance(output, torch.Tensor):
            return token_rows(output), None
        return token_rows(output[0]), token_rows(output[1]) if self.is_split else None


def token_rows(activations: torch.Tensor) -> torch.Tensor:
    """Return `[T, W]`, or `[1, T, W]` as the Transformers backend has it, as a view `[T, W]`."""
    return activations if activations.ndim == 2 else activations.view(-1, activations.shape[-1])


def find_decoder(model: nn.Module, num_layers: int, dry_run: DryRun) -> Decoder:
    """Return `model`'s decoder: the heaviest `ModuleList` of `num_layers` blocks that each give the stream once in a
    pass.

    Raises `ModelError` where there is none, or where the stream's parts cannot be told from something else.
    """
    lists: list[nn.ModuleList] = [
        module for module in model.modules() if isinstance(module, nn.ModuleList) and len(module) == num_layers
    ]
    if not lists:
        raise _no_decoder(model, f"has no list of {num_layers} decoder blocks")
    with _eagerly(model), _explained(model), torch.no_grad():
        ran = _times_ran([item for group in lists for item in group], dry_run)
        fitting = [group for group in lists if (own := on_this_stage(group)) and all(ran[item] == 1 for item in own)]
        if not fitting:
            raise _no_decoder(
                model, f"has no {num_layers} decoder blocks that each give hidden states [T, D] once in a pass"
            )
        blocks = max(fitting, key=lambda group: sum(parameter.numel() for parameter in group.parameters()))
        if len(on_this_stage(blocks)) < 2:
            raise _no_decoder(
                model, "has a pipeline stage of one decoder block: no next one tells how the stream leaves it"
            )
        reads = _second_part_is_read(model, blocks, dry_run)
    if len(set(reads)) > 1:
        raise _no_decoder(model, "has blocks that hand on the residual stream in different ways")
    return Decoder(blocks, is_split=any(reads))


def entry_of(model: nn.Module, decoder: Decoder, dry_run: DryRun) -> Entry:
    """Return where the first block takes the stream: the one argument that is like what leaves the block.

    Raises `ModelError` where it cannot be told from others. The first block must be on this pipeline stage.
    """
    entries: set[Entry] = set()

    def look(_block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        hidden = output if isinstance(output, torch.Tensor) else output[0]
        given: list[tuple[Entry, Any]] = [*enumerate(args), *kwargs.items()]
        entries.update(place for place, each in given if _is_like(each, hidden))

    with _eagerly(model), _explained(model), torch.no_grad(), ExitStack() as hooks:
        hooks.callback(decoder.blocks[0].register_forward_hook(look, with_kwargs=True).remove)
        dry_run()
    if len(entries) != 1:
        raise _no_decoder(model, "has a first block that takes more than one stream, or none")
    return entries.pop()


def _is_like(argument: Any, hidden: torch.Tensor) -> bool:
    return isinstance(argument, torch.Tensor) and argument.is_floating_point() and argument.shape == hidden.shape


def on_this_stage(blocks: nn.ModuleList) -> list[nn.Module]:
    """Return the blocks that this pipeline stage computes."""
    return [block for block in blocks if not isinstance(block, PPMissingLayer)]


def _times_ran(modules: Sequence[nn.Module], dry_run: DryRun) -> Counter[nn.Module]:
    """Return how often each module gave `[T, D]`, or `[1, T, D]`, in one pass."""
    ran: Counter[nn.Module] = Counter()

    def count(module: nn.Module, _args: Any, output: Any) -> None:
        first = output[0] if isinstance(output, tuple) and output else output
        shape = first.shape if isinstance(first, torch.Tensor) else ()
        ran[module] += len(shape) == 2 or (len(shape) == 3 and shape[0] == 1)

    with ExitStack() as hooks:
        for module in modules:
            hooks.callback(module.register_forward_hook(count).remove)
        dry_run()
    return ran


def _second_part_is_read(model: nn.Module, blocks: nn.ModuleList, dry_run: DryRun) -> list[bool]:
    """Return, for every block that follows another, whether its answer depends on the other's second output."""
    last_output: list[Any] = []
    reads: list[bool] = []

    def examine(block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if last_output:
            reads.append(_is_read(block, args, kwargs, last_output[0]))

    def remember(_block: nn.Module, _args: Any, output: Any) -> None:
        last_output[:] = [output]

    with ExitStack() as hooks:
        for module in model.modules():
            if isinstance(module, AttentionLayerBase):
                hooks.callback(module.register_forward_hook(_attend_to_nothing).remove)
        for block in on_this_stage(blocks):
            hooks.callback(block.register_forward_pre_hook(examine, with_kwargs=True).remove)
            hooks.callback(block.register_forward_hook(remember).remove)
        dry_run()
    return reads


def _is_read(block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], handed_on: Any) -> bool:
    """Return whether a block's answer depends on the second part of what the one before it handed on."""
    second, given = _second_part(handed_on), (*args, *kwargs.values())
    if second is None:
        return False
    if not any(each is second for each in given):
        if any(each is handed_on[0] for each in given):
            return False
        raise ModelError(
            "what a decoder block hands on is not what the next one is given: the residual stream cannot be told from "
            "it",
            field="model",
            remedy=_REMEDY,
        )
    plain, changed = (_answers(block, args, kwargs, second, instead) for instead in (second, 2 * second + 1))
    return any(_differ(one, other) for one, other in zip(plain, changed, strict=True))


def _second_part(output: Any) -> torch.Tensor | None:
    """Return what stands beside the hidden states and looks like them."""
    if not isinstance(output, tuple) or len(output) < 2:
        return None
    hidden, second = output[:2]
    return second if isinstance(second, torch.Tensor) and second.shape == hidden.shape else None


def _answers(
    block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], second: torch.Tensor, instead: torch.Tensor
) -> list[torch.Tensor]:
    """Return a block's outputs where it is given `instead` for `second`. Its arguments stay as they are."""

    def copied(argument: Any) -> Any:
        # Fused norms write where they read.
        taken = instead if argument is second else argument
        return taken.clone() if isinstance(taken, torch.Tensor) else taken

    output = block.forward(*map(copied, args), **{name: copied(value) for name, value in kwargs.items()})
    outputs = output if isinstance(output, tuple) else (output,)
    return [each for each in outputs if isinstance(each, torch.Tensor)]


def _differ(one: torch.Tensor, other: torch.Tensor) -> bool:
    scale = one.float().abs().max().clamp(min=torch.finfo(torch.float32).tiny)
    return bool((one.float() - other.float()).abs().max() > _NOTABLE * scale)


def _attend_to_nothing(_attention: nn.Module, args: Any, output: Any) -> Any:
    """Give zeros: without a KV cache attention leaves what the memory held, which differs from one call to the next."""
    if isinstance(output, torch.Tensor):
        return torch.zeros_like(output)
    for argument in args:
        if isinstance(argument, torch.Tensor):  # it writes into one of these
            argument.zero_()
    return output


@contextmanager
def _eagerly(model: nn.Module) -> Iterator[None]:
    """Keep vLLM from compiling: the graph must be traced with the taps in it."""
    compiled: list[Any] = [module for module in model.modules() if getattr(module, "do_not_compile", True) is False]
    for module in compiled:
        module.do_not_compile = True
    try:
        yield
    finally:
        for module in compiled:
            module.do_not_compile = False


@contextmanager
def _explained(model: nn.Module) -> Iterator[None]:
    """Say of whatever a dry run raises that it was one: vLLM does not make one of every model on every platform."""
    try:
        yield
    except ModelError:
        raise
    except Exception as error:
        raise _no_decoder(
            model, f"did not pass vLLM's dummy run, in which its decoder is looked for: {error!r}"
        ) from error


def _no_decoder(model: nn.Module, what: str) -> ModelError:
    return ModelError(f"{type(model).__name__} {what}", field="model", remedy=_REMEDY)
