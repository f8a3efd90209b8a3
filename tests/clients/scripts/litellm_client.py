"""LiteLLM, as a library and as the router that falls back to another model."""

import litellm
from asked import MODEL, URL, V1, serve

KNOWN = {"model": f"hosted_vllm/{MODEL}", "api_base": V1, "max_tokens": 64, "temperature": 0}
OTHER = "What another model says."


def user(prompt: str) -> list[dict]:
    return [{"role": "user", "content": prompt}]


def of_chat(reply) -> dict:
    choice = reply.choices[0]
    refusal = getattr(choice.message, "refusal", None)
    return {"text": choice.message.content, "refusal": refusal, "finish": choice.finish_reason}


def chat(prompt: str) -> dict:
    return of_chat(litellm.completion(messages=user(prompt), **KNOWN))


def chat_stream(prompt: str, **options) -> dict:
    chunks = list(litellm.completion(messages=user(prompt), stream=True, **KNOWN, **options))
    choices = [choice for chunk in chunks for choice in chunk.choices]
    finishes = [choice.finish_reason for choice in choices if choice.finish_reason]
    return {"text": "".join(choice.delta.content or "" for choice in choices), "finish": finishes[-1]}


def chat_stream_first_chunk_empty(prompt: str) -> dict:
    body = {"moderation": {"model": "any", "mode": "score"}}
    return chat_stream(prompt, stream_options={"include_usage": True}, extra_body=body)


def chat_fallback(prompt: str) -> dict:
    """The router asks another model where a prompt is against the first one's content policy."""
    other = {"model": "openai/other", "api_key": "none", "mock_response": OTHER}
    router = litellm.Router(
        model_list=[
            {"model_name": "first", "litellm_params": KNOWN},
            {"model_name": "other", "litellm_params": other},
        ],
        content_policy_fallbacks=[{"first": ["other"]}],
    )
    return of_chat(router.completion(model="first", messages=user(prompt)))


def response(prompt: str) -> dict:
    reply = litellm.responses(input=prompt, model=f"openai/{MODEL}", api_base=V1, max_output_tokens=64, temperature=0)
    parts = [part for item in reply.output for part in item.content]
    details = reply.incomplete_details
    return {
        "text": "".join(getattr(part, "text", None) or "" for part in parts),
        "refusal": "".join(getattr(part, "refusal", None) or "" for part in parts) or None,
        "finish": details.reason if details else reply.status,
    }


def message(prompt: str) -> dict:
    """Anthropic's API, asked by LiteLLM."""
    return of_chat(
        litellm.completion(
            model=f"anthropic/{MODEL}", api_base=URL, messages=user(prompt), max_tokens=64, temperature=0
        )
    )


serve(
    {
        "chat": chat,
        "chat_stream": chat_stream,
        "chat_stream_first_chunk_empty": chat_stream_first_chunk_empty,
        "chat_fallback": chat_fallback,
        "response": response,
        "message": message,
    }
)
