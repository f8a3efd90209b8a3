"""The training loop of the lab model: float32, AdamW, cosine schedule, loss on the weighted tokens."""

import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from calibration.model.arithmetic import float32_is_faster
from examples.lab.batches import Batch
from examples.lab.tokenizer import MAX_LENGTH, VOCAB_SIZE

WARMUP_STEPS = 40
OnStep = Callable[[float], None]


def new_model(tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """An untrained Llama of 5.2M parameters: 6 blocks, hidden size 256, 4 heads of 64, 2 of them for keys and
    values.
    """
    config = LlamaConfig(
        vocab_size=VOCAB_SIZE,
        hidden_size=256,
        intermediate_size=640,
        num_hidden_layers=6,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=64,
        max_position_embeddings=MAX_LENGTH,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.convert_tokens_to_ids(tokenizer.bos_token),
        eos_token_id=tokenizer.convert_tokens_to_ids(tokenizer.eos_token),
        pad_token_id=tokenizer.convert_tokens_to_ids(tokenizer.pad_token),
    )
    return LlamaForCausalLM(config)


def loss_of(model: LlamaForCausalLM, batch: Batch) -> Tensor:
    """Mean next-token cross-entropy in nats, weighted by the batch; logits are taken where the weight is not zero.

    Rows are padded on the right, so causality is the only mask. Parameters are float32; matrix products run in bfloat16
    on a CPU that is no slower at it.
    """
    weights = batch.weights[:, 1:].flatten()
    counted = weights > 0
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=not float32_is_faster(torch.bfloat16)):
        hidden = model.model(batch.tokens[:, :-1]).last_hidden_state.flatten(0, 1)
        logits = model.lm_head(hidden[counted])
    losses = cross_entropy(logits.float(), batch.tokens[:, 1:].flatten()[counted], reduction="none")
    return (losses * weights[counted]).sum() / weights.sum()


def rate(step: int, num_steps: int) -> float:
    """Share of the peak learning rate: linear warm-up, then half a cosine down to 5 %."""
    if step < WARMUP_STEPS:
        return (step + 1) / WARMUP_STEPS
    return 0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * (step - WARMUP_STEPS) / max(1, num_steps - WARMUP_STEPS)))


def fit(
    model: LlamaForCausalLM, batches: Iterator[Batch], num_steps: int, learning_rate: float, on_step: OnStep
) -> None:
    """Trains in place for `num_steps` batches and reports every loss to `on_step`."""
    optimiser = torch.optim.AdamW(model.parameters(), lr=learning_rate, betas=(0.9, 0.98), weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: rate(step, num_steps))
    model.train()
    for _ in range(num_steps):
        loss = loss_of(model, next(batches))
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        schedule.step()
        on_step(loss.item())
    model.eval()
