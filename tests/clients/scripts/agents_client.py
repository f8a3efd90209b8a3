"""OpenAI's Agents SDK: its loop on both of OpenAI's APIs, with a tool that the model may call."""

import asyncio

from agents import (
    Agent,
    ModelSettings,
    OpenAIChatCompletionsModel,
    OpenAIResponsesModel,
    Runner,
    function_tool,
)
from asked import MODEL, V1, serve
from openai import AsyncOpenAI
from pydantic import BaseModel


class Answer(BaseModel):
    """A structured answer, short enough for a small model."""

    yes: bool


@function_tool
def look_up(n: int) -> str:
    """Look a number up."""
    return str(n)


def agent(kind, **options) -> Agent:
    model = kind(model=MODEL, openai_client=AsyncOpenAI(base_url=V1))
    settings = ModelSettings(max_tokens=64, temperature=0)
    return Agent(name="lab", model=model, model_settings=settings, **options)


def seen(done) -> dict:
    structured = isinstance(done.final_output, Answer)
    return {"more": {"own": True}} if structured else {"text": done.final_output}


def ran(kind, **options):
    async def run(prompt: str) -> dict:
        done = await Runner.run(agent(kind, **options), prompt, max_turns=4)
        return seen(done)

    return lambda prompt: asyncio.run(run(prompt))


def streamed(kind, **options):
    async def run(prompt: str) -> dict:
        done = Runner.run_streamed(agent(kind, **options), prompt, max_turns=4)
        async for _ in done.stream_events():
            pass
        return seen(done)

    return lambda prompt: asyncio.run(run(prompt))


serve(
    {
        "chat": ran(OpenAIChatCompletionsModel, tools=[look_up]),
        "chat_stream": streamed(OpenAIChatCompletionsModel, tools=[look_up]),
        "chat_structured": ran(OpenAIChatCompletionsModel, output_type=Answer),
        "response": ran(OpenAIResponsesModel),
        "response_stream": streamed(OpenAIResponsesModel),
        "response_structured": ran(OpenAIResponsesModel, output_type=Answer),
    }
)
