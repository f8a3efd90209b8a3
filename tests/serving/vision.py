"""The lab model with eyes: Idefics3 whose language model is the lab's, behind a vision tower of random weights.

A prompt without an image has the lab model's own hidden states, so probes planted in that read this one. Idefics3
is among the few vision models that vLLM imports without torchvision.
"""

import base64
import io
from pathlib import Path

import torch
from PIL import Image
from transformers import AutoModelForCausalLM, AutoTokenizer, Idefics3Config, Idefics3ForConditionalGeneration
from transformers.models.idefics3 import Idefics3Processor
from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil

from probes.artifact import Artifact
from probes.fingerprint import fingerprint
from tests.serving.lab import MODEL

_SIDE, _PATCH = 32, 16
"""Pixels. Four patches make one token, for a scale factor of 2."""
_VOCABULARY = 4160
"""With the processor's own tokens."""


def save_seeing_model(folder: Path) -> None:
    """Write the model, its tokenizer and its processor to `folder`."""
    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    edge = {"longest_edge": _SIDE}
    images = Idefics3ImageProcessorPil(size=edge, max_image_size=edge, do_image_splitting=False)
    Idefics3Processor(images, tokenizer, image_seq_len=1, chat_template=tokenizer.chat_template).save_pretrained(folder)
    language = AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.bfloat16)
    language.resize_token_embeddings(_VOCABULARY, mean_resizing=False)
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = Idefics3Config(
        vision_config={**sizes, "image_size": _SIDE, "patch_size": _PATCH},
        text_config=language.config,
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        scale_factor=2,
        tie_word_embeddings=True,
    )
    torch.manual_seed(0)
    model = Idefics3ForConditionalGeneration(config).to(torch.bfloat16)
    model.model.text_model.load_state_dict(language.model.state_dict())
    model.lm_head.weight = model.model.text_model.embed_tokens.weight
    model.save_pretrained(folder)


def save_artifact_for(model: Path, planted: Artifact, folder: Path) -> None:
    """Write the lab model's artifact `planted` to `folder` as one of the `model` that sees."""
    manifest = planted.manifest.model_copy(update={"fingerprint": fingerprint(model)})
    Artifact(manifest, planted.tensors).save(folder)


def image_url(color: str) -> str:
    """Return an image of one color as a data URL."""
    png = io.BytesIO()
    Image.new("RGB", (_SIDE, _SIDE), color).save(png, "PNG")
    return f"data:image/png;base64,{base64.b64encode(png.getvalue()).decode()}"
