"""`python -m benchmarks.fleet`: a policy rolls out over 1,000 replicas, and what console and audit log say of it.

Replicas take the change in after a delay of their own. One crashes on the way and comes back; one keeps a stale file;
clocks are off, one by five minutes. Each second every replica decides a prompt, and the decisions go into a real store.
What the store says is compared with what is true, each second: no replica may be said to have decided under a policy
that it did not decide under, and each must be heard of again once it decides.
"""

import random
import tempfile
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated

import numpy as np
import typer

from benchmarks.machine import machine
from guard.policy_history import Change, PolicyHistory, revision_of
from guard.store.batch import Batches
from guard.store.engine import open_store
from guard.store.migration import upgrade
from guard.store.replicas import replicas
from guard.store.stored import StoredDecision
from guard.verdict import Action, Mode

_START = datetime(2026, 1, 1, tzinfo=UTC)
_CHANGED_AT, _CRASHED_AT, _BACK_AT, _SECONDS = 10.0, 11.0, 40.0, 60
_MEDIAN_S, _SPREAD = 0.4, 0.5
"""Of the delay until a replica has taken a change in: as measured on a live server, and its logarithm's deviation."""
_SKEW_S, _FAR_OFF_S = 2.0, 300.0
_BEFORE, _AFTER = "old", "new"
_LOST = 0.02
"""Share of decisions that never reach the store: it is allowed to drop them."""


@dataclass(slots=True)
class Replica:
    """One server."""

    name: str
    takes_in_at: float
    skew: float = 0.0
    is_stale: bool = False
    crashes: bool = False
    decided: list[str] = field(default_factory=list)
    """The policies of its decisions that reached the store, in order."""

    def is_up(self, now: float) -> bool:
        """Whether it answers."""
        return not (self.crashes and _CRASHED_AT <= now < _BACK_AT)

    def policy(self, now: float) -> str:
        """Return the policy that is in force in it."""
        came_back = self.crashes and now >= _BACK_AT  # it reads the file when it starts
        return _AFTER if came_back or (now >= self.takes_in_at and not self.is_stale) else _BEFORE


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a rollout came to."""

    wrong: int
    """Statements about a replica's last decision that were not true."""
    silent: int
    """Replicas that decided and were not heard of."""
    told_after: float
    """Seconds from the change until all replicas that took it in were told to have."""
    stale: tuple[str, ...]
    """Replicas that the store says still decide by the old policy at the end."""
    slowest: float
    """Of the questions to the store, in seconds."""


def main(
    count: Annotated[int, typer.Option(min=10, help="Replicas.")] = 1000,
    seed: Annotated[int, typer.Option(help="Of delays, clocks and losses.")] = 0,
) -> None:
    """Roll a change out, and say whether the console told the truth at each moment."""
    with tempfile.TemporaryDirectory() as folder:
        found = roll_out(Path(folder), count, seed)
    typer.echo(f"{count:,} replicas, {_SECONDS} s, {_LOST:.0%} of decisions lost; {machine()}")
    typer.echo(f"wrong statements: {found.wrong}; replicas not heard of: {found.silent}")
    typer.echo(f"all that took the change in were told to have {found.told_after:.0f} s after it")
    typer.echo(f"still by the old policy at the end: {', '.join(found.stale)}")
    typer.echo(f"slowest question to the store: {found.slowest * 1e3:.0f} ms")


def roll_out(folder: Path, count: int, seed: int) -> Outcome:
    """Simulate the rollout with a store and an audit log in `folder`."""
    chance = random.Random(seed)  # noqa: S311 - reproducible, not secret
    fleet, engine = _fleet(count, chance), open_store(f"sqlite:///{folder}/decisions.db")
    upgrade(engine)
    batches, history = Batches(engine), PolicyHistory(folder)
    wrong = silent = 0
    told_after, slowest = float("nan"), 0.0
    for now in range(_SECONDS):
        if now == _CHANGED_AT:
            _note(history)
        batches.write([made for each in fleet if (made := _decision(each, float(now), chance)) is not None])
        began = time.perf_counter()
        said = {each.replica: each.policy for each in replicas(engine)}
        slowest = max(slowest, time.perf_counter() - began)
        wrong += sum(each.name in said and said[each.name] != each.decided[-1] for each in fleet if each.decided)
        silent += sum(each.name not in said for each in fleet if each.decided)
        taken_in = [each for each in fleet if each.policy(now) == _AFTER]
        if now >= _CHANGED_AT and np.isnan(told_after) and all(said.get(each.name) == _AFTER for each in taken_in):
            told_after = now - _CHANGED_AT if len(taken_in) >= count - 2 else told_after
    stale = tuple(sorted(name for name, policy in said.items() if policy == _BEFORE))
    assert [each.who for each in history.changes()] == ["ada"]  # noqa: S101 - the log has the change, once
    engine.dispose()
    return Outcome(wrong, silent, told_after, stale, slowest)


def _fleet(count: int, chance: random.Random) -> list[Replica]:
    fleet = [
        Replica(
            f"pod-{number:04}",
            takes_in_at=_CHANGED_AT + chance.lognormvariate(np.log(_MEDIAN_S), _SPREAD),
            skew=chance.gauss(0, _SKEW_S),
        )
        for number in range(count)
    ]
    fleet[1].crashes, fleet[2].is_stale, fleet[3].skew = True, True, _FAR_OFF_S
    fleet[1].takes_in_at = _CRASHED_AT + 1  # it crashes before it has taken the change in
    return fleet


def _note(history: PolicyHistory) -> None:
    content = b"name: new"
    history.record(Change(who="ada", what="applied", revision=revision_of(content), label=_AFTER), content)


def _decision(replica: Replica, now: float, chance: random.Random) -> StoredDecision | None:
    if not replica.is_up(now) or chance.random() < _LOST:
        return None
    policy = replica.policy(now)
    replica.decided.append(policy)
    return StoredDecision(
        f"fge_{replica.name}_{now:.0f}",
        Action.ALLOW,
        Action.ALLOW,
        scores={"harm": 0.0},
        policy=policy,
        policy_digest=policy,
        mode=Mode.ENFORCE,
        replica=replica.name,
        at=_START + timedelta(seconds=now + replica.skew),
    )


if __name__ == "__main__":
    typer.run(main)
