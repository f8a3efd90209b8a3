"""What the guard tells of a request beside its answer: in headers, and in the body's entry `guardrail`."""

from serving.api.exchange import Exchange
from serving.api.shapes import Json


def guard_headers(exchange: Exchange) -> dict[str, str]:
    """Return the response headers of a request that has prompts."""
    headers = {"x-guardrail-decision": exchange.decision, "x-guardrail-policy": exchange.policy.label}
    if exchange.verdict is not None:
        headers["x-guardrail-event-id"] = exchange.verdict.event_id
    if exchange.answer is not None:
        headers["x-guardrail-answer"] = exchange.answer.action.value
    return headers


def guardrail(exchange: Exchange) -> Json:
    """Return the body's entry: many clients show no headers."""
    category, told = None, {"decision": exchange.decision, "policy": exchange.policy.label}
    if exchange.verdict is not None:
        told["event_id"] = exchange.verdict.event_id
        category = exchange.verdict.category
    if exchange.answer is not None:
        told["answer"] = exchange.answer.action.value
        category = category or exchange.answer.category
    return told | ({"category": category} if category and exchange.policy.response.category else {})
