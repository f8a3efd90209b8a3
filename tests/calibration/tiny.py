"""Tiny chat models, built here, one of which refuses for a reason that is known exactly.

In the planted model harmful words lie on one side of a direction and plain words on the other, the first block's
attention copies the mean of what stood before to every later position, and the output head turns the harmful side into
the token that starts a refusal.
"""

import json

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

HIDDEN, LAYERS = 32, 3
HARMFUL_WORDS = ("forge", "steal", "sabotage", "hijack", "smuggle", "extort")
PLAIN_WORDS = (
    "garden",
    "paint",
    "bread",
    "song",
    "river",
    "please",
    "about",
    "with",
    "letter",
    "simple",
    "tell",
    "quick",
)
SPECIALS = ("<pad>", "<bos>", "<|user|>", "<|end|>", "<|assistant|>", "<refuse>", "<comply>")
TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}"
    "{% if m['role'] == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
    "<|user|> {{ m['content'] }}<|end|>{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def make_tokenizer():
    """A byte-level BPE tokenizer whose words are one token each, and that adds a BOS of its own accord."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=2000,
        special_tokens=list(SPECIALS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([f" {word}" for word in (*HARMFUL_WORDS, *PLAIN_WORDS)] * 20, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", 1)])
    special = dict(zip(("pad_token", "bos_token", "eos_token"), ("<pad>", "<bos>", "<|end|>"), strict=True))
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, chat_template=TEMPLATE, **special)


def make_model(vocabulary, *, seed=0, dtype=torch.float32, **overrides):
    """A random tiny Llama, never seen by any training."""
    settings = {
        "vocab_size": vocabulary,
        "hidden_size": HIDDEN,
        "intermediate_size": 48,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "max_position_embeddings": 128,
        "tie_word_embeddings": False,
        "bos_token_id": 1,
        "eos_token_id": 3,
        "pad_token_id": 0,
    }
    torch.manual_seed(seed)
    model = LlamaForCausalLM(LlamaConfig(**(settings | overrides))).to(dtype).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 2:
                parameter.copy_(torch.randn(parameter.shape) * (1.0 if "embed" in name else 0.15))
    return model


def plant_refusal(model, tokenizer):
    """Rewrite the model so that it refuses along a known direction; return that direction."""
    refusal, answer, word = torch.linalg.qr(torch.randn(HIDDEN, HIDDEN)).Q[:3]
    planes = torch.stack([refusal, answer, word])
    with torch.no_grad():
        embedding, head, first = model.model.embed_tokens.weight, model.lm_head.weight, model.model.layers[0].self_attn
        embedding.mul_(0.2)
        embedding.sub_(embedding @ planes.T @ planes)
        # Words of both kinds have one norm, so that RMSNorm leaves their difference along the direction.
        for words, sign in ((HARMFUL_WORDS, 3), (PLAIN_WORDS, -3)):
            rows = [tokenizer.encode(f" {each}", add_special_tokens=False)[0] for each in words]
            embedding[rows] += 4 * word + sign * refusal
        embedding[[1, 2, 3, 4]] += 2 * answer
        for layer in model.model.layers:
            for projection in (layer.self_attn.o_proj, layer.mlp.down_proj):
                projection.weight.mul_(0.05)
        for projection in (first.q_proj, first.k_proj):
            projection.weight.zero_()
        first.v_proj.weight.copy_(torch.eye(HIDDEN))
        first.o_proj.weight.copy_(6 * torch.eye(HIDDEN))
        head.mul_(0.3)
        head[SPECIALS.index("<refuse>")] = 8 * refusal
        head[SPECIALS.index("<comply>")] = 2 * answer
    return refusal


def make_prompts(count, seed, *, harmful_share=0.5):
    """Requests of five to seven words, four of them harmful where the label says so; all distinct within a seed."""
    rng = np.random.default_rng(seed)
    lines, seen = [], set()
    while len(lines) < count:
        is_harmful = len(lines) < count * harmful_share
        words = [
            *rng.choice(PLAIN_WORDS, rng.integers(1, 4)),
            *rng.choice(HARMFUL_WORDS if is_harmful else PLAIN_WORDS, 4),
        ]
        text = " ".join(rng.permutation(words))
        if text not in seen:
            seen.add(text)
            label = "harmful" if is_harmful else "harmless"
            lines.append({"prompt": text, "label": label, "category": words[-1], "source": "made here"})
    return [lines[index] for index in rng.permutation(count)]


def write_prompts(path, lines):
    """Write JSONL; return the path."""
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path
