"""OpenAI's own client."""

import openai
from asked import MODEL, V1, serve
from pydantic import BaseModel

CLIENT = openai.OpenAI(base_url=V1)
SHORT = {"model": MODEL, "max_tokens": 64, "temperature": 0}
SHORT_RESPONSE = {"model": MODEL, "max_output_tokens": 64, "temperature": 0}
TOOL = {
    "type": "function",
    "function": {
        "name": "look_up",
        "parameters": {"type": "object", "properties": {"n": {"type": "integer", "maximum": 9}}, "required": ["n"]},
    },
}


class Answer(BaseModel):
    """A structured answer, short enough for a small model."""

    yes: bool


def user(prompt: str) -> list[dict]:
    return [{"role": "user", "content": prompt}]


def of_chat(reply) -> dict:
    choice = reply.choices[0]
    message = choice.message
    guard = (reply.model_extra or {}).get("guardrail")
    return {
        "text": message.content,
        "refusal": message.refusal,
        "finish": choice.finish_reason,
        "more": {"guardrail": guard},
    }


def chat(prompt: str) -> dict:
    return of_chat(CLIENT.chat.completions.create(messages=user(prompt), **SHORT))


def of_chunks(chunks) -> dict:
    choices = [choice for chunk in chunks for choice in chunk.choices]
    refused = [choice.delta.refusal for choice in choices if choice.delta.refusal]
    return {
        "text": "".join(choice.delta.content or "" for choice in choices),
        "refusal": "".join(refused) or None,
        "finish": choices[-1].finish_reason,
    }


def chat_stream(prompt: str, **options) -> dict:
    return of_chunks(CLIENT.chat.completions.create(messages=user(prompt), stream=True, **SHORT, **options))


def chat_stream_first_chunk_empty(prompt: str) -> dict:
    body = {"moderation": {"model": "any", "mode": "score"}}
    return chat_stream(prompt, stream_options={"include_usage": True}, extra_body=body)


def chat_helper(prompt: str) -> dict:
    with CLIENT.chat.completions.stream(messages=user(prompt), **SHORT) as stream:
        return of_chat(stream.until_done().get_final_completion())


def chat_parse(prompt: str) -> dict:
    reply = CLIENT.chat.completions.parse(messages=user(prompt), response_format=Answer, **SHORT)
    return of_chat(reply) | {"more": {"own": reply.choices[0].message.parsed.model_dump()}}


def chat_tool(prompt: str) -> dict:
    reply = CLIENT.chat.completions.create(messages=user(prompt), tools=[TOOL], tool_choice="required", **SHORT)
    return of_chat(reply) | {"more": {"own": len(reply.choices[0].message.tool_calls or [])}}


def chat_history(prompt: str) -> dict:
    """The answer, given back as the client's own helper writes it, and a further turn."""
    first = CLIENT.chat.completions.create(messages=user(prompt), **SHORT).choices[0].message
    history = [*user(prompt), first.model_dump(exclude_none=True), *user("Thank you.")]
    return of_chat(CLIENT.chat.completions.create(messages=history, **SHORT))


def completion(prompt: str) -> dict:
    choice = CLIENT.completions.create(prompt=_rendered(prompt), **SHORT).choices[0]
    return {"text": choice.text, "finish": choice.finish_reason}


def completion_stream(prompt: str) -> dict:
    chunks = list(CLIENT.completions.create(prompt=_rendered(prompt), stream=True, **SHORT))
    return {"text": "".join(c.choices[0].text for c in chunks), "finish": chunks[-1].choices[0].finish_reason}


def _rendered(prompt: str) -> str:
    return f"<|begin|><|user|>\n{prompt}<|end|>\n<|assistant|>\n"


def of_response(reply) -> dict:
    refused = [part.refusal for item in reply.output for part in item.content if part.type == "refusal"]
    details = reply.incomplete_details
    return {
        "text": reply.output_text,
        "refusal": "".join(refused) or None,
        "finish": details.reason if details else reply.status,
    }


def response(prompt: str) -> dict:
    return of_response(CLIENT.responses.create(input=prompt, **SHORT_RESPONSE))


def response_stream(prompt: str) -> dict:
    """The pieces that a person would be shown, and the answer in the last event."""
    with CLIENT.responses.stream(input=prompt, **SHORT_RESPONSE) as stream:
        events = list(stream)
    last = of_response(events[-1].response)
    for kind, whole in (("response.output_text.delta", last["text"]), ("response.refusal.delta", last["refusal"])):
        assert "".join(event.delta for event in events if event.type == kind) == (whole or "")
    return last


def response_parse(prompt: str) -> dict:
    reply = CLIENT.responses.parse(input=prompt, text_format=Answer, **SHORT_RESPONSE)
    parsed = reply.output_parsed
    return of_response(reply) | {"more": {"own": parsed and parsed.model_dump()}}


def response_history(prompt: str) -> dict:
    """The answer's output, given back as input, and a further turn."""
    first = CLIENT.responses.create(input=prompt, **SHORT_RESPONSE)
    history = [*user(prompt), *first.output, *user("Thank you.")]
    return of_response(CLIENT.responses.create(input=history, **SHORT_RESPONSE))


def response_chained(prompt: str) -> dict:
    """A further turn, by the id of the one before."""
    first = CLIENT.responses.create(input=prompt, store=True, **SHORT_RESPONSE)
    fetched = CLIENT.responses.retrieve(first.id)
    assert fetched.id == first.id
    return of_response(CLIENT.responses.create(input="Thank you.", previous_response_id=first.id, **SHORT_RESPONSE))


serve(
    {
        "chat": chat,
        "chat_stream": chat_stream,
        "chat_stream_first_chunk_empty": chat_stream_first_chunk_empty,
        "chat_helper": chat_helper,
        "chat_parse": chat_parse,
        "chat_tool": chat_tool,
        "chat_history": chat_history,
        "completion": completion,
        "completion_stream": completion_stream,
        "response": response,
        "response_stream": response_stream,
        "response_parse": response_parse,
        "response_history": response_history,
        "response_chained": response_chained,
    }
)
