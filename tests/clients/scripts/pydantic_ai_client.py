"""Pydantic AI: its agent's loop on OpenAI's two APIs and on Anthropic's, plain and structured."""

import asyncio

from asked import MODEL, URL, V1, serve
from pydantic import BaseModel
from pydantic_ai import Agent, NativeOutput, ToolOutput
from pydantic_ai.models.anthropic import AnthropicModel
from pydantic_ai.models.openai import OpenAIChatModel, OpenAIResponsesModel
from pydantic_ai.providers.anthropic import AnthropicProvider
from pydantic_ai.providers.openai import OpenAIProvider

SETTINGS = {"max_tokens": 64, "temperature": 0}


class Answer(BaseModel):
    """A structured answer, short enough for a small model."""

    yes: bool


def agent(api: str, **options) -> Agent:
    if api == "message":
        model = AnthropicModel(MODEL, provider=AnthropicProvider(base_url=URL, api_key="none"))
    else:
        kind = {"chat": OpenAIChatModel, "response": OpenAIResponsesModel}[api]
        model = kind(MODEL, provider=OpenAIProvider(base_url=V1, api_key="none"))
    made = Agent(model, model_settings=SETTINGS, **options)

    if api == "chat" and not options:

        @made.tool_plain
        def look_up(n: int) -> str:
            """Look a number up."""
            return str(n)

    return made


def ran(api: str, **options):
    async def run(prompt: str) -> dict:
        done = await agent(api, **options).run(prompt)
        structured = isinstance(done.output, Answer)
        text = None if structured else done.output
        return {"text": text, "finish": done.response.finish_reason, "more": {"own": structured}}

    return lambda prompt: asyncio.run(run(prompt))


def streamed(api: str):
    async def run(prompt: str) -> dict:
        async with agent(api).run_stream(prompt) as done:
            shown = "".join([piece async for piece in done.stream_text(delta=True)])
            return {"text": shown, "finish": done.response.finish_reason}

    return lambda prompt: asyncio.run(run(prompt))


serve(
    {
        "chat": ran("chat"),
        "chat_stream": streamed("chat"),
        "chat_tool_output": ran("chat", output_type=ToolOutput(Answer)),
        "chat_native_output": ran("chat", output_type=NativeOutput(Answer)),
        "response": ran("response"),
        "response_stream": streamed("response"),
        "response_structured": ran("response", output_type=NativeOutput(Answer)),
        "message": ran("message"),
        "message_stream": streamed("message"),
    }
)
