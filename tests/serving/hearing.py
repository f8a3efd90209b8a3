"""The lab model with ears: GLM-ASR whose language model is the lab's, behind an audio tower of random weights.

A prompt without audio has the lab model's own hidden states, so probes planted in that read this one. GLM-ASR is
among the few speech models that vLLM imports without torchaudio.
"""

import base64
import io
from pathlib import Path

import numpy as np
import soundfile
import torch
from safetensors.torch import save_file
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GlmAsrConfig,
    GlmAsrForConditionalGeneration,
    WhisperFeatureExtractor,
)
from transformers.models.glmasr import GlmAsrProcessor

from tests.serving.lab import MODEL

RATE = 16_000
"""Samples a second."""
ARCHITECTURE = "HearingLive"
"""Of the model's configuration: `hearing_live` has its class."""
_SECONDS, _MOST_SECONDS = 2, 8
"""Of a window of the audio tower, and of a sound."""
_MEL_BINS, _WIDTH = 16, 64


def save_hearing_model(folder: Path) -> None:
    """Write the model, its tokenizer and its processor to `folder`."""
    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    windows = WhisperFeatureExtractor(feature_size=_MEL_BINS, sampling_rate=RATE, chunk_length=_SECONDS)
    template = tokenizer.chat_template
    processor = GlmAsrProcessor(windows, tokenizer, template, tokenizer.pad_token, max_audio_len=_MOST_SECONDS)
    processor.save_pretrained(folder)
    language = AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.bfloat16)
    tower = {
        "model_type": "glmasr_encoder",
        "num_mel_bins": _MEL_BINS,
        "hidden_size": _WIDTH,
        "intermediate_size": 4 * _WIDTH,  # four frames make one token
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
    }
    config = GlmAsrConfig(
        audio_config=tower, text_config=language.config.to_dict(), audio_token_id=tokenizer.pad_token_id
    )
    torch.manual_seed(0)
    model = GlmAsrForConditionalGeneration(config).to(torch.bfloat16)
    model.model.language_model.load_state_dict(language.model.state_dict())
    # vLLM's names: what Transformers writes of such a model has one level too many.
    named = {
        name.removeprefix("model.").replace("language_model.", "language_model.model."): weight
        for name, weight in model.model.state_dict().items()
    }
    save_file(named, folder / "model.safetensors")
    config.architectures = [ARCHITECTURE]
    config.dtype = torch.bfloat16
    config.save_pretrained(folder)


def tone(hertz: int, seconds: float = 1.0) -> np.ndarray:
    """Return a sound as samples `[T]` between -1 and 1."""
    return np.sin(np.arange(int(seconds * RATE)) * 2 * np.pi * hertz / RATE).astype(np.float32) / 2


def wav(samples: np.ndarray) -> bytes:
    """Return a sound as a WAV file."""
    file = io.BytesIO()
    soundfile.write(file, samples, RATE, format="WAV")
    return file.getvalue()


def pcm(samples: np.ndarray) -> str:
    """Return a sound as `/v1/realtime` takes it: Base64 of 16-bit samples."""
    return base64.b64encode((samples * 32767).astype(np.int16).tobytes()).decode()
