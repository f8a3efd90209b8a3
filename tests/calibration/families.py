"""Tiny models of several families, which call their parts by other names and take other arguments."""

import torch
from tiny import make_model
from transformers import GPT2Config, GPT2LMHeadModel, GPTNeoXConfig, GPTNeoXForCausalLM, OPTConfig, OPTForCausalLM

from calibration.model.chat_model import ChatModel

SHAPE = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
FAMILIES = {
    "llama": make_model,
    "gpt2": lambda size: GPT2LMHeadModel(GPT2Config(vocab_size=size, n_embd=32, n_layer=2, n_head=4, n_positions=64)),
    "neox": lambda size: GPTNeoXForCausalLM(GPTNeoXConfig(vocab_size=size, intermediate_size=48, **SHAPE)),
    "opt": lambda size: OPTForCausalLM(OPTConfig(vocab_size=size, ffn_dim=48, word_embed_proj_dim=32, **SHAPE)),
}


def random_chat(family, tokenizer):
    """A model of the family whose weights are large enough for answers to depend on everything that was read."""
    torch.manual_seed(2)
    model = FAMILIES[family](len(tokenizer))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 2:
                parameter.copy_(torch.randn(parameter.shape) * (1.0 if "emb" in name or "wte" in name else 0.3))
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.generation_config.pad_token_id = 0
    return ChatModel.wrap(model, tokenizer)
