"""A model with a direction along which no prompt differs and which makes it refuse, and one that does the reverse."""

import torch
from tiny import HARMFUL_WORDS, HIDDEN, PLAIN_WORDS, SPECIALS, make_model


def plant_dormant(tokenizer):
    """Return the model and three orthogonal directions: `used` varies and acts, `dormant` only acts, `idle` only
    varies.
    """
    model = make_model(len(tokenizer), seed=1)
    used, dormant, idle, answer, word = torch.linalg.qr(torch.randn(HIDDEN, HIDDEN)).Q[:5]
    planes = torch.stack([used, dormant, idle, answer, word])
    with torch.no_grad():
        embedding, head = model.model.embed_tokens.weight, model.lm_head.weight
        embedding.mul_(0.05)
        embedding.sub_(embedding @ planes.T @ planes)
        for words, sign in ((HARMFUL_WORDS, 1), (PLAIN_WORDS, -1)):
            rows = [tokenizer.encode(f" {each}", add_special_tokens=False)[0] for each in words]
            embedding[rows] += 4 * word + 2 * sign * used + 2 * sign * idle
            # Words differ along each of the two on their own as well, or no prompt could tell them apart.
            embedding[rows] += 2 * torch.randn(len(rows), 2) @ torch.stack([used, idle])
        embedding[[1, 2, 3, 4]] += 2 * answer
        for layer in model.model.layers:
            for projection in (layer.self_attn.o_proj, layer.mlp.down_proj):
                projection.weight.mul_(0.0)
        first = model.model.layers[0].self_attn
        first.q_proj.weight.zero_()
        first.k_proj.weight.zero_()
        first.v_proj.weight.copy_(torch.eye(HIDDEN))
        first.o_proj.weight.copy_(6 * torch.eye(HIDDEN))
        head.mul_(0.0)
        head[SPECIALS.index("<refuse>")] = 6 * (used + dormant)
        head[SPECIALS.index("<comply>")] = 2 * answer
    return model, used, dormant, idle
