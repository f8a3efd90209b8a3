"""Prompts are tokenised as they are when served."""

import copy

import pytest
from tiny import make_prompts, write_prompts

from calibration.prompts.prompt_file import load_prompts
from calibration.prompts.template import encode_prompts, template_suffix
from probes.errors import ModelError, PromptError


def test_tokens_are_those_of_the_chat_template(tokenizer, tmp_path):
    """Ids equal Hugging Face's own tokenised rendering, with one BOS although the tokenizer would add another."""
    file = load_prompts(write_prompts(tmp_path / "p.jsonl", make_prompts(10, 0)))
    encoded = encode_prompts(tokenizer, file, 128)
    for prompt, ids in zip(encoded.prompts, encoded.token_ids, strict=True):
        messages = [message.model_dump() for message in prompt.messages]
        assert list(ids) == tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
        assert ids.count(tokenizer.bos_token_id) == 1


def test_the_suffix_is_what_follows_the_instruction(tokenizer, tmp_path):
    """Its length is the distance from the instruction's last token to the prompt's last."""
    suffix = template_suffix(tokenizer)
    assert tokenizer.convert_ids_to_tokens(list(suffix)) == ["<|end|>", "<|assistant|>"]
    file = load_prompts(write_prompts(tmp_path / "p.jsonl", [{"prompt": "steal bread", "label": "harmful"}]))
    ids = encode_prompts(tokenizer, file, 128).token_ids[0]
    assert tokenizer.decode([ids[-1 - len(suffix)]]) == " bread"


def test_long_prompts_are_refused_or_counted(tokenizer, tmp_path):
    """The error names line, id and both lengths; --skip-long leaves the prompt out and counts it."""
    lines = [{"prompt": "bread", "label": "harmless"}, {"prompt": " bread" * 90, "label": "harmless", "id": "long-one"}]
    file = load_prompts(write_prompts(tmp_path / "p.jsonl", lines))
    with pytest.raises(PromptError, match=r"p.jsonl:2: prompt 'long-one' has \d+ tokens, the model's context has 64"):
        encode_prompts(tokenizer, file, 64)
    kept = encode_prompts(tokenizer, file, 64, skip_long=True)
    assert (len(kept.prompts), kept.num_skipped) == (1, 1)


def test_messages_that_the_template_refuses_are_named(tokenizer, tmp_path):
    """A template without a system role raises; the error names the line."""
    messages = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Hi"}]
    file = load_prompts(write_prompts(tmp_path / "p.jsonl", [{"messages": messages, "label": "harmless"}]))
    with pytest.raises(
        PromptError, match=r"p.jsonl:1: the model's chat template refuses these messages: no system role"
    ):
        encode_prompts(tokenizer, file, 128)


def test_a_model_without_a_usable_template_is_refused(tokenizer):
    """No template, or one that puts nothing after the user's message, cannot be read at its positions."""
    bare = copy.deepcopy(tokenizer)
    bare.chat_template = None
    with pytest.raises(ModelError, match="no chat template"):
        template_suffix(bare)
    bare.chat_template = "{% for m in messages %}{{ m['content'] }}{% endfor %}"
    with pytest.raises(ModelError, match="no token after"):
        template_suffix(bare)
