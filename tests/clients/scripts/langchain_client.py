"""LangChain's models for OpenAI's two APIs, and for Anthropic's."""

from asked import MODEL, URL, V1, serve
from langchain_anthropic import ChatAnthropic
from langchain_openai import ChatOpenAI
from pydantic import BaseModel

CHAT = ChatOpenAI(base_url=V1, model=MODEL, max_tokens=64, temperature=0)
RESPONSES = ChatOpenAI(base_url=V1, model=MODEL, max_tokens=64, temperature=0, use_responses_api=True)
MESSAGES = ChatAnthropic(base_url=URL, model=MODEL, max_tokens=64, temperature=0)
FIRST_CHUNK_EMPTY = {"moderation": {"model": "any", "mode": "score"}}


class Answer(BaseModel):
    """A structured answer, short enough for a small model."""

    yes: bool


def of_message(message) -> dict:
    about = message.response_metadata
    incomplete = (about.get("incomplete_details") or {}).get("reason")
    parts = [part for part in message.content if isinstance(part, dict)]
    refused = [part["refusal"] for part in parts if part.get("type") == "refusal"]
    return {
        "text": message.text,
        "refusal": message.additional_kwargs.get("refusal") or "".join(refused) or None,
        "finish": about.get("finish_reason") or about.get("stop_reason") or incomplete or about.get("status"),
    }


def invoked(model):
    return lambda prompt: of_message(model.invoke(prompt))


def streamed(model, **options):
    def run(prompt: str) -> dict:
        chunks = list(model.stream(prompt, **options))
        whole = chunks[0]
        for chunk in chunks[1:]:
            whole += chunk
        return of_message(whole)

    return run


def structured(model):
    return lambda prompt: {"more": {"own": model.with_structured_output(Answer).invoke(prompt).model_dump()}}


def structured_stream(model):
    def run(prompt: str) -> dict:
        *_, last = model.with_structured_output(Answer).stream(prompt)
        return {"more": {"own": last.model_dump()}}

    return run


serve(
    {
        "chat": invoked(CHAT),
        "chat_stream": streamed(CHAT),
        "chat_stream_first_chunk_empty": streamed(CHAT, extra_body=FIRST_CHUNK_EMPTY, stream_usage=True),
        "chat_structured": structured(CHAT),
        "chat_structured_stream": structured_stream(CHAT),
        "response": invoked(RESPONSES),
        "response_stream": streamed(RESPONSES),
        "response_structured": structured(RESPONSES),
        "message": invoked(MESSAGES),
        "message_stream": streamed(MESSAGES),
    }
)
