"""Anthropic's own client, on vLLM's route for it."""

import anthropic
from asked import MODEL, URL, serve

CLIENT = anthropic.Anthropic(base_url=URL)
SHORT = {"model": MODEL, "max_tokens": 64, "extra_body": {"temperature": 0}}


def user(prompt: str) -> list[dict]:
    return [{"role": "user", "content": prompt}]


def of_message(message) -> dict:
    text = "".join(block.text for block in message.content if block.type == "text")
    guard = (message.model_extra or {}).get("guardrail")
    return {"text": text, "finish": message.stop_reason, "more": {"guardrail": guard}}


def message(prompt: str) -> dict:
    return of_message(CLIENT.messages.create(messages=user(prompt), **SHORT))


def message_stream(prompt: str) -> dict:
    with CLIENT.messages.stream(messages=user(prompt), **SHORT) as stream:
        shown = "".join(stream.text_stream)
        assert shown == of_message(stream.get_final_message())["text"]
        return of_message(stream.get_final_message())


def message_prefilled(prompt: str) -> dict:
    """The answer's first words are given."""
    messages = [*user(prompt), {"role": "assistant", "content": "Sure,"}]
    seen = of_message(CLIENT.messages.create(messages=messages, **SHORT))
    return seen | {"more": {"own": seen["text"]}}


def message_history(prompt: str) -> dict:
    """The answer, given back as it came, and a further turn."""
    first = CLIENT.messages.create(messages=user(prompt), **SHORT)
    history = [*user(prompt), {"role": "assistant", "content": first.content}, *user("Thank you.")]
    return of_message(CLIENT.messages.create(messages=history, **SHORT))


serve(
    {
        "message": message,
        "message_stream": message_stream,
        "message_prefilled": message_prefilled,
        "message_history": message_history,
    }
)
