"""What each client makes of a block in style `refusal`, and which class of error it raises in style `error`."""

from dataclasses import dataclass

from tests.serving.world import MESSAGE

Facts = dict[str, str]

TEXT = {"text": MESSAGE, "finish": "content_filter"}
REFUSAL = {"refusal": MESSAGE, "finish": "content_filter"}
BOTH = TEXT | REFUSAL
DECLINED = {"text": MESSAGE, "finish": "refusal"}
"""In Anthropic's words."""


def raises(error: str, said: str = MESSAGE) -> Facts:
    """An error of that class, whose text has `said` in it."""
    return {"error": error, "said": said}


@dataclass(frozen=True)
class Outcomes:
    """One client, by its script."""

    script: str
    refused: dict[str, Facts]
    """By case; a case's name begins with the API that it asks."""
    error: str
    error_of_messages: str = ""
    """The class on Anthropic's API, if it is another."""
    followed: tuple[str, ...] = ()
    """Cases in which the blocked answer is the next request's history."""
    not_refused: tuple[str, ...] = ()
    """Cases in which the client takes no notice of a refusal."""

    unable: tuple[str, ...] = ()
    """Cases that the lab model has no right answer to, guarded or not: vLLM holds a tool's arguments to no schema
    there."""
    doubled: tuple[str, ...] = ()
    """Cases in which the client joins content and refusal: the policy has to put the message into one of them."""

    def error_on(self, api: str) -> str:
        """Return the class that it raises on one of the APIs."""
        return self.error_of_messages if api == "message" and self.error_of_messages else self.error


NOT_PARSED = raises("ContentFilterFinishReasonError", "rejected by the content filter")

OPENAI = Outcomes(
    "openai_client.py",
    {
        "chat": BOTH,
        "chat_stream": BOTH,
        "chat_stream_first_chunk_empty": BOTH,
        "chat_helper": NOT_PARSED,
        "chat_parse": NOT_PARSED,
        "chat_tool": BOTH,
        "completion": TEXT,
        "completion_stream": TEXT,
        "response": REFUSAL,
        "response_stream": REFUSAL,
        "response_parse": REFUSAL,
    },
    error="BadRequestError",
    followed=("chat_history", "response_history", "response_chained"),
)

ANTHROPIC = Outcomes(
    "anthropic_client.py",
    dict.fromkeys(["message", "message_stream", "message_prefilled"], DECLINED),
    error="BadRequestError",
    followed=("message_history",),
)

LANGCHAIN = Outcomes(
    "langchain_client.py",
    {
        "chat": BOTH,
        "chat_stream": TEXT,
        "chat_stream_first_chunk_empty": TEXT,
        "chat_structured": NOT_PARSED,
        "chat_structured_stream": NOT_PARSED,
        "response": REFUSAL,
        "response_stream": REFUSAL,
        "response_structured": raises("OpenAIRefusalError"),
        "message": DECLINED,
        "message_stream": DECLINED,
    },
    error="OpenAIInvalidRequestError",
    error_of_messages="AnthropicInvalidRequestError",
)

LITELLM = Outcomes(
    "litellm_client.py",
    {
        "chat": BOTH,
        "chat_stream": TEXT,
        "chat_stream_first_chunk_empty": TEXT,
        # Its router asks the model that it was given for such a case.
        "chat_fallback": {"text": "What another model says.", "finish": "stop"},
        "response": REFUSAL,
        "message": TEXT,
    },
    error="BadRequestError",
)

AGENTS = Outcomes(
    "agents_client.py",
    dict.fromkeys(["chat", "chat_stream", "chat_structured"], raises("ModelRefusalError"))
    | dict.fromkeys(
        ["response", "response_stream", "response_structured"], raises("ModelBehaviorError", "reason='content_filter'")
    ),
    error="BadRequestError",
)

INSTRUCTOR = Outcomes(
    "instructor_client.py",
    {"chat_tools": raises("InstructorRetryException")},
    error="InstructorRetryException",
    not_refused=("chat_json_schema",),
    unable=("chat_tools",),
)

PYDANTIC_AI = Outcomes(
    "pydantic_ai_client.py",
    dict.fromkeys(
        [
            *("chat", "chat_stream", "chat_tool_output", "chat_native_output"),
            *("response", "response_stream", "response_structured"),
        ],
        raises("ContentFilterError"),
    )
    | dict.fromkeys(["message", "message_stream"], TEXT),
    error="ModelRequestRejectedError",
    unable=("chat_tool_output",),
)

SHOWN = {"text": MESSAGE, "finish": "content-filter"}
NO_OBJECT = raises("AI_NoObjectGeneratedError", "could not parse the response") | SHOWN

AI_SDK = Outcomes(
    "ai_sdk_client.mjs",
    dict.fromkeys(
        [
            *("compatible", "compatible_stream", "compatible_loop"),
            *("chat", "chat_stream", "chat_loop"),
            *("response", "response_stream", "message", "message_stream"),
        ],
        SHOWN,
    )
    | dict.fromkeys(["compatible_structured", "chat_structured", "response_structured"], NO_OBJECT),
    error="AI_APICallError",
    doubled=(
        *("compatible", "compatible_stream", "compatible_loop", "compatible_structured"),
        *("chat", "chat_stream", "chat_loop", "chat_structured"),
    ),
)

CLIENTS = (OPENAI, ANTHROPIC, LANGCHAIN, LITELLM, AGENTS, INSTRUCTOR, PYDANTIC_AI, AI_SDK)
