"""What was measured on a device, as a table in `docs/benchmarks.md` between two markers."""

from collections.abc import Iterator
from pathlib import Path

from benchmarks.document import write_between
from benchmarks.gpu.cells import CELLS, Cell
from benchmarks.paired import ratio
from benchmarks.records import Records

BEGIN, END = "<!-- device: written by python -m benchmarks.gpu -->", "<!-- end of device -->"
_FIGURES = {"first_token": "time to first token", "per_token": "time per token"}


def table(records: Records, left_out: list[Cell]) -> str:
    """Return the pairs' ratios as Markdown; cells that the KV cache does not hold are named."""
    about = "; ".join(f"{name} {value}" for name, value in records.about.items())
    parts = [f"{about}.", "\n".join([_HEADER, _RULE, *_rows(records)])]
    if left_out:
        parts.append(f"Too large for the KV cache: {', '.join(cell.name for cell in left_out)}.")
    return "\n\n".join(parts)


_HEADER = (
    "| requests at once x prompt tokens | figure | guarded / unguarded | 95 % interval | pairs | unguarded, median |"
)
_RULE = "| --- | --- | --- | --- | --- | --- |"


def _rows(records: Records) -> Iterator[str]:
    for cell in CELLS:
        pairs = records.pairs(cell.name)
        for figure, words in _FIGURES.items() if pairs else ():
            guarded, unguarded = ([pair[arm][figure] for pair in pairs] for arm in ("guarded", "unguarded"))
            spread = ratio(guarded, unguarded)
            middle = sorted(unguarded)[len(unguarded) // 2] * 1e3
            interval = f"{spread.low:.3f} to {spread.high:.3f}"
            yield f"| {cell.name} | {words} | {spread.median:.3f} | {interval} | {spread.pairs} | {middle:.2f} ms |"


def write(records: Records, left_out: list[Cell], document: Path) -> None:
    """Replace the results in `document`. Raises `ValueError` where it has no markers."""
    write_between(document, BEGIN, END, table(records, left_out))
