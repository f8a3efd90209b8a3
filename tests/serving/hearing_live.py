"""The model of `hearing` as vLLM runs it, which takes sounds that go on, too (`/v1/realtime`).

vLLM's own models for that route need torchvision, or a tokenizer of Mistral's. What of this one is not vLLM's is that
each piece of sound becomes one prompt, as `vllm/model_executor/models/qwen3_asr_realtime.py` has it.
"""

import asyncio
from collections.abc import AsyncGenerator
from typing import Any

import numpy as np
from vllm import ModelRegistry
from vllm.inputs import TokensPrompt
from vllm.model_executor.models.glmasr import (
    GlmAsrDummyInputsBuilder,
    GlmAsrForConditionalGeneration,
    GlmAsrMultiModalProcessor,
    GlmAsrProcessingInfo,
)
from vllm.model_executor.models.interfaces import SupportsRealtime
from vllm.multimodal import MULTIMODAL_REGISTRY
from vllm.tokenizers import cached_tokenizer_from_config


@MULTIMODAL_REGISTRY.register_processor(
    GlmAsrMultiModalProcessor, info=GlmAsrProcessingInfo, dummy_inputs=GlmAsrDummyInputsBuilder
)
class HearingLive(GlmAsrForConditionalGeneration, SupportsRealtime):
    """GLM-ASR, each piece of a sound that goes on being asked for by itself."""

    realtime_max_tokens = 16

    @classmethod
    async def buffer_realtime_audio(
        cls, audio_stream: AsyncGenerator[np.ndarray, None], input_stream: asyncio.Queue[list[int]], model_config: Any
    ) -> AsyncGenerator[TokensPrompt, None]:
        """Yield a prompt for each piece of sound."""
        tokenizer = cached_tokenizer_from_config(model_config)
        messages = [{"role": "user", "content": f"{cls._get_audio_token(model_config)}What is said here?"}]
        text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        token_ids = tokenizer.encode(text, add_special_tokens=False)
        async for audio in audio_stream:
            yield TokensPrompt(prompt_token_ids=token_ids, multi_modal_data={"audio": audio})


def register() -> None:
    """Tell vLLM of the model: the entry point of a plugin."""
    ModelRegistry.register_model(HearingLive.__name__, HearingLive)
