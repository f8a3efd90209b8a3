"""The rows of a prompt file: JSON objects a line, one JSON list, CSV with a header, or Parquet."""

import codecs
import csv
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from probes.errors import PromptError

_MOST_IN_A_CELL = 2**26
"""Letters. Python's own limit, 131,072, is less than a long document."""
Row = tuple[int, str | dict[str, Any]]
"""Its line in the file (its number, in Parquet and in a list), and JSON or what it holds."""


def read_rows(raw: bytes, path: Path) -> Iterator[Row]:
    """Yield the rows of the file `path`, whose content is `raw`. Raises `PromptError` naming file, line and remedy.

    What kind of file it is, its name says: `.csv`, `.parquet`, or else JSON. A byte-order mark is skipped.
    """
    if path.suffix == ".parquet":
        yield from _parquet(raw, path.name)
        return
    text = _text(raw.removeprefix(codecs.BOM_UTF8), path.name)
    if path.suffix == ".csv":
        yield from _csv(text, path.name)
    elif text.lstrip().startswith("["):
        yield from _list(text, path.name)
    else:
        # Not splitlines(): JSON strings may hold raw U+2028 and the like, which end no line of a JSONL file.
        yield from ((number, line) for number, line in enumerate(text.split("\n"), start=1) if line.strip())


def _text(raw: bytes, name: str) -> str:
    try:
        return raw.decode()
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise PromptError("is not UTF-8", field=f"{name}:{line}", remedy="save the file as UTF-8") from error


def _csv(text: str, name: str) -> Iterator[Row]:
    csv.field_size_limit(_MOST_IN_A_CELL)
    reader = csv.DictReader(io.StringIO(text, newline=""), strict=True, restkey="")
    try:
        for row in reader:
            if "" in row:
                raise PromptError(
                    "has more cells than the header",
                    field=f"{name}:{reader.line_num}",
                    remedy="put quotes around texts that hold commas",
                )
            yield reader.line_num, {key: value for key, value in row.items() if value}
    except csv.Error as error:
        raise PromptError(
            f"is no CSV: {error}", field=f"{name}:{reader.line_num}", remedy="close quotes, and double those within"
        ) from error


def _list(text: str, name: str) -> Iterator[Row]:
    try:
        rows = json.loads(text)
    except json.JSONDecodeError as error:
        raise PromptError(error.msg, field=f"{name}:{error.lineno}", remedy="write one whole JSON list") from error
    except RecursionError as error:
        raise PromptError("is nested too deeply", field=name, remedy="write one whole JSON list") from error
    yield from enumerate(rows, start=1)


def _parquet(raw: bytes, name: str) -> Iterator[Row]:
    try:
        from pyarrow import ArrowException, BufferReader, parquet
    except ImportError as error:
        raise PromptError(
            "reading Parquet needs pyarrow, which is not installed", field=name, remedy="pip install pyarrow"
        ) from error
    try:
        rows = parquet.read_table(BufferReader(raw)).to_pylist()
    except (ArrowException, OSError) as error:
        raise PromptError(f"is no Parquet file: {error}", field=name, remedy="name a Parquet file") from error
    yield from ((number, _without_nulls(row)) for number, row in enumerate(rows, start=1))


def _without_nulls(value: Any) -> Any:
    """Drop what is null: Parquet fills in every key that any row has."""
    if isinstance(value, dict):
        return {key: _without_nulls(each) for key, each in value.items() if each is not None}
    return [_without_nulls(each) for each in value] if isinstance(value, list) else value
