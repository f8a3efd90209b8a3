"""Tiny models of every architecture in the matrix: a few blocks, random weights, nothing downloaded.

What an architecture has of its own is switched on and off its neutral value: multipliers, soft caps, windows that are
shorter than the prompts, biases, experts.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from transformers import (
    BertConfig,
    BloomConfig,
    Cohere2Config,
    CohereConfig,
    DeepseekV2Config,
    DeepseekV3Config,
    Exaone4Config,
    FalconConfig,
    FalconH1Config,
    Gemma2Config,
    Gemma3TextConfig,
    Glm4Config,
    GPT2Config,
    GPTNeoXConfig,
    GptOssConfig,
    GraniteConfig,
    GraniteMoeHybridConfig,
    JambaConfig,
    Lfm2Config,
    LlamaConfig,
    Mamba2Config,
    MambaConfig,
    MistralConfig,
    MixtralConfig,
    Olmo2Config,
    OPTConfig,
    Phi3Config,
    PhiConfig,
    PreTrainedConfig,
    Qwen2Config,
    Qwen3Config,
    Qwen3MoeConfig,
    Qwen3NextConfig,
    StableLmConfig,
)

VOCABULARY, LONGEST = 512, 256
_WINDOW = 32
_TIED = {"tie_word_embeddings": True}
_SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": 128,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": LONGEST,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
    "tie_word_embeddings": False,
}
_GROUPED = {**_SIZES, "intermediate_size": 320, "num_key_value_heads": 2}
_HEADED = {**_GROUPED, "head_dim": 32}
_GEMMA = {**_HEADED, **_TIED, "sliding_window": _WINDOW, "query_pre_attn_scalar": 16}
_EXPERTS = {"num_experts_per_tok": 2, "moe_intermediate_size": 64}
_LATENT = {
    **_SIZES,
    **_EXPERTS,
    "num_key_value_heads": 4,
    "intermediate_size": 320,
    "q_lora_rank": 48,
    # As published: vLLM's kernels take no others.
    "kv_lora_rank": 512,
    "qk_nope_head_dim": 128,
    "qk_rope_head_dim": 64,
    "v_head_dim": 128,
    "n_routed_experts": 8,
    "n_shared_experts": 1,
    "first_k_dense_replace": 1,
}
_LATENT_V2 = {**_LATENT, "topk_method": "greedy", "n_group": 1, "topk_group": 1}
_LATENT_V3 = {**_LATENT, "scoring_func": "sigmoid", "topk_method": "noaux_tc", "n_group": 2, "topk_group": 1}
# vLLM's rotary kernel for CPUs, which eager mode uses, turns several heads' queries wrongly where they come as [T, H,
# D].
_NATIVE_ROPE = ("--compilation-config", '{"custom_ops": ["-rotary_embedding"]}')
_WHY_NATIVE = "without vLLM's rotary kernel for CPUs, which is wrong for queries `[T, H, D]`"


@dataclass(frozen=True, slots=True)
class Architecture:
    """One row of the matrix."""

    title: str
    config: Callable[[], PreTrainedConfig]
    arguments: tuple[str, ...] = ()
    """vLLM's, beyond those of every run."""
    note: str = ""
    reference: Mapping[str, object] = field(default_factory=dict)
    """What in the config is otherwise for Transformers, so that both compute the same."""


ARCHITECTURES = {
    "llama": Architecture("Llama", lambda: LlamaConfig(**_GROUPED)),
    "qwen2": Architecture("Qwen2", lambda: Qwen2Config(**_GROUPED)),
    "qwen3": Architecture("Qwen3", lambda: Qwen3Config(**_HEADED)),
    "mistral": Architecture("Mistral", lambda: MistralConfig(**_HEADED, sliding_window=None)),
    "mistral-window": Architecture(
        "Mistral, window in all blocks", lambda: MistralConfig(**_HEADED, sliding_window=_WINDOW)
    ),
    "gemma2": Architecture("Gemma 2", lambda: Gemma2Config(**_GEMMA)),
    "gemma3": Architecture("Gemma 3", lambda: Gemma3TextConfig(**_GEMMA, sliding_window_pattern=3)),
    "phi3": Architecture("Phi-3", lambda: Phi3Config(**_GROUPED)),
    "gpt-neox": Architecture("GPT-NeoX", lambda: GPTNeoXConfig(**_SIZES, intermediate_size=320)),
    "gpt-neox-serial": Architecture(
        "GPT-NeoX, serial", lambda: GPTNeoXConfig(**_SIZES, intermediate_size=320, use_parallel_residual=False)
    ),
    "olmo2": Architecture("OLMo 2", lambda: Olmo2Config(**_GROUPED)),
    "granite": Architecture(
        "Granite",
        lambda: GraniteConfig(
            **_GROUPED, embedding_multiplier=0.5, residual_multiplier=0.4, attention_multiplier=0.1, logits_scaling=2.0
        ),
    ),
    "falcon": Architecture(
        "Falcon", lambda: FalconConfig(**_SIZES, alibi=False, new_decoder_architecture=True, num_kv_heads=2)
    ),
    "falcon-7b": Architecture(
        "Falcon, first design", lambda: FalconConfig(**_SIZES, alibi=False, multi_query=True, parallel_attn=True)
    ),
    "mixtral": Architecture("Mixtral", lambda: MixtralConfig(**_GROUPED, num_local_experts=4, num_experts_per_tok=2)),
    "qwen3-moe": Architecture(
        "Qwen3-MoE",
        lambda: Qwen3MoeConfig(
            **_HEADED, num_experts=8, **_EXPERTS, mlp_only_layers=[1]
        ),
    ),
    "gpt-oss": Architecture(
        "GPT-OSS",
        lambda: GptOssConfig(**_HEADED, num_local_experts=4, num_experts_per_tok=2, sliding_window=_WINDOW),
    ),
    "deepseek-v2": Architecture("DeepSeek V2 (MLA)", lambda: DeepseekV2Config(**_LATENT_V2), _NATIVE_ROPE, _WHY_NATIVE),
    "deepseek-v3": Architecture("DeepSeek V3 (MLA)", lambda: DeepseekV3Config(**_LATENT_V3), _NATIVE_ROPE, _WHY_NATIVE),
    "transformers": Architecture(
        "Llama through the Transformers backend", lambda: LlamaConfig(**_GROUPED), ("--model-impl", "transformers")
    ),
    "transformers-moe": Architecture(
        "Qwen3-MoE through the Transformers backend",
        lambda: Qwen3MoeConfig(**_HEADED, num_experts=8, **_EXPERTS),
        ("--model-impl", "transformers"),
    ),
    "cohere": Architecture("Cohere", lambda: CohereConfig(**{**_GROUPED, **_TIED}, logit_scale=0.25)),
    "cohere2": Architecture(
        "Cohere 2",
        lambda: Cohere2Config(**{**_HEADED, **_TIED, "num_hidden_layers": 4}, sliding_window=_WINDOW),
        note="vLLM's windows are one token wider than Transformers': the reference is given windows of that width",
        reference={"sliding_window": _WINDOW + 1},
    ),
    "opt": Architecture("OPT", lambda: OPTConfig(**_SIZES, ffn_dim=320, word_embed_proj_dim=128)),
    "gpt2": Architecture(
        "GPT-2", lambda: GPT2Config(vocab_size=VOCABULARY, n_embd=128, n_layer=3, n_head=4, n_inner=320, n_positions=LONGEST)
    ),
    "phi": Architecture("Phi", lambda: PhiConfig(**_GROUPED, partial_rotary_factor=0.5)),
    "bloom": Architecture("BLOOM", lambda: BloomConfig(vocab_size=VOCABULARY, hidden_size=128, n_layer=3, n_head=4)),
    "qwen3-next": Architecture(
        "Qwen3-Next",
        lambda: Qwen3NextConfig(
            **{**_HEADED, "num_hidden_layers": 4}, num_experts=2, **_EXPERTS,
            shared_expert_intermediate_size=64, linear_num_key_heads=2, linear_num_value_heads=4,
            linear_key_head_dim=128, linear_value_head_dim=128,
        ),
        note="two experts of two, so that no router has a tie",
    ),
    "exaone4": Architecture(
        "EXAONE 4",
        lambda: Exaone4Config(**{**_HEADED, "num_hidden_layers": 4}, sliding_window=_WINDOW, sliding_window_pattern=4),
    ),
    "stablelm": Architecture("StableLM", lambda: StableLmConfig(**_GROUPED, partial_rotary_factor=0.5)),
    "granite-hybrid": Architecture(
        "Granite 4 hybrid",
        lambda: GraniteMoeHybridConfig(
            **_GROUPED, layer_types=["mamba", "attention", "mamba"], mamba_n_heads=8, mamba_d_head=32, mamba_d_state=32,
            shared_intermediate_size=64, num_local_experts=0, residual_multiplier=0.5, position_embedding_type="rope",
        ),
    ),
    "falcon-h1": Architecture(
        "Falcon-H1",
        lambda: FalconH1Config(**_HEADED, mamba_d_ssm=256, mamba_n_heads=8, mamba_d_head=32, mamba_d_state=32),
    ),
    "lfm2": Architecture(
        "LFM2",
        lambda: Lfm2Config(
            **_GROUPED, layer_types=["conv", "full_attention", "conv"], block_auto_adjust_ff_dim=False,
            block_dim=128, conv_dim=128,
        ),
        _NATIVE_ROPE,
        _WHY_NATIVE,
    ),
    "jamba": Architecture(
        "Jamba",
        lambda: JambaConfig(
            **_GROUPED, attn_layer_period=2, attn_layer_offset=1, expert_layer_period=2, expert_layer_offset=1, num_experts=4,
            use_mamba_kernels=False,
        ),
    ),
    "glm4": Architecture("GLM-4", lambda: Glm4Config(**_HEADED)),
}  # fmt: skip

UNGUARDED = {
    "mamba": Architecture(
        "Mamba", lambda: MambaConfig(vocab_size=VOCABULARY, hidden_size=128, num_hidden_layers=3, state_size=16)
    ),
    "mamba2": Architecture(
        "Mamba 2",
        lambda: Mamba2Config(
            vocab_size=VOCABULARY, hidden_size=128, num_hidden_layers=3, state_size=32, num_heads=8, head_dim=32, n_groups=1
        ),
    ),
    "bert": Architecture("BERT", lambda: BertConfig(**_SIZES, intermediate_size=320)),
}  # fmt: skip
"""What vLLM serves and the guard refuses: nothing of these keeps the whole context in a KV cache."""
