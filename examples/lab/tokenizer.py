"""Trains the lab tokenizer (byte-level BPE on the train split and its answers) and gives it the chat template."""

import random
from collections.abc import Iterable, Iterator

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from examples.lab.answers import compliance
from examples.lab.dataset import Sample
from examples.lab.refusals import REFUSALS
from examples.lab.seedbank import seeds

VOCAB_SIZE = 4096
MAX_LENGTH = 2048
BEGIN, END, PAD = "<|begin|>", "<|end|>", "<|pad|>"
ROLES = ("<|system|>", "<|user|>", "<|assistant|>")

# After the instruction come four template tokens: <|end|>, newline, <|assistant|>, newline.
CHAT_TEMPLATE = (
    "{{ bos_token }}"
    "{% for message in messages %}"
    "<|{{ message['role'] }}|>\n{{ message['content'] }}<|end|>\n"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)


def corpus(samples: Iterable[Sample]) -> Iterator[str]:
    """The text that the merges are learned from."""
    rng = random.Random(0)  # noqa: S311 - reproducible, not secret
    for sample in samples:
        yield from (content for _, content in sample.messages)
        yield compliance(sample, rng)
    yield from REFUSALS
    yield from seeds("conversations")["system"]["train"]


def train_bpe(samples: Iterable[Sample]) -> Tokenizer:
    """A byte-level BPE of at most 4,096 tokens: every text has a spelling, whatever its script."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE,
        show_progress=False,
        special_tokens=[PAD, BEGIN, END, *ROLES],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
    )
    tokenizer.train_from_iterator(corpus(samples), trainer)
    return tokenizer


def chat_tokenizer(samples: Iterable[Sample]) -> PreTrainedTokenizerFast:
    """The tokenizer as transformers and vLLM load it, chat template included."""
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=train_bpe(samples),
        bos_token=BEGIN,
        eos_token=END,
        pad_token=PAD,
        extra_special_tokens=list(ROLES),
        model_max_length=MAX_LENGTH,
        clean_up_tokenization_spaces=False,
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer
