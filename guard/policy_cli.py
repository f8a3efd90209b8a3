"""`foreguard policy`: reads, changes and rolls back the policy of a running server, over its administration's port."""

import difflib
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from guard.administration import LOCAL, Administration, Token, Url
from guard.console import table_console

app = typer.Typer(
    no_args_is_help=True,
    help="Read, change and roll back the policy of a running server (`foreguard serve --admin-port`).\n\n"
    "The server's address is FOREGUARD_ADMIN_URL, and your token FOREGUARD_ADMIN_TOKEN.",
)


@app.command()
def show(
    revision: Annotated[
        str | None, typer.Argument(help="A revision of the history; else what the file says now.")
    ] = None,
    url: Url = LOCAL,
    token: Token = "",
) -> None:
    """Print the policy file."""
    server = Administration(url, token)
    typer.echo(server.ask("GET", f"/guard/policy/history/{revision}").text if revision else server.held()[0], nl=False)


@app.command()
def diff(
    file: Annotated[Path | None, typer.Argument(help="A policy file that is not applied yet.")] = None,
    before: Annotated[str | None, typer.Option(help="A revision of the history.")] = None,
    after: Annotated[str | None, typer.Option(help="Another one; else what the file says now.")] = None,
    url: Url = LOCAL,
    token: Token = "",
) -> None:
    """Print what a file would change, or what changed from one revision to another.

    foreguard policy diff new.yaml
    foreguard policy diff --before 0123456789abcdef
    """
    server = Administration(url, token)
    if (file is None) == (before is None):
        raise typer.BadParameter("give a file, or --before and a revision")
    if file is not None:
        typer.echo(_difference(server.held()[0], file.read_text(encoding="utf-8"), file.name), nl=False)
        return
    asked = {"before": before} | ({"after": after} if after else {})
    typer.echo(server.ask("GET", "/guard/policy/diff", params=asked).text, nl=False)


@app.command()
def apply(
    file: Annotated[Path, typer.Argument(help="Policy file (YAML).")],
    revision: Annotated[
        str | None, typer.Option(help="Apply it only if the server's file is at this revision.")
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Apply it even if it blocks nearly everything.")] = False,
    url: Url = LOCAL,
    token: Token = "",
) -> None:
    """Put a policy in force: it is checked as at the start, and nothing is restarted."""
    server = Administration(url, token)
    headers = {"if-match": revision or server.held()[1]}
    content, params = file.read_bytes(), {"confirm": "yes"} if yes else {}
    _tell(server.ask("PUT", "/guard/policy", content=content, headers=headers, params=params).json())


@app.command()
def rollback(
    revision: Annotated[str | None, typer.Argument(help="A revision of the history; else the one before.")] = None,
    url: Url = LOCAL,
    token: Token = "",
) -> None:
    """Put an earlier policy back in force."""
    server = Administration(url, token)
    params = {"revision": revision} if revision else {}
    headers = {"if-match": server.held()[1]}
    _tell(server.ask("POST", "/guard/policy/rollback", headers=headers, params=params).json())


@app.command()
def history(url: Url = LOCAL, token: Token = "") -> None:
    """List who changed the policy, and when: the last change first."""
    table = Table("when", "who", "what", "policy", "revision", "before")
    for change in Administration(url, token).ask("GET", "/guard/policy/history").json()["changes"]:
        when = datetime.fromisoformat(change["at"]).strftime("%Y-%m-%d %H:%M:%S")
        cells = (when, change["who"], change["what"], change["label"], change["revision"], change["before"] or "")
        table.add_row(*map(escape, cells))
    table_console().print(table)


@app.command()
def status(url: Url = LOCAL, token: Token = "") -> None:
    """List the server's processes, and the policy that each goes by."""
    table = Table("process", "policy", "digest", "since", "problem")
    for each in Administration(url, token).ask("GET", "/guard/processes").json()["processes"]:
        since = datetime.fromtimestamp(each["since"]).astimezone().strftime("%Y-%m-%d %H:%M:%S")
        cells = (str(each["pid"]), each["policy"], each["digest"], since, each["problem"] or "")
        table.add_row(*map(escape, cells))
    table_console().print(table)


def _tell(applied: dict[str, Any]) -> None:
    """Print what came of a change; exit with status 1 where a process does not go by it."""
    number = len(applied["in_force"])
    typer.echo(
        f"{applied['label']} (revision {applied['revision']}) is in force in {number} of "
        f"{number + len(applied['waiting'])} processes after {applied['seconds']:.1f} s"
    )
    for each in applied["waiting"]:
        typer.echo(f"process {each['pid']} goes by {each['policy']}: {each['problem'] or 'it has not taken it in yet'}")
    if applied["waiting"] or not number:
        raise typer.Exit(1)


def _difference(before: str, after: str, name: str) -> str:
    one, other = (text.splitlines(keepends=True) for text in (before, after))
    return "".join(difflib.unified_diff(one, other, "in the server", name))
