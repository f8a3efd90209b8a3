"""A pair of tiny models that differ in eight neurons alone, which make one of them refuse."""

from copy import deepcopy

import numpy as np
import torch
from tiny import HIDDEN, SPECIALS, make_model, plant_refusal

from calibration.model.chat_model import ChatModel

WIDTH, BLOCK = 240, 1
"""Neurons of a block; the block that holds the planted ones, which is not the last."""
PLACES = (5, 31, 60, 77, 110, 160, 201, 239)
PLANTED = np.array([BLOCK * WIDTH + place for place in PLACES])


def make_pair(tokenizer):
    """Return (aligned, partner): in the first the planted neurons fire on harmful words and write what refuses."""
    aligned = make_model(len(tokenizer), seed=1, intermediate_size=WIDTH)
    harm = plant_refusal(aligned, tokenizer)
    answer = aligned.lm_head.weight[SPECIALS.index("<comply>")].detach()
    flag = torch.randn(HIDDEN, generator=torch.Generator().manual_seed(7))
    for direction in (harm, answer / answer.norm()):
        flag = flag - (flag @ direction) * direction
    flag = flag / flag.norm()
    mlp = aligned.model.layers[BLOCK].mlp
    with torch.no_grad():
        embedding = aligned.model.embed_tokens.weight
        embedding.sub_(torch.outer(embedding @ flag, flag))
        aligned.lm_head.weight[SPECIALS.index("<refuse>")] = 8 * flag
        for place in PLACES:
            mlp.gate_proj.weight[place] = 8 * harm
            mlp.up_proj.weight[place] = harm
            mlp.down_proj.weight[:, place] = 0.12 * flag
    partner = deepcopy(aligned)
    with torch.no_grad():
        partner.model.layers[BLOCK].mlp.gate_proj.weight[list(PLACES)] = 0
    return ChatModel.wrap(aligned, tokenizer), ChatModel.wrap(partner, tokenizer)
