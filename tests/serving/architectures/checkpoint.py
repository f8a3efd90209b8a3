"""Random weights of a size that shows: no block's contribution vanishes beside the stream, no attention is flat."""

import torch
from transformers import AutoModelForCausalLM

_SCALE, _JITTER, _EMBEDDING = 0.8, 0.1, 0.3


def save(config, folder, dtype="float32", kind=AutoModelForCausalLM):
    """Write a model of `config` with seeded random weights to `folder`, in `dtype`."""
    torch.manual_seed(0)
    model = kind.from_config(config, dtype=torch.float32).eval()
    randomise(model)
    model.to(getattr(torch, dtype)).save_pretrained(folder)


@torch.no_grad()
def randomise(model):
    """Fill matrices with numbers that keep the size of what passes through them; shift norms and biases off neutral.

    Embeddings stay small, so that the stream is the blocks' work.
    """
    generator = torch.Generator().manual_seed(1)
    for _, parameter in sorted(model.named_parameters()):
        noise = torch.randn(parameter.shape, generator=generator)
        if parameter.ndim == 1:
            parameter.add_(_JITTER * noise)
        else:
            parameter.copy_(noise * _SCALE / parameter.shape[-1] ** 0.5)
    model.get_input_embeddings().weight.normal_(std=_EMBEDDING, generator=generator)


def load(folder, dtype="float32", **config):
    """Return the model in `folder`, as Transformers computes it; `config` stands in for its own."""
    return AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype), **config).eval()
