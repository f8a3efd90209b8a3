"""The decoder is found by structure, and whether its stream leaves in two parts by what the next block reads."""

import pytest
import torch
from torch import nn
from vllm.model_executor.layers.attention_layer_base import AttentionLayerBase
from vllm.model_executor.models.utils import PPMissingLayer

from probes.errors import ModelError
from serving.worker.decoder import Decoder, entry_of, find_decoder, token_rows

HIDDEN, LAYERS, TOKENS = 8, 3, 5


class Block(nn.Module):
    """A block whose norm adds up the two parts that the one before it left, writing where it reads, as vLLM's do."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(HIDDEN, HIDDEN)

    def forward(self, hidden, residual):
        if residual is None:
            residual = hidden
        else:
            hidden.add_(residual)
            residual.copy_(hidden)
        return torch.tanh(self.linear(hidden / hidden.norm(dim=-1, keepdim=True))), residual


class WholeBesideItsInput(Block):
    """The sum, and beside it the input, which the next block leaves unread: Cohere's."""

    def forward(self, hidden, residual):
        residual = hidden
        return residual + torch.tanh(self.linear(hidden)), residual


class WholeBesideHalf(Block):
    """The sum, and beside it what it was before the MLP: EXAONE 4's."""

    def forward(self, hidden, residual):
        residual = hidden + 1
        return residual + torch.tanh(self.linear(residual)), residual


class Alone(Block):
    """The sum, in a batch of one where the model is so: Granite's, and the Transformers backend's."""

    def forward(self, hidden, residual):
        return hidden + torch.tanh(self.linear(hidden))


class Cache(nn.Module, AttentionLayerBase):
    """Attention, which leaves what the memory held where there is no KV cache."""

    def forward(self, hidden):
        return torch.randn_like(hidden)

    def get_attn_backend(self):
        """Return nothing."""

    def get_kv_cache_spec(self, vllm_config):
        """Return nothing."""


class Attending(WholeBesideItsInput):
    """One with attention."""

    def __init__(self):
        super().__init__()
        self.attention = Cache()

    def forward(self, hidden, residual):
        hidden, residual = super().forward(hidden, residual)
        return hidden + self.attention(hidden), residual


class Model(nn.Module):
    """Blocks that are handed what the ones before them gave, a decoy list of norms, and a switch as vLLM's compiler
    has.
    """

    def __init__(self, kind=Block, batch=(), between=lambda hidden, residual: (hidden, residual)):
        super().__init__()
        torch.manual_seed(0)
        self.norms = nn.ModuleList(nn.LayerNorm(HIDDEN) for _ in range(LAYERS))
        self.layers = nn.ModuleList(kind() for _ in range(LAYERS))
        self.batch, self.between = batch, between
        self.do_not_compile, self.compiled = False, []

    def forward(self):
        self.compiled.append(not self.do_not_compile)
        hidden, residual = torch.randn(*self.batch, TOKENS, HIDDEN), None
        for block in self.layers:
            output = block(hidden, residual)
            hidden, residual = self.between(*(output if isinstance(output, tuple) else (output, None)))


@pytest.mark.parametrize(
    ("kind", "batch", "is_split"),
    [
        (Block, (), True),
        (WholeBesideItsInput, (), False),
        (WholeBesideHalf, (), False),
        (Attending, (), False),
        (Alone, (), False),
        (Alone, (1,), False),
    ],
)
def test_a_second_part_is_what_the_next_block_reads(kind, batch, is_split):
    """However alike what stands beside the stream looks; and attention without a cache misleads nobody."""
    model = Model(kind, batch)
    assert find_decoder(model, LAYERS, model) == Decoder(model.layers, is_split)


def test_a_second_part_that_is_handed_to_nobody_is_none():
    """Blocks may give it and the model drop it: StableLM's."""
    model = Model(WholeBesideHalf, between=lambda hidden, residual: (hidden, None))
    assert not find_decoder(model, LAYERS, model).is_split


def test_a_stream_that_changes_hands_unseen_is_refused():
    """Where the model adds the parts up between blocks, what a block hands on is not told apart by guessing."""
    model = Model(between=lambda hidden, residual: (hidden + residual, None))
    with pytest.raises(ModelError, match="the residual stream cannot be told"):
        find_decoder(model, LAYERS, model)


def test_blocks_that_differ_are_refused():
    """A model has one way of handing the stream on, or none that can be read."""
    model = Model()
    model.layers[2] = WholeBesideItsInput()
    with pytest.raises(ModelError, match="in different ways"):
        find_decoder(model, LAYERS, model)


class Elsewhere(PPMissingLayer):
    """What vLLM puts where another pipeline stage has a block."""

    def forward(self, hidden, residual):
        raise AssertionError("it is not here")


class Stage(Model):
    """The last stage of a pipeline: it is handed the stream of the stage before, and has the blocks from `first` on."""

    def __init__(self, first):
        super().__init__()
        self.first = first
        for index in range(first):
            self.layers[index] = Elsewhere()

    def forward(self):
        hidden, residual = torch.randn(TOKENS, HIDDEN), torch.randn(TOKENS, HIDDEN)
        for block in self.layers[self.first :]:
            hidden, residual = block(hidden, residual)


def test_a_pipeline_stage_is_judged_by_its_own_blocks():
    """Blocks of other stages are passed over; a stage of one block cannot tell, and says so."""
    model = Stage(first=1)
    assert find_decoder(model, LAYERS, model).is_split
    model = Stage(first=LAYERS - 1)
    with pytest.raises(ModelError, match="one decoder block"):
        find_decoder(model, LAYERS, model)


class Named(Model):
    """Hands everything on by its name."""

    def forward(self):
        hidden, residual = torch.randn(TOKENS, HIDDEN), None
        for block in self.layers:
            hidden, residual = block(hidden=hidden, residual=residual)


@pytest.mark.parametrize(
    ("model", "entry"), [(Model(), 0), (Model(Alone, batch=(1,)), 0), (Named(), "hidden"), (Model(Attending), 0)]
)
def test_the_stream_enters_by_the_argument_that_is_like_what_leaves(model, entry):
    """By its place or by its name, and nothing is left behind in the model."""
    decoder = find_decoder(model, LAYERS, model)
    assert entry_of(model, decoder, model) == entry
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_a_first_block_that_is_handed_two_streams_is_refused():
    """Nobody can say which of them the embeddings are."""
    model = Stage(first=0)
    with pytest.raises(ModelError, match="more than one stream, or none"):
        entry_of(model, find_decoder(model, LAYERS, model), model)


def test_nothing_is_compiled_and_nothing_stays():
    """The passes run eagerly, the switch is as before, and no hook is left."""
    model = Model()
    find_decoder(model, LAYERS, model)
    assert model.compiled == [False, False]
    assert not model.do_not_compile
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_blocks_are_found_at_any_depth():
    """The heaviest list of blocks that run, and not a decoy of norms that do not."""
    inner = Model()
    outer = nn.ModuleDict({"a": nn.Sequential(inner)})
    assert find_decoder(outer, LAYERS, inner).blocks is inner.layers


class Shared(Model):
    """Its blocks run twice."""

    def forward(self):
        super().forward()
        super().forward()


class Wide(Alone):
    """A block of several streams to a token."""

    def forward(self, hidden, residual):
        return hidden


@pytest.mark.parametrize(
    ("model", "problem"),
    [
        (nn.Linear(2, 2), "Linear has no list of 3 decoder blocks"),
        (nn.Sequential(*[Block() for _ in range(LAYERS)]), "Sequential has no list of 3 decoder blocks"),
        (Shared(), r"Shared has no 3 decoder blocks that each give hidden states \[T, D\] once"),
        (Model(Wide, batch=(4,)), r"Model has no 3 decoder blocks that each give hidden states \[T, D\] once"),
    ],
)
def test_models_without_a_decoder_are_refused(model, problem):
    """The error says what was looked for, in which class, and what to do."""
    with pytest.raises(ModelError, match=problem) as caught:
        find_decoder(model, LAYERS, model)
    assert caught.value.field == "model"
    assert "docs/compatibility.md" in caught.value.remedy


def test_a_dry_run_that_fails_is_explained():
    """Whatever vLLM raises in its dummy run: the error says what was being done, and what went wrong."""

    def fail():
        raise NotImplementedError("no such kernel")

    model = Model()
    with pytest.raises(ModelError, match=r"Model did not pass vLLM's dummy run.*no such kernel"):
        find_decoder(model, LAYERS, fail)
    assert not model.do_not_compile


def test_parts_are_rows_of_tokens():
    """A batch of one is a view without it, so that what is steered is the model's own; a second part counts if it is
    one.
    """
    hidden, residual = torch.ones(1, 2, 3), torch.full((1, 2, 3), 2.0)
    split, whole = Decoder(nn.ModuleList(), is_split=True), Decoder(nn.ModuleList(), is_split=False)
    assert [part.shape for part in split.parts((hidden, residual))] == [(2, 3), (2, 3)]
    assert whole.parts((hidden, residual))[1] is None
    assert whole.parts(hidden)[0].data_ptr() == hidden.data_ptr()
    assert token_rows(hidden[0]) is not None
