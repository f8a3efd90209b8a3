"""Weight orthogonalisation: the same ablation, done to the weights (arXiv 2406.11717, section 4.1).

It is an independent check that the hooks of `calibration.model.intervention.ablated` miss no way into the residual
stream. The result is a model that cannot refuse along the direction; it lives in memory, and refuses to be saved.
"""

import copy
from collections.abc import Iterator
from typing import Any, NoReturn

import torch
from torch import nn

from calibration.model.chat_model import ChatModel
from probes.errors import ModelError


def orthogonalised(chat: ChatModel, direction: torch.Tensor) -> ChatModel:
    """Return a copy whose embeddings, attention outputs and MLP outputs (biases too) cannot write `direction` `[D]`.

    `W <- W - r r^T W` with unit r. An output head tied to the embeddings is untied first, since ablation leaves what
    reads the stream alone. Raises `ModelError` where a writer has no matrix of D outputs.
    """
    model: Any = copy.deepcopy(chat.model)
    unit = torch.nn.functional.normalize(direction.double().to(chat.device), dim=0)
    ours = ChatModel.wrap(model, chat.tokenizer)
    _untie(ours.head)
    for module in _embeddings(model, ours):
        _remove(module.weight, unit, axis=1)
    for writer in ours.writers:
        matrix = output_matrix(writer, ours.hidden_size)
        _remove(matrix.weight, unit, axis=_output_axis(matrix))
        if getattr(matrix, "bias", None) is not None:
            _remove(matrix.bias, unit, axis=0)
    model.save_pretrained = _refuse
    return ours


def output_matrix(writer: nn.Module, hidden_size: int) -> nn.Module:
    """Return the matrix by which a writer writes to the stream: the last of its matrices that has D outputs."""
    fitting = [
        module
        for module in writer.modules()
        if getattr(getattr(module, "weight", None), "ndim", 0) == 2
        and module.weight.shape[_output_axis(module)] == hidden_size  # type: ignore[index]
    ]
    if not fitting:
        raise ModelError(
            f"{type(writer).__name__} has no matrix of {hidden_size} outputs",
            field="model",
            remedy="ablate activations instead: they need no matrix",
        )
    return fitting[-1]


def _output_axis(matrix: nn.Module) -> int:
    # GPT-2's Conv1D keeps its weight as [inputs, outputs], everything else as [outputs, inputs].
    return 1 if type(matrix).__name__ == "Conv1D" else 0


def _embeddings(model: nn.Module, chat: ChatModel) -> Iterator[nn.Module]:
    """Yield the embeddings of tokens, and of positions where the model adds such."""
    for module in model.modules():
        if isinstance(module, nn.Embedding) and module.weight.shape[1] == chat.hidden_size:
            yield module


def _untie(head: nn.Module) -> None:
    head.weight = nn.Parameter(head.weight.detach().clone(), requires_grad=False)  # type: ignore[operator]


def _remove(parameter: Any, unit: torch.Tensor, axis: int) -> None:
    exact = parameter.data.double()
    parallel = torch.tensordot(exact, unit, dims=([axis], [0]))
    along = parallel.unsqueeze(axis) * unit.reshape([-1 if each == axis else 1 for each in range(exact.ndim)])
    parameter.data = (exact - along).to(parameter.dtype)


def _refuse(*_args: Any, **_options: Any) -> NoReturn:
    raise ModelError(
        "a model whose refusals were taken out is not written to disk",
        field="model",
        remedy="use it in memory, to check what ablation does",
    )
