"""`foreguard store`: keeps a decision store in order, takes decisions out of it, and labels them."""

import csv
import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape
from rich.table import Table

from guard.console import table_console
from guard.store.errors import StoreError
from guard.store.opening import current_store, opened_store
from guard.store.packages import require_packages

if TYPE_CHECKING:
    from guard.store.cipher import Cipher
    from guard.store.label import GivenLabel

app = typer.Typer(
    no_args_is_help=True,
    help="Look after the database of decisions that `foreguard serve --store` fills, and use what is in it.\n\n"
    "The store's address is FOREGUARD_STORE: sqlite:///path/decisions.db or "
    "postgresql://user:password@host/database. Needs the packages of `foreguard\\[store]`.",
)

Store = Annotated[
    str,
    typer.Option(
        "--store",
        envvar="FOREGUARD_STORE",
        show_envvar=True,
        help="Address of the store. One with a password belongs into the environment: arguments are for all to see.",
    ),
]
Some = Annotated[list[str] | None, typer.Option(help="May be given several times.")]
_COLUMNS = ("event_id", "label", "who")


@app.command()
def key() -> None:
    """Print a new key for prompts that are kept.

    Set it as FOREGUARD_STORE_KEY where the server runs, and keep a copy apart from the database: without it nobody
    reads the prompts again. To change keys, put the new one before the old one, with a comma between, restart, and run
    `foreguard store reseal`.
    """
    require_packages()
    from guard.store.cipher import new_key

    typer.echo(new_key())


@app.command()
def upgrade(store: Store) -> None:
    """Make a store's tables, or bring those of an older Foreguard up to date.

    A server does so by itself when it starts. Run this before where its database user may not create tables.
    """
    with opened_store(store) as engine:
        from guard.store.migration import upgrade

        upgrade(engine)
    typer.echo("the store's tables are up to date")


@app.command()
def status(
    store: Store,
    as_json: Annotated[bool, typer.Option("--json", help="Print it as JSON.")] = False,
) -> None:
    """Say how many decisions, prompts and labels a store has, of which time, and what room they take."""
    with current_store(store) as engine:
        from guard.store.status import status

        found = status(engine)
    if as_json:
        typer.echo(json.dumps(found.to_json()))
        return
    table = Table("what", "value", show_header=False)
    for name, value in found.to_json().items():
        table.add_row(name, escape(f"{value:,}" if isinstance(value, int) else str(value or "none")))
    table_console().print(table)


@app.command()
def export(
    file: Annotated[Path, typer.Argument(help="File to write: .jsonl or .parquet.")],
    store: Store,
    since: Annotated[datetime | None, typer.Option(help="Decisions from then on, in local time.")] = None,
    until: Annotated[datetime | None, typer.Option(help="Decisions before then.")] = None,
    action: Some = None,
    rule: Some = None,
    tenant: Some = None,
    route: Some = None,
    model: Some = None,
    policy: Annotated[list[str] | None, typer.Option(help="NAME@VERSION. May be given several times.")] = None,
) -> None:
    """Write decisions with their scores and labels to a file, the oldest first. Prompts are never exported.

    An empty word stands for decisions that have none: `--tenant ""` are those of nobody's.

        foreguard store export blocked.parquet --since 2026-12-01 --action block
    """
    require_packages()
    from guard.store.export import export_jsonl, export_parquet
    from guard.store.filters import Filters

    kinds = {".jsonl": export_jsonl, ".parquet": export_parquet}
    if file.suffix not in kinds:
        raise typer.BadParameter("name a file that ends in .jsonl or .parquet", param_hint="FILE")
    words = {"action": action, "rule": rule, "tenant": tenant, "route": route, "model": model, "policy": policy}
    filters = Filters(since, until, **{name: tuple(each) for name, each in words.items() if each})
    with current_store(store) as engine:
        number = kinds[file.suffix](engine, file, filters)
    typer.echo(f"{number:,} decisions written to {file}")


@app.command()
def prune(
    store: Store,
    days: Annotated[float, typer.Option(help="Days for which decisions are kept.", max=36500)] = 90,
    text_days: Annotated[float, typer.Option(help="Days for which prompts are kept.", max=36500)] = 7,
    max_decisions: Annotated[int, typer.Option(help="How many decisions are kept: the oldest go.", min=1)] = 10_000_000,
) -> None:
    """Delete what is older, or more, than is to be kept. Labels stay.

    A server does so by itself every five minutes, by its own settings. A SQLite file does not shrink, but what is
    written next takes the room that became free.
    """
    with current_store(store) as engine:
        from guard.store.retention import Retention, prune

        gone = prune(engine, Retention(timedelta(days=days), max_decisions, timedelta(days=text_days)))
    typer.echo(f"{gone.decisions:,} decisions and {gone.texts:,} prompts deleted")


@app.command()
def reseal(store: Store) -> None:
    """Seal all prompts with the first key in FOREGUARD_STORE_KEY. Older keys may then be taken out of it.

    List the new key first and then the old ones, with commas between.
    """
    with current_store(store) as engine:
        from guard.store.text_vault import TextVault

        number = TextVault(engine, _cipher()).reseal()
    typer.echo(f"{number:,} prompts sealed with the newest key")


@app.command()
def text(
    event_id: Annotated[str, typer.Argument(help="The event id in the client's x-guardrail-event-id header.")],
    store: Store,
) -> None:
    """Print the prompt of a decision, where prompts are kept. The key in FOREGUARD_STORE_KEY opens it."""
    with current_store(store) as engine:
        from guard.store.text_vault import TextVault

        found = TextVault(engine, _cipher()).text(event_id)
    if found is None:
        raise StoreError("no prompt is kept", field=event_id, remedy="see `foreguard serve --store-texts`")
    typer.echo(found)


@app.command()
def label(
    file: Annotated[Path, typer.Argument(help="CSV file with the columns event_id and label, and perhaps who.")],
    store: Store,
    who: Annotated[str, typer.Option(help="Who labelled, where the file does not say.", envvar="USER")] = "csv",
) -> None:
    """Give decisions the labels of a CSV file: benign, harmful, unsure, or withdrawn for none any more.

    All lines are checked first. Where one is wrong, none is taken. Event ids that the store does not know are named;
    their labels are kept, since a decision may have been deleted already.

        event_id,label,who
        fge_0123456789abcdef01234567,harmful,ada
    """
    require_packages()
    given = _labels(file, who)
    with current_store(store) as engine:
        from guard.store.label import Labels

        labels = Labels(engine)
        number = labels.give(given)
        unknown = sorted(labels.unknown({each.event_id for each in given}))
    typer.echo(f"{number:,} labels given")
    for each in unknown:
        typer.echo(f"{each}: the store has no such decision")


def _labels(file: Path, who: str) -> "list[GivenLabel]":
    """Return the labels of a CSV file. Raises `StoreError` that names all lines which are wrong."""
    from guard.store.label import GivenLabel, Label

    at = datetime.now(UTC)
    given, wrong = [], []
    for number, row in _rows(file):
        event_id, said = (row.get("event_id") or "").strip(), (row.get("label") or "").strip().lower()
        if not event_id:
            wrong.append(f"line {number} has no event id")
        elif said not in list(Label):
            wrong.append(f"line {number} says {said!r}")
        elif None in row:
            wrong.append(f"line {number} has too many fields")
        else:
            given.append(GivenLabel(event_id, Label(said), (row.get("who") or "").strip() or who, "csv", at=at))
    if wrong or not given:
        raise StoreError(
            "; ".join(wrong) or "has no labels",
            field=str(file),
            remedy=f"label with {', '.join(Label)}; nothing was labelled",
        )
    return given


def _rows(file: Path) -> Iterator[tuple[int, dict[str | None, str | None]]]:
    """Yield each row of a CSV file, and the line that it ends on."""
    try:
        with file.open(encoding="utf-8-sig", newline="") as lines:
            rows = csv.DictReader(lines, strict=True)
            names = rows.fieldnames or []
            if not {"event_id", "label"} <= set(names) or set(names) - set(_COLUMNS):
                raise StoreError(
                    f"its first line is {','.join(names)!r}",
                    field=str(file),
                    remedy="name the columns there: event_id,label or event_id,label,who",
                )
            for row in rows:
                yield rows.line_num, row
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise StoreError(f"cannot be read: {error}", field=str(file), remedy="give a CSV file in UTF-8") from error


def _cipher() -> "Cipher":
    from guard.store.cipher import VARIABLE, cipher_from

    cipher = cipher_from()
    if cipher is None:
        raise StoreError("is not set", field=VARIABLE, remedy="set the key that the server seals prompts with")
    return cipher
