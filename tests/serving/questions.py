"""Every way to ask that docs/inventory.md lists, one field at a time, and answers without what names their moment."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import httpx

from tests.serving.field_values import INNER, Json, Prompt, value
from tests.serving.inventory import UNREACHED, inventory
from tests.serving.server import SERVED_NAME

TELLS = "What the answer tells"
_KEEPS = ("include_reasoning", "background")
"""Fields that keep something out of the answer, so that an allowed one may say nothing of the model's."""

Ask = Callable[[Prompt], Json]


@dataclass(frozen=True)
class Way:
    """One route, and the plain question there."""

    name: str
    path: str
    kind: str
    """The class that vLLM reads the body as."""
    plain: Ask


def _greedy(**body: Any) -> Json:
    return {"model": SERVED_NAME, "max_tokens": 4, "temperature": 0, **body}


def _chat(prompt: Prompt) -> Json:
    return _greedy(messages=prompt.messages)


def _text(prompt: Prompt) -> Json:
    return _greedy(prompt=prompt.text)


WAYS = (
    Way("chat", "/v1/chat/completions", "ChatCompletionRequest", _chat),
    Way(
        "batch",
        "/v1/chat/completions/batch",
        "BatchChatCompletionRequest",
        lambda prompt: _greedy(messages=[prompt.messages]),
    ),
    Way("completions", "/v1/completions", "CompletionRequest", _text),
    Way(
        "responses",
        "/v1/responses",
        "ResponsesRequest",
        lambda prompt: {"model": SERVED_NAME, "input": prompt.content, "max_output_tokens": 4, "temperature": 0},
    ),
    Way("messages", "/v1/messages", "AnthropicMessagesRequest", _chat),
    Way(
        "scoring",
        "/generative_scoring",
        "GenerativeScoringRequest",
        lambda prompt: {"model": SERVED_NAME, "query": prompt.text, "items": ["yes"], "label_token_ids": [5, 6]},
    ),
    Way(
        "systemone",
        "/v1/systemone",
        "StructuredDecisionRequest",
        lambda prompt: {
            "model": SERVED_NAME,
            "state": prompt.content,
            "questions": {"q": {"type": "noul", "instructions": "Is it so?"}},
        },
    ),
)
SAGEMAKER = (
    Way("sagemaker-chat", "/invocations", "ChatCompletionRequest", _chat),
    Way("sagemaker-completions", "/invocations", "CompletionRequest", _text),
)
HOLDERS = {"Anthropic": "messages", "QuestionSpec": "systemone"}
"""Where a class inside another is tried, by how its name begins; on chat otherwise."""


def _with_answer(prompt: Prompt) -> list[int]:
    """Return a prompt's tokens with the first tokens of an answer behind them, and one whose prediction is asked
    for.
    """
    return [*prompt.ids, 26, 94, 311, prompt.ids[-1]]


def _read_back(prompt: Prompt) -> Json:
    return _greedy(prompt=_with_answer(prompt), echo=True, logprobs=5)


_ALL = {"return_token_ids": True, "return_tokens_as_token_ids": True, "n": 2, "seed": 3, "temperature": 1}
_CONTINUED = {"continue_final_message": True, "add_generation_prompt": False}
READ_BACK: dict[str, Ask] = {
    "completions, an answer read back": _read_back,
    "completions, an answer read back by prompt_logprobs": lambda p: _greedy(
        prompt=_with_answer(p), prompt_logprobs=5, max_tokens=1
    ),
    "completions, no token but the prompt's": lambda p: _read_back(p) | {"max_tokens": 0},
    "completions, all that tells": lambda p: _read_back(p) | _ALL | {"prompt_logprobs": 5, "logprob_token_ids": [5, 6]},
    "completions, all that tells, streamed": lambda p: (
        _read_back(p)
        | {"return_token_ids": True, "stream": True}
        | {"stream_options": {"include_usage": True, "continuous_usage_stats": True}}
    ),
    "chat, an answer read back by its tokens": lambda p: _greedy(
        messages=p.messages, kv_transfer_params={"prompt_token_ids": _with_answer(p)}, prompt_logprobs=5
    ),
    "chat, an answer read back as one to be continued": lambda p: (
        _greedy(messages=[*p.messages, {"role": "assistant", "content": "Yes, here"}], prompt_logprobs=5) | _CONTINUED
    ),
    "chat, all that tells": lambda p: (
        _greedy(messages=p.messages, echo=True, logprobs=True, top_logprobs=5, prompt_logprobs=5)
        | _ALL
        | {"return_prompt_text": True}
    ),
    "batch, an answer read back": lambda p: _greedy(messages=[p.messages], prompt_logprobs=5, return_prompt_text=True),
    "sagemaker-completions, an answer read back": _read_back,
}
"""Teacher forcing: what the model would say next, asked for as the log-probability of a token of the prompt."""


def _way(name: str) -> Way:
    return next(way for way in (*WAYS, *SAGEMAKER) if way.name == name.split(",")[0])


@dataclass(frozen=True)
class Question:
    """One way to ask about one prompt."""

    name: str
    way: Way
    ask: Ask
    choice: int | None = None
    """Which of the answer's choices is about the prompt, where others are not."""
    tells: bool = False
    """Whether an allowed answer to it has something of the model's."""


def questions() -> list[Question]:
    """Return every question about a prompt alone: plain, with each field, and with an answer to be read back."""
    found = [Question(way.name, way, way.plain, tells=True) for way in (*WAYS, *SAGEMAKER)]
    found += [Question(name, _way(name), ask, tells=True) for name, ask in READ_BACK.items()]
    for heading, kinds in inventory().fields.items():
        if heading != UNREACHED:
            for kind, names in kinds.items():
                found += [_with(way, kind, name, heading) for way in _ways(kind, heading) for name in names]
    return found


def _ways(kind: str, heading: str) -> list[Way]:
    if kind in INNER:
        holder = next((way for prefix, way in HOLDERS.items() if kind.startswith(prefix)), "chat")
        return [way for way in WAYS if way.name == holder]
    ways = [way for way in WAYS if way.kind == kind]
    if heading == TELLS:
        ways += [way for way in SAGEMAKER if way.kind == kind]
        # The batch route's class takes every field, and hands it on.
        ways += [way for way in WAYS if way.name == "batch" and kind == "ChatCompletionRequest"]
    return ways


def _with(way: Way, kind: str, name: str, heading: str) -> Question:
    part = value(kind, name)
    named = name if kind == way.kind else f"{kind}.{name}"

    def ask(prompt: Prompt) -> Json:
        return way.plain(prompt) | (part(prompt) if callable(part) else part)

    tells = heading == TELLS and kind == way.kind and name not in _KEEPS
    return Question(f"{way.name}: {named}", way, ask, tells=tells)


def beside(companion: Prompt) -> list[Question]:
    """Return the questions about a prompt that another one, which passes, stands before in the same request."""
    found = []
    for way in WAYS:
        if way.name not in ("batch", "completions"):
            continue
        key = "messages" if way.name == "batch" else "prompt"
        for name, kinds in [(each, way.kind) for each in inventory().fields[TELLS][way.kind]]:
            part = value(kinds, name)

            def ask(prompt: Prompt, way: Way = way, key: str = key, part: Any = part) -> Json:
                both = [*_listed(way.plain(companion)[key]), *_listed(way.plain(prompt)[key])]
                return way.plain(prompt) | part | {key: both}

            found.append(Question(f"{way.name}, beside another: {name}", way, ask, choice=2 if name == "n" else 1))

    def score(prompt: Prompt) -> Json:
        items = [companion.ids[1:], prompt.ids[1:]]
        return {"model": SERVED_NAME, "query": prompt.ids[:1], "items": items, "label_token_ids": [5, 6]}

    return [*found, Question("scoring, beside another", _way("scoring"), score, choice=1)]


def _listed(prompt: Any) -> list[Any]:
    return prompt if isinstance(prompt, list) else [prompt]


@dataclass(frozen=True)
class Answer:
    """One HTTP answer, without what names the moment or the request."""

    status: int
    headers: tuple[tuple[str, str], ...]
    body: str

    @property
    def decision(self) -> str | None:
        return dict(self.headers).get("x-guardrail-decision")


_NAMES_ONLY = {"date", "content-length", "x-guardrail-event-id", "x-request-id"}
_PASSING = {
    *("id", "created", "created_at", "completed_at", "request_id", "item_id", "response_id", "event_id"),
    # A random name of a thought, by which Anthropic's clients send it back.
    "signature",
    # Of the server, by its model's folder.
    "system_fingerprint",
}


def read(reply: httpx.Response, choice: int | None = None) -> Answer:
    """Return an answer, or what of it is about one `choice`."""
    headers = tuple(sorted((k, v) for k, v in reply.headers.items() if k not in _NAMES_ONLY))
    if reply.headers.get("content-type", "").startswith("text/event-stream"):
        lines = [line.removeprefix("data: ") for line in reply.text.splitlines() if line]
        found = [_of(_parsed(line), choice) for line in lines]
        return Answer(reply.status_code, headers, json.dumps([each for each in found if each is not None]))
    return Answer(reply.status_code, headers, json.dumps(_of(_parsed(reply.text), choice)))


def _parsed(text: str) -> Any:
    try:
        return _lasting(json.loads(text))
    except ValueError:
        return text


def _lasting(content: Any) -> Any:
    if isinstance(content, dict):
        return {key: _lasting(each) for key, each in content.items() if key not in _PASSING}
    return [_lasting(each) for each in content] if isinstance(content, list) else content


def _of(content: Any, choice: int | None) -> Any:
    """Return the choices of an answer, or its scores, from `choice` on; all of it where it has none."""
    if choice is None or not isinstance(content, dict):
        return content
    listed = content.get("choices", content.get("data"))
    return content if listed is None else [each for each in listed if each["index"] >= choice] or None
