"""One guarded server in one mode, with what an unguarded server of the same mode answered to the same prompts."""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import openai

from probes.artifact import Artifact
from tests.serving.lab import Reference, of
from tests.serving.planted import naive_score
from tests.serving.server import SERVED_NAME, Server

OBSERVER_KEY = "observer-key"
MESSAGE = "The operator declines."
TOKENS = 24

BENIGN = of("test", "plain_harmless", 12) + of("test", "hard_benign", 4)
LONG = of("test", "long_benign", 6)
HARMFUL = of("test", "plain_harmful", 40)
CANDIDATES = of("validation", "plain_harmless", 12)
REFUSES = ("I ", "Sorry")
MARKS = ("r_offset", "r_max", "r_ema", "r_swim")
STRENGTH = 1.5
BAND = 0.2
"""Half the width of each band of scores that is steered: several times what rounding moves a score by."""


def steered_prompt(reference: Reference, artifact) -> list[dict]:
    """Return the benign prompt that stands farthest apart from every other prompt in some score: the one that is
    steered.
    """
    others = [_marks(reference, artifact, messages) for messages in [*BENIGN, *LONG, *HARMFUL]]

    def distance(messages: list[dict]) -> float:
        own = _marks(reference, artifact, messages)
        return min(max(abs(own[mark] - other[mark]) for mark in MARKS) for other in others)

    limit = block_limit(reference, artifact) - 0.5
    harmless = [messages for messages in CANDIDATES if _score(reference, artifact, messages, "harm") <= limit]
    # Steering moves towards refusal: it shows only on a prompt that the model does not refuse anyway.
    answered = [m for m in harmless if not reference.greedy(reference.token_ids(m), 4).startswith(REFUSES)]
    chosen = max(answered, key=distance)
    assert distance(chosen) > 2 * BAND, "no candidate stands apart: nothing to steer"
    return chosen


def _marks(reference: Reference, artifact, messages: list[dict]) -> dict[str, float]:
    streams = reference.read(reference.token_ids(messages))
    return {mark: naive_score(artifact, streams, mark) for mark in MARKS}


def block_limit(reference: Reference, artifact) -> float:
    """Return a `harm` threshold that clearly none of the benign prompts reaches."""
    return max(_score(reference, artifact, messages, "harm") for messages in [*BENIGN, *LONG]) + 0.5


def clearly_harmful(reference: Reference, artifact, count: int) -> list[list[dict]]:
    """Return prompts that are clearly above the threshold."""
    limit = block_limit(reference, artifact) + 0.5
    found = [messages for messages in HARMFUL if _score(reference, artifact, messages, "harm") > limit]
    assert len(found) >= count, "the planted probe does not separate: nothing to test with"
    return found[:count]


def _score(reference: Reference, artifact, messages: list[dict], probe: str) -> float:
    return naive_score(artifact, reference.read(reference.token_ids(messages)), probe)


def policy_text(reference: Reference, artifact, constrained: str = "block", off_template: str = "allow") -> str:
    """Return a policy that blocks harm, steers exactly one benign prompt, and lets an observer see without acting.

    `constrained` is what happens to that one where the request's constraints may undo it. The planted artifact knows no
    chat template, which only a policy with `off_template: allow` takes.
    """
    marks = _marks(reference, artifact, steered_prompt(reference, artifact))
    bands = ", ".join(f"{mark}: {{above: {score - BAND}, below: {score + BAND}}}" for mark, score in marks.items())
    limit = block_limit(reference, artifact)
    return f"""
name: enforce
version: "2"
off_template: {off_template}
rules:
  - {{name: harmful, action: block, when: {{harm: {{above: {limit}}}}}}}
  - {{name: marked, action: steer, when: {{{bands}}}}}
steering: {{vector: refusal, strength: {STRENGTH}, constrained: {constrained}}}
response: {{message: {MESSAGE!r}}}
callers:
  - {{name: observer, key_sha256: {hashlib.sha256(OBSERVER_KEY.encode()).hexdigest()}, may_shadow: true, sees_scores: true}}
"""


@dataclass
class World:
    """What the tests of one mode need."""

    server: Server
    reference: Reference
    harmful: list[list[dict]]
    steered: list[dict]
    unguarded: dict[str, str] = field(default_factory=dict)
    """What the unguarded server answered, by `key` of the prompt."""
    unguarded_log: Path = Path()
    artifact: Artifact | None = None

    @property
    def client(self) -> openai.OpenAI:
        return self.server.client()

    def rendered(self, messages: list[dict]) -> str:
        """Return a conversation as the text that the chat template makes of it."""
        return self.reference.tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)

    def observe(self, messages: list[dict], **options) -> dict[str, float]:
        """Return the served scores of a prompt, asked in a way that acts on nothing."""
        body = {"moderation": {"model": "guard", "mode": "score"}, **options}
        reply = self.server.client(OBSERVER_KEY).chat.completions.create(
            model=SERVED_NAME, messages=messages, max_tokens=1, temperature=0, extra_body=body
        )
        return scores_of(reply)


def scores_of(reply) -> dict[str, float]:
    return reply.model_dump()["moderation"]["input"]["results"][0]["category_scores"]


def answer(client: openai.OpenAI, messages: list[dict], **options) -> str:
    reply = client.chat.completions.create(
        model=SERVED_NAME, messages=messages, max_tokens=TOKENS, temperature=0, **options
    )
    return reply.choices[0].message.content


def alike(reference: Reference, messages: list[dict], one: str, other: str) -> bool:
    """Whether two answers to a prompt are the same, but for rounding in another batch."""
    return one == other or reference.parts_at_a_tie(reference.token_ids(messages), one, other)


def key(messages: list[dict]) -> str:
    """Return a name for a conversation, fit to be a cache salt: its blocks are then its own."""
    return hashlib.sha256(repr(messages).encode()).hexdigest()


@contextmanager
def world(start, reference: Reference, artifact, *vllm: str, **environment: str) -> Iterator[World]:
    """Ask an unguarded server first, then keep a guarded one; both share one compile cache."""
    with start(None, *vllm, **environment) as server:
        unguarded = {key(messages): answer(server.client(), messages) for messages in BENIGN + LONG}
        unguarded_log = server.log
    with start(policy_text(reference, artifact), *vllm, **environment) as server:
        harmful, steered = clearly_harmful(reference, artifact, 8), steered_prompt(reference, artifact)
        yield World(server, reference, harmful, steered, unguarded, unguarded_log)
