"""Greedy answers of a batch are those of each prompt alone, as transformers itself gives them."""

import pytest
import torch
from families import FAMILIES, random_chat
from tiny import make_model, make_prompts, write_prompts

from calibration.model.chat_model import ChatModel
from calibration.model.generation import Reader, align_right, end_tokens, generate
from calibration.prompts.batching import make_batch
from calibration.prompts.prompt_file import load_prompts
from calibration.prompts.template import encode_prompts


@pytest.fixture
def prompts(tokenizer, tmp_path):
    """A dozen prompts of several lengths."""
    return encode_prompts(tokenizer, load_prompts(write_prompts(tmp_path / "p.jsonl", make_prompts(12, 5))), 64)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_batch_is_answered_as_each_prompt_alone(family, tokenizer, prompts):
    """Whatever the padding and the kind of position; the single answers are those of transformers' own generation."""
    chat = random_chat(family, tokenizer)
    assert len(set(prompts.lengths.tolist())) > 1
    together = generate(chat, prompts, 10)
    for ids, answer in zip(prompts.token_ids, together, strict=True):
        alone = torch.tensor([ids])
        with torch.inference_mode():
            expected = chat.model.generate(
                input_ids=alone, attention_mask=torch.ones_like(alone), do_sample=False, max_new_tokens=10
            )[0, len(ids) :]
        assert answer == tuple(expected.tolist())
    assert len(set(together)) > 1


def test_answers_end_where_the_model_says_so(tokenizer, prompts):
    """The end token is kept and nothing follows it; a prompt that goes on is not cut by its neighbours."""
    chat = random_chat("llama", tokenizer)
    before = generate(chat, prompts, 10)
    stop = before[0][3]
    chat.model.generation_config.eos_token_id = [stop]
    after = generate(chat, prompts, 10)
    assert stop in end_tokens(chat)
    for whole, cut in zip(before, after, strict=True):
        assert cut == whole[: whole.index(stop) + 1] if stop in whole else cut == whole
    assert {len(cut) for cut in after} != {10}


def test_answers_stay_within_the_context(tokenizer, prompts):
    """A prompt that fills the context gets one token; shorter neighbours get as many as they have room for."""
    chat = ChatModel.wrap(make_model(len(tokenizer), max_position_embeddings=int(prompts.lengths.max())), tokenizer)
    chat.model.generation_config.eos_token_id = None
    answers = generate(chat, prompts, 50)
    for length, answer in zip(prompts.lengths.tolist(), answers, strict=True):
        assert len(answer) == chat.context + 1 - length or answer[-1] == tokenizer.eos_token_id
    assert min(map(len, answers)) == 1


def test_what_was_read_is_remembered(tokenizer):
    """Reading a text in two goes gives the logits of reading it in one."""
    chat = random_chat("gpt2", tokenizer)
    texts = [[1, 2, 40, 50, 60, 3], [1, 2, 70]]
    reader = Reader(chat, make_batch(texts, [0, 1], chat.device))
    reader.read(align_right(make_batch(texts, [0, 1], chat.device)))
    logits = reader.read(torch.tensor([[41], [42]]))
    for row, text in enumerate([[*texts[0], 41], [*texts[1], 42]]):
        whole = chat.model(input_ids=torch.tensor([text])).logits[0, -1]
        torch.testing.assert_close(logits[row], whole, atol=1e-4, rtol=1e-4)
