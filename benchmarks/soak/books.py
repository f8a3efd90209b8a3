"""The books: whether every prompt was scored or counted as unscored, exactly.

All numbers are differences between two readings at rest, so that the start-up canary and the warm-up are in none of
them.

The equation is about prompts; a prompt with n completions is one, a request with four prompts is four:

    scored + unscored  =  given  =  finished + given up + refused

- scored: `foreguard_score_count` of any probe. Each scored prompt has one score of each, so all of them must agree.
- unscored: `foreguard_unscored_total`, all reasons.
- given: prompts that the guard passed to vLLM's `generate`, counted by the soak's insider between the two.
- finished: `vllm:request_params_n_count`, vLLM's own. It is observed once a prompt, when the last of its n completions
  has ended. The better known `vllm:request_success_total` counts completions, not prompts, and of prompts that a client
  left it counts those completions that had ended; neither counts what a client left, with or without
  `finished_reason="abort"`.
- given up: prompts of which vLLM still had something when it was told that nobody waits, counted by the insider where
  vLLM's output processor drops them. A prompt that has finished when its client leaves is finished, not given up.
- refused: prompts that vLLM's `generate` refused before it had them, such as one with an impossible grammar.

Besides: decided + aborted = given, where decided is `foreguard_requests_total` and aborted is
`foreguard_unscored_total{reason="aborted"}`; and every kind of request brought as many prompts as its client meant to
send.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from benchmarks.soak.bulk import BULK
from benchmarks.soak.kinds import KINDS, Kind
from benchmarks.soak.mix import Mixed

_ACTIONS = ("allow", "flag", "steer", "block")


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that must hold, whether it does, and the numbers that say so."""

    what: str
    holds: bool
    numbers: str


@dataclass(frozen=True, slots=True)
class Reading:
    """What the server says of itself at one time."""

    metrics: Mapping[str, float]
    """Samples of /metrics, by name with labels."""
    ledger: Mapping[str, Any]

    def total(self, name: str, *labels: str) -> float:
        """Return the sum of a metric's samples that have all `labels`, each as `key="value"`."""
        samples = self.metrics.items()
        return sum(value for head, value in samples if head.split("{")[0] == name and all(w in head for w in labels))


@dataclass(frozen=True, slots=True)
class Books:
    """Two readings, and the differences between them."""

    before: Reading
    after: Reading

    def _since(self, name: str, *labels: str) -> int:
        return round(self.after.total(name, *labels) - self.before.total(name, *labels))

    def _entry(self, kind: str, column: str) -> int:
        count: int = self.after.ledger["kinds"].get(kind, {}).get(column, 0)
        return count - int(self.before.ledger["kinds"].get(kind, {}).get(column, 0))

    def _entries(self, column: str) -> int:
        return sum(self._entry(kind, column) for kind in self.after.ledger["kinds"])

    @property
    def scored(self) -> dict[str, int]:
        """Scored prompts, as each probe's histogram counts them."""
        heads = [head for head in self.after.metrics if head.startswith("foreguard_score_count{")]
        return {head.partition('probe="')[2].partition('"')[0]: self._since(*_split(head)) for head in heads}

    @property
    def unscored(self) -> dict[str, int]:
        """Unscored prompts, by reason."""
        heads = [head for head in self.after.metrics if head.startswith("foreguard_unscored_total{")]
        return {head.partition('reason="')[2].partition('"')[0]: self._since(*_split(head)) for head in heads}

    @property
    def actions(self) -> dict[str, int]:
        """Decided prompts, by action."""
        return {action: self._since("foreguard_requests_total", f'action="{action}"') for action in _ACTIONS}

    @property
    def given(self) -> int:
        """Prompts that the guard passed to vLLM."""
        return self._entries("prompts")

    @property
    def finished(self) -> int:
        """Prompts whose last completion has ended, by vLLM's own count."""
        return self._since("vllm:request_params_n_count")

    @property
    def given_up(self) -> int:
        """Prompts that vLLM dropped because nobody waited for them."""
        return int(self.after.ledger["given_up"] - self.before.ledger["given_up"])

    @property
    def refused(self) -> int:
        """Prompts that vLLM refused when it was given them."""
        return self.given - int(self.after.ledger["added"] - self.before.ledger["added"])

    @property
    def left(self) -> int:
        """Prompts whose client did not take the last output."""
        return self._entries("left")

    @property
    def answered(self) -> int:
        """HTTP requests that were answered or given up."""
        return self._entries("answered")

    def checks(self, mixed: Mixed, bulk: Mapping[str, Any]) -> Iterator[Check]:
        """Yield everything that must hold of the books."""
        yield from self._equation()
        yield from self._by_kind(mixed, bulk)
        yield _equal("HTTP requests that arrived were all ended", self._entries("requests"), self.answered)
        seen = " ".join(f"{action} {count}" for action, count in self.actions.items())
        everything = all(self.actions.values()) and self.unscored["aborted"] > 0
        yield Check("every action was taken, and prompts were aborted", everything, seen)
        numbers = f"{mixed.num_surprises} of {mixed.sent.total()}"
        yield Check("answers other than their kind must get", mixed.num_surprises == 0, numbers)

    def _equation(self) -> Iterator[Check]:
        scored, unscored = self.scored, sum(self.unscored.values())
        one = next(iter(scored.values()))
        yield Check("every probe scored the same prompts", set(scored.values()) == {one}, f"{one} by {len(scored)}")
        yield _equal(f"scored + unscored ({one} + {unscored}) = prompts given to vLLM", one + unscored, self.given)
        parts = f"{self.finished} + {self.given_up} + {self.refused}"
        ends = self.finished + self.given_up + self.refused
        yield _equal(f"scored + unscored = finished + given up + refused ({parts})", one + unscored, ends)
        aborted = self.unscored["aborted"]
        yield _equal("decided + aborted = prompts given to vLLM", sum(self.actions.values()) + aborted, self.given)
        yield _equal("faults inside the guard", unscored - aborted, 0)
        yield _equal("errors counted", self._since("foreguard_errors_total"), 0)

    def _by_kind(self, mixed: Mixed, bulk: Mapping[str, Any]) -> Iterator[Check]:
        completed, failed = bulk["completed"], bulk["failed"]
        yield _equal("bulk: requests that failed", failed, 0)
        yield _equal("bulk: prompts = completed requests", self._entry(BULK, "prompts"), completed)
        yield _equal("bulk: prompts answered to the end", self._entry(BULK, "ended"), completed)
        wrong = [self._wrong(kind, mixed.sent[kind.name]) for kind in KINDS]
        found = "; ".join(filter(None, wrong))
        yield Check("every kind brought the prompts that it sent", not found, found or f"{len(KINDS)} kinds")

    def _wrong(self, kind: Kind, sent: int) -> str:
        prompts, ended, left, failed = (self._entry(kind.name, c) for c in ("prompts", "ended", "left", "failed"))
        meant = sent * kind.prompts
        if kind.is_cut:
            right = ended + left == prompts <= meant and failed == 0
        elif kind.fails_in_engine:
            right = (prompts, ended, left, failed) == (meant, 0, 0, meant)
        else:
            right = (prompts, ended, left, failed) == (meant, meant, 0, 0)
        return (
            "" if right else f"{kind.name}: {meant} sent, {prompts} given, {ended} ended, {left} left, {failed} failed"
        )


def _split(head: str) -> tuple[str, str]:
    name, _, labels = head.partition("{")
    return name, labels.rstrip("}")


def _equal(what: str, found: int, expected: int) -> Check:
    return Check(what, found == expected, f"{found}" if found == expected else f"{found}, not {expected}")
