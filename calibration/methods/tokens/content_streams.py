"""What requests say, token by token: streams of their content, as they are and once more within other text.

The chat template's tokens are left out: its tail is where a chat model gathers what it makes of a request, so that
probes learn to read it there, and a request that goes on, or whose tail is cut, escapes them. The embeddings are read
beside the blocks: what stands before a request changes every block's stream of it, and never its embeddings.
"""

from dataclasses import dataclass, replace

import numpy as np

from calibration.fitting.metrics import auroc, recall_at
from calibration.fitting.training_set import Rows, TrainingSet
from calibration.methods.tokens.token_streams import (
    Scores,
    TokenStreams,
    affordable_tokens,
    choose_layers,
    read_streams,
    request_values,
)
from calibration.prompts.forms.texts import PROSE
from calibration.prompts.messages import Message
from calibration.prompts.prompt_file import Prompt
from calibration.prompts.template import EncodedPrompts, encode_prompts, read_template
from calibration.recording.places import content_positions
from probes.manifest import EMBEDDINGS
from probes.readout import Readout
from probes.template import Template

_MOST_PLAIN, _MOST_WITHIN = 1500, 1500
"""Prompts per class, as they are and within other text."""
_LEAST_WORDS, _MOST_WORDS = 8, 200
"""Words around a prompt, short stretches as often as long ones."""
_BEHIND = 0.2
"""Share of prompts within other text that have some of it behind them: what stands there changes few scores."""
READOUT = Readout(kind="swim", window=8, over="content")
"""Half the window of training. Sixteen tokens mix a request with what stands beside it: of the requests found as they
are, the lab model and SmolLM2 keep more within text by windows of eight."""
_SEED = 20_260


@dataclass(frozen=True, slots=True)
class ContentStreams:
    """The embeddings and the streams of some blocks at what requests say."""

    layers: tuple[int, ...]
    fit: TokenStreams
    """Fit prompts, as they are and within other text."""
    select: TokenStreams
    """Selection prompts, as they are."""

    def of_embeddings(self) -> "ContentStreams":
        """Return the same prompts' embeddings, without the blocks' streams."""
        fit, select = (each.blocks(slice(0, 1)) for each in (self.fit, self.select))
        return ContentStreams((EMBEDDINGS,), fit, select)

    def evidence(self, scores: Scores) -> dict[str, float]:
        """Return what is found of the selection prompts by their token `scores`, read as `READOUT` has it."""
        # The template's tokens are gone from these scores already.
        values = request_values(scores, READOUT.model_copy(update={"over": "all"}))
        above, below = values[self.select.harmful], values[~self.select.harmful]
        return {"selection_auroc": auroc(above, below), "selection_recall": recall_at(above, below, 0.01)}


def read_content(training: TrainingSet, most_blocks: int | None = None) -> ContentStreams:
    """Read the embeddings and blocks between a quarter and 85 % of the depth, evenly spread.

    They are as many blocks as can be held, and no more than `most_blocks`.
    """
    fit, select = (_sample(training, rows, _MOST_PLAIN) for rows in (training.fit, training.select))
    within = _within(training, _sample(training, training.fit, _MOST_WITHIN))
    plain = training.prompts.subset(select)
    layers, within = _affordable(training, training.prompts.subset(fit) + plain, within, most_blocks)
    template = read_template(training.chat.tokenizer)

    def streams(prompts: EncodedPrompts) -> TokenStreams:
        return _content_of(template, prompts, read_streams(training.chat, prompts, layers))

    return ContentStreams(layers, streams(training.prompts.subset(fit) + within), streams(plain))


def _sample(training: TrainingSet, rows: Rows, most: int) -> Rows:
    sides = [training.sample(rows, harmful=label, most=most) for label in (False, True)]
    return np.sort(np.concatenate(sides))


def _affordable(
    training: TrainingSet, wanted: EncodedPrompts, within: EncodedPrompts, most_blocks: int | None
) -> tuple[tuple[int, ...], EncodedPrompts]:
    """Return places that can be held of all prompts, and as many of those `within` as there is room for."""
    num_wanted = int(wanted.lengths.sum())
    num_tokens = num_wanted + int(within.lengths.sum())
    blocks = choose_layers(training.chat, num_tokens, most_blocks, beside=1)
    layers = (EMBEDDINGS, *blocks)
    room = affordable_tokens(training.chat) // len(layers) - num_wanted
    return layers, within.subset(np.flatnonzero(np.cumsum(within.lengths) <= room))


def _content_of(template: Template, prompts: EncodedPrompts, streams: TokenStreams) -> TokenStreams:
    """Return the streams of each prompt's last turn, at the tokens that are not the template's."""
    places = [content_positions(template, ids) for ids in prompts.token_ids]
    kept = tuple(stream[list(own)] for stream, own in zip(streams.streams, places, strict=True))
    return TokenStreams(kept, streams.harmful)


def _within(training: TrainingSet, rows: Rows) -> EncodedPrompts:
    """Return single-turn prompts within harmless prose or other harmless requests; in any order, so that some are
    enough.
    """
    rng = np.random.default_rng(_SEED)
    prompts = training.prompts.prompts
    single = [prompts[row] for row in rng.permutation(rows) if len(prompts[row].messages) == 1]
    harmless = [prompts[row].messages[0].content for row in training.fit if not prompts[row].is_harmful]
    asides = sorted(harmless, key=len)[: max(len(harmless) // 2, 1)]
    written = tuple(_surrounded(prompt, asides, rng) for prompt in single)
    file = replace(training.prompts.file, prompts=written)
    return encode_prompts(training.chat.tokenizer, file, training.chat.context, skip_long=True)


def _surrounded(prompt: Prompt, asides: list[str], rng: np.random.Generator) -> Prompt:
    texts = asides if rng.random() < 0.5 else list(PROSE[: len(PROSE) // 2])
    separator = str(rng.choice([" ", "\n", "\n\n"]))
    parts = [_words(texts, rng), prompt.messages[0].content]
    if rng.random() < _BEHIND:
        parts.append(_words(texts, rng))
    return replace(prompt, messages=(Message(role="user", content=separator.join(parts)),))


def _words(texts: list[str], rng: np.random.Generator) -> str:
    wanted = int(np.exp(rng.uniform(np.log(_LEAST_WORDS), np.log(_MOST_WORDS))))
    found: list[str] = []
    while sum(map(len, found)) < 5 * wanted:
        found.append(texts[int(rng.integers(len(texts)))])
    return " ".join(found)
