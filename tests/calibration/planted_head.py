"""A tiny model whose refusals hang on one attention head: head 2 of block 0.

Its queries are constant, its keys and values are the sign of harm, so that from a prompt with one harmful word among
plain ones it copies that word's sign to the last position, where the output head refuses. Attending to all words alike
it would copy the sign of the plain ones. All other heads write nothing along the directions that decide.
"""

import numpy as np
import torch
from tiny import HARMFUL_WORDS, HIDDEN, PLAIN_WORDS, make_model, plant_refusal

from calibration.model.attention_heads import Head

CARRIER = Head(0, 2)
WIDTH = 8


def make_carrier_model(tokenizer):
    """Return the model and its refusal direction."""
    model = make_model(len(tokenizer), seed=1)
    refusal = plant_refusal(model, tokenizer)
    decide = torch.stack([refusal, model.lm_head.weight[6] / 2])  # the output head reads these two, and nothing else
    attention, start = model.model.layers[0].self_attn, WIDTH * CARRIER.index
    own = slice(start, start + WIDTH)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for projection in (attention.q_proj, attention.k_proj, attention.v_proj):
            projection.weight.copy_(torch.randn(HIDDEN, HIDDEN, generator=generator) * 0.3)
            projection.weight[own] = 0
        # Of a head's four rotary frequencies the last hardly turns within a short prompt.
        attention.q_proj.weight[start + 3] = 6 * decide[1]
        attention.k_proj.weight[start + 3] = 6 * refusal
        attention.v_proj.weight[start] = refusal
        attention.o_proj.weight.copy_(0.05 * torch.randn(HIDDEN, HIDDEN, generator=generator))
        for layer in model.model.layers:
            for written in (layer.self_attn.o_proj.weight, layer.mlp.down_proj.weight):
                written.sub_(decide.T @ decide @ written)
        attention.o_proj.weight[:, own] = 0
        attention.o_proj.weight[:, start] = 6 * refusal
    return model, refusal


def lone_word_prompts(count, seed):
    """Requests of six words, of which the harmful ones hold a single harmful word; all distinct, half of them
    harmful.
    """
    rng = np.random.default_rng(seed)
    lines, seen = [], set()
    while len(lines) < count:
        is_harmful = len(lines) % 2 == 0
        words = [*rng.choice(PLAIN_WORDS, 5), *rng.choice(HARMFUL_WORDS if is_harmful else PLAIN_WORDS, 1)]
        text = " ".join(rng.permutation(words))
        if text not in seen:
            seen.add(text)
            lines.append({"prompt": text, "label": "harmful" if is_harmful else "harmless", "source": "made here"})
    return lines
