"""What a soak found, as Markdown: in `docs/benchmarks.md` between two markers."""

from collections.abc import Iterable
from datetime import UTC, datetime
from statistics import median

from benchmarks.machine import machine
from benchmarks.records import code_digest
from benchmarks.soak import memory
from benchmarks.soak.kinds import ANSWERED, CUT, REFUSED, Kind
from benchmarks.soak.run import BULK_AT_ONCE, MIX_AT_ONCE, Soaked

BEGIN, END = "<!-- soak: written by make soak -->", "<!-- end of soak -->"


def markdown(found: Soaked) -> str:
    """Return the result as Markdown."""
    date = datetime.now(UTC).date().isoformat()
    parts = [
        f"{machine()}. Code {code_digest()}, {date}.",
        _load(found),
        _rows("what | found | holds", ((c.what, c.numbers, "yes" if c.holds else "**no**") for c in found.checks)),
        _rows("resident memory, MB | early | late | highest | per 1,000 requests", _memory(found)),
    ]
    return "\n\n".join(parts)


def _load(found: Soaked) -> str:
    books, mixed, requests = found.books, found.mixed, found.bulk["completed"] + found.mixed.sent.total()
    unscored = ", ".join(f"{count} {reason}" for reason, count in books.unscored.items() if count) or "none"
    actions = ", ".join(f"{action} {count:,}" for action, count in books.actions.items())
    return (
        f"{requests:,} requests in {found.seconds:.0f} s ({requests / found.seconds:.0f}/s): "
        f"{found.bulk['completed']:,} by `vllm bench serve`, {BULK_AT_ONCE} at once; with them, {MIX_AT_ONCE} at once, "
        f"{_sent(found, ANSWERED):,} of {len(ANSWERED)} kinds to be answered, {_sent(found, REFUSED):,} of "
        f"{len(REFUSED)} kinds to be refused and {_sent(found, CUT):,} of {len(CUT)} kinds to be cut, of which "
        f"{mixed.cut.total():,} were. {books.given:,} prompts: {actions}; unscored: {unscored}. "
        f"Unfinished in vLLM at any second: {median(found.in_flight):.0f} (median), {max(found.in_flight)} at most."
    )


def _sent(found: Soaked, kinds: Iterable[Kind]) -> int:
    return sum(found.mixed.sent[kind.name] for kind in kinds)


def _memory(found: Soaked) -> Iterable[tuple[str, ...]]:
    told = memory.can_tell(found.samples)
    for name, grew in found.growth.items():
        slope = f"{grew.per_thousand_mb:+.3f}" if told else "too short to tell"
        yield name, f"{grew.early_mb:.1f}", f"{grew.late_mb:.1f}", f"{grew.peak_mb:.1f}", slope


def _rows(header: str, rows: Iterable[tuple[str, ...]]) -> str:
    rule = " | ".join(["---"] * len(header.split("|")))
    return "\n".join(f"| {row} |" for row in (header, rule, *(" | ".join(cells) for cells in rows)))
