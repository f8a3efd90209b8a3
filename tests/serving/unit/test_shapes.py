"""Blocked answers are what OpenAI's own client expects, field by field."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from openai.types import Completion
from openai.types.chat import ChatCompletion, ChatCompletionChunk
from openai.types.responses import Response, ResponseStreamEvent
from pydantic import TypeAdapter

from guard.verdict import Action, Mode, Unscored, Verdict
from serving.api import anthropic_shapes, shapes
from serving.api.shapes import Refusal

MESSAGE = "Dabei kann ich nicht helfen – „tut mir leid“.\nZeile 2"


def refusal(**changes):
    """The facts of a blocked request with two choices."""
    facts = {"request_id": "id-1", "model": "m", "created": 1700000000, "message": MESSAGE, "num_choices": 2}
    return Refusal(**facts | {"prompt_tokens": 7} | changes)


def events(stream):
    """(name, JSON) of each server-sent event; the end marker is None."""
    found = []
    for block in b"".join(stream).decode().split("\n\n")[:-1]:
        lines = dict(line.split(": ", 1) for line in block.split("\n"))
        data = lines["data"]
        found.append((lines.get("event"), None if data == "[DONE]" else json.loads(data)))
    return found


def test_chat_completion():
    """Each choice is filtered, says the message as content and as refusal, and no token was made."""
    parsed = ChatCompletion.model_validate(shapes.chat(refusal()))
    assert [choice.index for choice in parsed.choices] == [0, 1]
    assert {choice.finish_reason for choice in parsed.choices} == {"content_filter"}
    assert {choice.message.content for choice in parsed.choices} == {MESSAGE}
    assert {choice.message.refusal for choice in parsed.choices} == {MESSAGE}
    assert (parsed.usage.prompt_tokens, parsed.usage.completion_tokens, parsed.usage.total_tokens) == (7, 0, 7)
    assert (parsed.id, parsed.model, parsed.created) == ("id-1", "m", 1700000000)


@pytest.mark.parametrize(("message_in", "content", "refused"), [("content", MESSAGE, None), ("refusal", None, MESSAGE)])
def test_a_chat_completion_has_the_message_where_the_policy_says(message_in, content, refused):
    """Whole and streamed: in one of its two places, where a client would join them."""
    facts = refusal(message_in=message_in)
    for choice in ChatCompletion.model_validate(shapes.chat(facts)).choices:
        assert (choice.message.content, choice.message.refusal) == (content, refused)
    chunks = [ChatCompletionChunk.model_validate(each) for _, each in events(shapes.chat_stream(facts)) if each]
    said = [choice.delta for chunk in chunks for choice in chunk.choices if choice.delta.role]
    assert {(delta.content, delta.refusal) for delta in said} == {(content, refused)}


@pytest.mark.parametrize("include_usage", [False, True])
def test_chat_stream(include_usage):
    """Each choice streams its message, then its end; usage comes only if asked for; the stream ends with [DONE]."""
    found = events(shapes.chat_stream(refusal(include_usage=include_usage)))
    assert found.pop() == (None, None)
    chunks = [ChatCompletionChunk.model_validate(content) for _, content in found]
    if include_usage:
        last = chunks.pop()
        assert last.choices == []
        assert last.usage.total_tokens == 7
    choices = [choice for chunk in chunks for choice in chunk.choices]
    for index in (0, 1):
        own = [choice for choice in choices if choice.index == index]
        assert "".join(choice.delta.content or "" for choice in own) == MESSAGE
        assert [choice.finish_reason for choice in own] == [None, "content_filter"]
        assert own[0].delta.role == "assistant"
    assert all(chunk.usage is None for chunk in chunks)


def test_text_completion():
    """The message is the text of each choice."""
    parsed = Completion.model_validate(shapes.completion(refusal()))
    assert [(choice.index, choice.text, choice.finish_reason) for choice in parsed.choices] == [
        (0, MESSAGE, "content_filter"),
        (1, MESSAGE, "content_filter"),
    ]
    assert parsed.usage.completion_tokens == 0


@pytest.mark.parametrize("include_usage", [False, True])
def test_completion_stream(include_usage):
    """One chunk a choice, usage if asked for, [DONE]."""
    found = events(shapes.completion_stream(refusal(include_usage=include_usage)))
    assert found.pop() == (None, None)
    chunks = [Completion.model_validate(content) for _, content in found]
    assert len(chunks) == 2 + include_usage
    assert [chunk.choices[0].finish_reason for chunk in chunks[:2]] == ["content_filter"] * 2
    assert (chunks[-1].usage is not None) == include_usage


def test_response():
    """Incomplete because of the content filter, with a refusal as the only content."""
    parsed = Response.model_validate(shapes.response(refusal()))
    assert (parsed.status, parsed.incomplete_details.reason) == ("incomplete", "content_filter")
    (item,) = parsed.output
    assert [(part.type, part.refusal) for part in item.content] == [("refusal", MESSAGE)]
    assert (parsed.usage.output_tokens, parsed.usage.total_tokens) == (0, 7)


def test_response_stream():
    """Every event is one of the official types; numbers ascend; the stream opens with `created`, ends with
    `incomplete`.
    """
    found = events(shapes.response_stream(refusal()))
    parsed = [TypeAdapter(ResponseStreamEvent).validate_python(content) for _, content in found]
    assert [event.type for event in parsed] == [name for name, _ in found]
    assert [event.sequence_number for event in parsed] == list(range(len(parsed)))
    assert (parsed[0].type, parsed[-1].type) == ("response.created", "response.incomplete")
    assert parsed[0].response.status == "in_progress"
    assert parsed[-1].response.incomplete_details.reason == "content_filter"
    assert "".join(event.delta for event in parsed if event.type == "response.refusal.delta") == MESSAGE
    names = {type(event).__name__ for event in parsed}
    assert {"ResponseRefusalDeltaEvent", "ResponseRefusalDoneEvent", "ResponseOutputItemDoneEvent"} <= names


@pytest.mark.parametrize("stream", [shapes.chat_stream, shapes.completion_stream, shapes.response_stream])
def test_no_message_breaks_the_framing(stream):
    """A message with line ends stays one line of data: it cannot forge an event."""
    hostile = refusal(message='x\n\ndata: [DONE]\n\nevent: forged\r\ndata: {"a": 1}')
    text = b"".join(stream(hostile)).decode()
    assert "\nevent: forged" not in text
    assert all(line.startswith(("data: ", "event: ")) for line in text.splitlines() if line)


def test_error_envelope():
    """The four keys of OpenAI's error object."""
    assert shapes.error("m", "c", "p") == {
        "error": {"message": "m", "type": "invalid_request_error", "param": "p", "code": "c"}
    }


def verdict(**changes):
    """A verdict that flags."""
    values = {"decision": Action.FLAG, "action": Action.FLAG, "mode": Mode.ENFORCE, "scores": {"harm": 1.5}}
    return Verdict(**values | {"policy": "p@1", "event_id": "fge_1"} | changes)


def with_moderation(moderation):
    """A parsed chat completion that carries `moderation`."""
    return ChatCompletion.model_validate(shapes.chat(refusal()) | {"moderation": moderation}).moderation


@pytest.mark.parametrize("with_scores", [False, True])
def test_moderation_object(with_scores):
    """Flagged or not is for everyone; names and values of scores are for those who may see them."""
    parsed = with_moderation(shapes.moderation(verdict(), "p@1", with_scores=with_scores, output=shapes.PROMPT_ONLY))
    (result,) = parsed.input.results
    assert result.flagged is True
    assert result.category_scores == ({"harm": 1.5} if with_scores else {})
    assert set(result.categories) == set(result.category_applied_input_types) == set(result.category_scores)
    assert parsed.output.code == "not_evaluated"


def test_moderation_of_what_was_allowed_and_of_shadow():
    """Allowed is not flagged; a shadow block is flagged although it passed."""
    allowed = verdict(decision=Action.ALLOW, action=Action.ALLOW)
    shadow = verdict(decision=Action.BLOCK, action=Action.ALLOW, mode=Mode.SHADOW)
    for found, flagged in ((allowed, False), (shadow, True)):
        parsed = with_moderation(shapes.moderation(found, "p", with_scores=False, output=shapes.PROMPT_ONLY))
        assert parsed.input.results[0].flagged is flagged


@pytest.mark.parametrize("missing", [None, verdict(unscored=Unscored.MISSING, scores={})])
def test_moderation_without_a_score_is_an_error(missing):
    """No score is never "not flagged"."""
    parsed = with_moderation(shapes.moderation(missing, "p", with_scores=True, output=shapes.PROMPT_ONLY))
    assert (parsed.input.type, parsed.input.code) == ("error", "unscored")


def test_documented_examples_are_what_is_sent():
    """Each JSON block of docs/api.md is the very object that these functions make."""
    document = (Path(__file__).parents[3] / "docs" / "api.md").read_text()
    blocks = [json.loads(block.split("```")[0]) for block in document.split("```json\n")[1:]]
    message = "I can't help with that request."
    told = {"decision": "block", "policy": "production@1", "event_id": "fge_5b0c1f"}
    facts = Refusal("chatcmpl-1", "my-model", 1700000000, message, num_choices=1, prompt_tokens=12, guardrail=told)
    flagged = verdict(policy="production@1")
    for made in (
        shapes.chat(facts),
        shapes.completion(replace(facts, request_id="cmpl-1")),
        anthropic_shapes.message(facts),
        shapes.error(message, "content_filter", "messages", {"guardrail": told}),
        {"moderation": shapes.moderation(flagged, "production@1", with_scores=False, output=shapes.PROMPT_ONLY)},
    ):
        assert made in blocks
