"""Instructor: structured output by a tool, and by a JSON schema."""

import instructor
import openai
from asked import MODEL, V1, serve
from pydantic import BaseModel

SHORT = {"model": MODEL, "max_tokens": 64, "temperature": 0}


class Answer(BaseModel):
    """A structured answer, short enough for a small model."""

    yes: bool


def structured(mode: instructor.Mode):
    client = instructor.from_openai(openai.OpenAI(base_url=V1), mode=mode)

    def run(prompt: str) -> dict:
        made = client.chat.completions.create(
            messages=[{"role": "user", "content": prompt}], response_model=Answer, **SHORT
        )
        return {"more": {"own": made.model_dump()}}

    return run


serve(
    {
        "chat_tools": structured(instructor.Mode.TOOLS),
        "chat_json_schema": structured(instructor.Mode.JSON_SCHEMA),
    }
)
