"""`python -m benchmarks.store_outage --artifact A --policy P`: requests per second while the store's database is away.

One guarded server of the lab model, asked in turns with its database there and away: in pairs, each the other way round
than the last, and pairs with the database there on both sides as a control. SQLite is taken away by a lock that another
connection holds; any other database by the commands `--stop` and `--start`.
"""

import asyncio
import sqlite3
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import httpx
import typer

from benchmarks.cost.servers import ENVIRONMENT, ONE_ENGINE_PROCESS
from benchmarks.machine import machine
from benchmarks.paired import Spread, ratio
from serving.offline.process import free_port, guarded_command, running

_AT_ONCE, _SETTLE_S = 8, 1.5
_FLAGS = ["--served-model-name", "m", "--max-model-len", "512", "--enforce-eager", *ONE_ENGINE_PROCESS]
_PROMPT = "Name three fruits that keep well in winter."


def main(
    artifact: Annotated[Path, typer.Option(help="Artifact of the model.")],
    policy: Annotated[Path, typer.Option(help="Policy file.")],
    model: Annotated[Path, typer.Option(help="Model folder.")] = Path("examples/lab/aligned"),
    store: Annotated[str, typer.Option(help="The store's address; a SQLite file where none is named.")] = "",
    stop: Annotated[str, typer.Option(help="Command that takes the database away.")] = "",
    start: Annotated[str, typer.Option(help="Command that brings it back.")] = "",
    pairs: Annotated[int, typer.Option(min=2, help="Pairs, and as many of the control.")] = 16,
    requests: Annotated[int, typer.Option(min=20, help="Requests of each side of a pair.")] = 400,
) -> None:
    """Compare the two, and say the ratio with its spread."""
    with tempfile.TemporaryDirectory() as folder:
        file, port = Path(folder) / "decisions.db", free_port()
        command = guarded_command(model, artifact, policy, port, _FLAGS)
        at = command.index("--")
        command[at:at] = ["--store", store or f"sqlite:///{file}"]
        with running(command, port, Path(folder) / "log", ENVIRONMENT) as server:
            rate = _rate_of(f"{server.url}/v1/chat/completions", requests)
            rate()  # warms it up
            away = _commanded(stop, start) if store else _locked(file)
            found, control = _measured(rate, away, pairs)
            dropped = {
                name: n
                for name, n in server.metrics().items()
                if n and name.startswith("foreguard_store_dropped_total")
            }
    typer.echo(f"{store.partition(':')[0] or 'sqlite'}, {pairs} pairs of {requests} requests; {machine()}")
    typer.echo(f"requests/s, database away / there: {_shown(found)}")
    typer.echo(f"there / there (control): {_shown(control)}")
    typer.echo(f"dropped: {dropped or 'nothing'}")


Switch = Callable[[bool], None]
"""Takes the database away, or brings it back."""


def _measured(rate: Callable[[], float], away: Switch, pairs: int) -> tuple[Spread, Spread]:
    sides: dict[str, list[float]] = {"away": [], "there": [], "first": [], "second": []}
    for number in range(pairs):
        for is_away in (number % 2 == 0, number % 2 == 1):
            away(is_away)
            time.sleep(_SETTLE_S)
            sides["away" if is_away else "there"].append(rate())
        away(False)
        time.sleep(_SETTLE_S)
        order = ("first", "second") if number % 2 == 0 else ("second", "first")
        for side in order:
            time.sleep(_SETTLE_S)
            sides[side].append(rate())
    return ratio(sides["away"], sides["there"]), ratio(sides["first"], sides["second"])


def _rate_of(url: str, requests: int) -> Callable[[], float]:
    body = {"model": "m", "messages": [{"role": "user", "content": _PROMPT}], "max_tokens": 1}

    async def ask(client: httpx.AsyncClient, numbers: "asyncio.Queue[int]") -> None:
        while not numbers.empty():
            numbers.get_nowait()
            (await client.post(url, json=body)).raise_for_status()

    async def ask_all() -> float:
        numbers: asyncio.Queue[int] = asyncio.Queue()
        for number in range(requests):
            numbers.put_nowait(number)
        async with httpx.AsyncClient(timeout=120) as client:
            began = time.perf_counter()
            await asyncio.gather(*(ask(client, numbers) for _ in range(_AT_ONCE)))
            return requests / (time.perf_counter() - began)

    return lambda: asyncio.run(ask_all())


def _locked(file: Path) -> Switch:
    connection = sqlite3.connect(file, isolation_level=None, timeout=30)

    def switch(is_away: bool) -> None:
        if is_away and not connection.in_transaction:
            connection.execute("BEGIN EXCLUSIVE")
        elif not is_away and connection.in_transaction:
            connection.execute("ROLLBACK")

    return switch


def _commanded(stop: str, start: str) -> Switch:
    now = [False]

    def switch(is_away: bool) -> None:
        if is_away != now[0]:
            subprocess.run(stop if is_away else start, shell=True, check=True)  # noqa: S602 - the operator's own
            now[0] = is_away

    return switch


def _shown(found: Spread) -> str:
    return f"{found.median:.3f} ({found.low:.3f} to {found.high:.3f})"


if __name__ == "__main__":
    typer.run(main)
