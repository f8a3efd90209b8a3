"""The page Health: the server's processes, and the decision store."""

from datetime import UTC, datetime

from guard.store.status import status
from serving.console.frame import in_thread, nothing_yet, shown, stored, table
from serving.console.source import Source

_MEBIBYTE = 2**20


async def health(source: Source) -> None:
    """Show what runs, and how the store does."""
    await shown(_processes, source)
    await shown(_store, source)


async def _processes(source: Source) -> None:
    if source.desk is None:
        nothing_yet("This console stands beside a fleet: ask each server's /health, or its metrics.")
        return
    found = await in_thread(source.desk.processes)
    if not found:
        nothing_yet("No process of the server has told what it goes by. Is it up, and has it the same --state folder?")
        return
    rows = [
        (each.pid, each.policy, each.digest, f"{datetime.fromtimestamp(each.since, UTC):%H:%M:%S}", each.problem or "")
        for each in found
    ]
    table("Processes", ("process", "policy", "digest", "since (UTC)", "problem"), rows)


async def _store(source: Source) -> None:
    store = source.store
    found = await stored(source, lambda: status(store))
    rows = [
        ("address", found.store),
        ("decisions", found.decisions),
        ("prompts kept", found.texts),
        ("labels given", found.labels),
        ("size", f"{found.size / _MEBIBYTE:,.1f} MiB"),
        ("first decision", f"{found.first:%Y-%m-%d %H:%M:%S}" if found.first else ""),
        ("last decision", f"{found.last:%Y-%m-%d %H:%M:%S}" if found.last else ""),
    ]
    table("Decision store", ("of the store", "value"), rows)
