"""Writes decisions to a file, JSON lines or Parquet, a page at a time: it takes as little memory for a million.

The file is there once it is whole. Prompts are never exported.
"""

import json
import math
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import fields
from pathlib import Path
from typing import Any

from sqlalchemy import Engine

from guard.store.errors import StoreError
from guard.store.filters import Filters
from guard.store.reader import ALL, Reader, Record
from guard.store.stored import StoredDecision

_INTEGERS = {"prompt_tokens", "answer_tokens"}
_FLOATS = {"seconds", "decision_seconds"}
_LABEL = ("label", "label_by", "label_source")


def export_jsonl(engine: Engine, path: Path, filters: Filters = ALL) -> int:
    """Write decisions as JSON, one on a line, the oldest first, and return how many.

    Raises `StoreError` where the file cannot be written, and `sqlalchemy.exc.DBAPIError` where the store is gone.
    """
    number = 0
    with _whole(path) as unfinished, unfinished.open("w", encoding="utf-8") as out:
        for page in Reader(engine).pages(filters):
            for record in page:
                out.write(json.dumps(_values(record) | {"at": record.decision.at.isoformat()}) + "\n")
            number += len(page)
    return number


def export_parquet(engine: Engine, path: Path, filters: Filters = ALL) -> int:
    """Write decisions as Parquet, compressed with Zstandard, the oldest first, and return how many.

    Scores are a map from probe to double. Raises as `export_jsonl`, and `StoreError` where pyarrow is missing.
    """
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError:
        raise StoreError(
            "Parquet files are written by pyarrow, which is not installed",
            field="format",
            remedy="run: pip install 'foreguard[store]', or export to JSONL",
        ) from None
    kinds = {name: pa.int64() for name in _INTEGERS} | {name: pa.float64() for name in _FLOATS}
    kinds |= {"at": pa.timestamp("us", tz="UTC"), "scores": pa.map_(pa.string(), pa.float64())}
    names = (*(each.name for each in fields(StoredDecision)), *_LABEL)
    schema = pa.schema([(name, kinds.get(name, pa.string())) for name in names])
    number = 0
    with _whole(path) as unfinished, pq.ParquetWriter(unfinished, schema, compression="zstd") as out:
        for page in Reader(engine).pages(filters):
            rows = [_values(record) for record in page]
            for row in rows:
                row["scores"] = list(row["scores"].items())
            out.write_table(pa.Table.from_pylist(rows, schema=schema))
            number += len(page)
    return number


def _values(record: Record) -> dict[str, Any]:
    """Return a record's values by name. A score that is no number is None, which JSON has a word for."""
    values: dict[str, Any] = {each.name: getattr(record.decision, each.name) for each in fields(StoredDecision)}
    values["scores"] = {name: score if math.isfinite(score) else None for name, score in values["scores"].items()}
    label = record.label
    said = (label.label.value, label.who, label.source) if label else (None, None, None)
    return values | dict(zip(_LABEL, said, strict=True))


@contextmanager
def _whole(path: Path) -> Iterator[Path]:
    """Yield the name of a file that takes the place of `path` once it is written."""
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        yield unfinished
        unfinished.replace(path)
    except OSError as error:
        raise StoreError(
            f"{path} cannot be written: {error.strerror}", field="export", remedy="name a file in a folder with room"
        ) from error
    finally:
        with suppress(OSError):
            unfinished.unlink(missing_ok=True)
