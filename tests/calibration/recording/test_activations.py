"""Recorded activations are the model's own, whatever the batch, the padding or the interruption."""

import gc
import itertools
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from tiny import HIDDEN, LAYERS, make_model, make_prompts, write_prompts

from calibration.model.chat_model import ChatModel
from calibration.prompts.batching import make_batch, plan_batches
from calibration.prompts.prompt_file import load_prompts
from calibration.prompts.template import encode_prompts, read_template
from calibration.recording import activations, shards
from calibration.recording.activations import read_blocks, record
from calibration.recording.places import content_positions
from probes.errors import CalibrationError
from probes.manifest import EMBEDDINGS

WHERE = (0, 2, "content")


@pytest.fixture
def encoded(tokenizer, tmp_path):
    """Sixty prompts of differing lengths."""
    lines = make_prompts(60, 3)
    for index, line in enumerate(lines):
        line["prompt"] += " river" * (index % 7)
    return encode_prompts(tokenizer, load_prompts(write_prompts(tmp_path / "p.jsonl", lines)), 128)


def test_hooks_read_hugging_face_hidden_states(chat, encoded):
    """Block l is hidden_states[l + 1], except the last, whose entry there has the final norm applied."""
    batch = make_batch(encoded.token_ids, [0], chat.device)
    with read_blocks(chat, range(LAYERS), lambda stream: stream) as streams:
        chat.last_logits(batch)
    assert not any(block._forward_hooks for block in chat.blocks)
    expected = chat.model(input_ids=batch.input_ids, output_hidden_states=True).hidden_states
    for layer in range(LAYERS - 1):
        torch.testing.assert_close(streams[layer], expected[layer + 1])
    torch.testing.assert_close(chat.model.model.norm(streams[LAYERS - 1]), expected[LAYERS])
    assert not torch.allclose(streams[LAYERS - 1], expected[LAYERS])


def test_embeddings_are_what_enters_the_first_block(chat, encoded):
    """Each token's own row of the embedding, whatever stands before it; and the hook is gone."""
    ids = encoded.token_ids[0]
    batch = make_batch([ids, [*ids[:3], *ids]], [0, 1], chat.device)
    with read_blocks(chat, [EMBEDDINGS], lambda stream: stream) as streams:
        chat.last_logits(batch)
    assert not any(block._forward_pre_hooks for block in chat.blocks)
    short, long = streams[EMBEDDINGS]
    assert torch.equal(short[: len(ids)], chat.model.get_input_embeddings()(torch.tensor(ids)))
    assert torch.equal(long[3 : 3 + len(ids)], short[: len(ids)])


def test_hooks_are_gone_after_a_failure(chat):
    """A pass that raises leaves no hook behind."""
    with pytest.raises(RuntimeError, match="stop"), read_blocks(chat, [0], lambda stream: stream):
        raise RuntimeError("stop")
    assert not chat.blocks[0]._forward_hooks


def test_batches_cover_every_prompt_once_and_keep_to_their_size():
    """Rows are a permutation, lengths ascend, and no batch of several prompts exceeds its tokens."""
    lengths = np.random.default_rng(0).integers(1, 400, 300).tolist()
    plan = plan_batches(lengths, max_tokens=1000, max_prompts=16)
    assert sorted(row for rows in plan for row in rows) == list(range(300))
    assert [lengths[row] for rows in plan for row in rows] == sorted(lengths)
    assert all(len(rows) <= 16 and (len(rows) == 1 or len(rows) * lengths[rows[-1]] <= 1000) for rows in plan)


def test_batching_and_padding_change_nothing(chat, encoded, tmp_path):
    """Recorded numbers equal those of one unpadded prompt at a time, at every place and block."""
    recording, template = record(chat, encoded, WHERE, tmp_path / "work"), read_template(chat.tokenizer)
    for row, ids in enumerate(encoded.token_ids[:20]):
        with read_blocks(chat, range(LAYERS), lambda stream: stream[0]) as streams:
            chat.last_logits(make_batch([ids], [0], chat.device))
        for layer, stream in streams.items():
            said = list(content_positions(template, ids))
            expected = {0: stream[-1], 2: stream[-3], "content": stream[said].mean(dim=0)}
            for where, value in expected.items():
                found = recording.features(layer, where)[row]
                np.testing.assert_allclose(found, value.numpy(), atol=2e-5)


def test_bfloat16_streams_are_stored_as_they_are(tokenizer, encoded, tmp_path):
    """A token's stream keeps the model's precision on disk and loses nothing."""
    chat = ChatModel.wrap(make_model(len(tokenizer), dtype=torch.bfloat16), tokenizer)
    features = record(chat, encoded, (0,), tmp_path / "work").features(1, 0)
    assert features.dtype == np.float32
    exact = torch.from_numpy(features)
    assert torch.equal(exact, exact.to(torch.bfloat16).float())


def test_an_interrupted_recording_goes_on_and_ends_the_same(chat, encoded, tmp_path, monkeypatch):
    """Stopped after four batches, it reuses whole shards, reads only what is missing, and gives identical bytes."""
    monkeypatch.setattr(shards, "_SHARD_BYTES", 10 * 4 * LAYERS * HIDDEN * len(WHERE))
    whole = record(chat, encoded, WHERE, tmp_path / "whole")
    with stopping_after(chat, 4), pytest.raises(KeyboardInterrupt):
        record(chat, encoded, WHERE, tmp_path / "stopped")
    finished = {path: path.stat().st_mtime_ns for path in (tmp_path / "stopped").glob("*.safetensors")}
    assert 0 < len(finished) < len(whole.shards)
    resumed = record(chat, encoded, WHERE, tmp_path / "stopped")
    assert [path.read_bytes() for path in resumed.shards] == [path.read_bytes() for path in whole.shards]
    assert all(path.stat().st_mtime_ns == stamp for path, stamp in finished.items())


@contextmanager
def stopping_after(chat, passes):
    """Raise KeyboardInterrupt, as ctrl-C does, in the forward pass after so many."""
    left = itertools.count(passes, -1)

    def stop(*_args):
        if next(left) == 0:
            raise KeyboardInterrupt

    handle = chat.blocks[0].register_forward_hook(stop)
    try:
        yield
    finally:
        handle.remove()


def test_an_activation_that_is_not_a_number_names_prompt_and_layer(chat, encoded, tmp_path):
    """A NaN after block 1 is reported with the prompt in which it arose."""
    bad = encoded.token_ids[17]

    seen = {}
    chat.model.model.embed_tokens.register_forward_pre_hook(lambda _m, args: seen.update(ids=args[0]))

    def spoil_one(_block, _args, output):
        for row, ids in enumerate(seen["ids"].tolist()):
            if tuple(ids[: len(bad)]) == bad and not any(ids[len(bad) :]):
                output[row] = float("nan")

    chat.blocks[1].register_forward_hook(spoil_one)
    with pytest.raises(CalibrationError, match="after block 1 are NaN") as caught:
        record(chat, encoded, WHERE, tmp_path / "work")
    assert caught.value.field == f"prompt {encoded.prompts[17].id}"


def test_memory_does_not_grow_with_the_number_of_prompts(chat, tokenizer, tmp_path, monkeypatch):
    """Ten times the prompts leave no more tensors alive at any time: one shard, not all."""
    monkeypatch.setattr(shards, "_SHARD_BYTES", 1 << 18)
    peaks = {count: peak_bytes(chat, tokenizer, tmp_path, monkeypatch, count) for count in (200, 2000)}
    assert peaks[2000] < 1.2 * peaks[200]
    assert peaks[2000] < 2000 * 4 * LAYERS * HIDDEN * len(WHERE) / 4


def peak_bytes(chat, tokenizer, tmp_path, monkeypatch, count):
    """Return the most bytes of tensors alive, above those alive before, whenever a shard is written."""
    path = write_prompts(tmp_path / f"{count}.jsonl", make_prompts(count, 5))
    encoded = encode_prompts(tokenizer, load_prompts(path), 128)
    before, alive, save = tensor_bytes(), [], activations.save_shard

    def weigh_and_save(tensors, target):
        alive.append(tensor_bytes())
        save(tensors, target)

    with monkeypatch.context() as patch:
        patch.setattr(activations, "save_shard", weigh_and_save)
        record(chat, encoded, WHERE, tmp_path / str(count))
    return max(alive) - before


def tensor_bytes():
    """Return the bytes of all tensors alive."""
    return sum(thing.nbytes for thing in gc.get_objects() if type(thing) is torch.Tensor)
