"""`foreguard drift`: says what of a running server's traffic has drifted, and acknowledges alarms."""

from typing import Any

import typer
from rich.markup import escape
from rich.table import Table

from guard.administration import LOCAL, Administration, Token, Url
from guard.console import table_console

app = typer.Typer(
    no_args_is_help=True,
    help="Say what of a running server's traffic has drifted from what calibration saw (`foreguard serve "
    "--admin-port`).\n\nThe server's address is FOREGUARD_ADMIN_URL, and your token FOREGUARD_ADMIN_TOKEN.",
)


@app.command()
def status(url: Url = LOCAL, token: Token = "") -> None:
    """List what each process watches, and what moved. The exit status is 1 where an alarm stands."""
    found = Administration(url, token).ask("GET", "/guard/drift").json()["processes"]
    console = table_console()
    for process in found:
        console.print(_scores(process))
        console.print(_rates(process["drift"]))
        for moved in process["drift"]["moved"]:
            _print_moved(moved)
    if any(_is_drifted(process["drift"]) for process in found):
        raise typer.Exit(1)


@app.command()
def acknowledge(url: Url = LOCAL, token: Token = "") -> None:
    """Let every process begin anew: an alarm was understood, or the traffic is now as it is to be."""
    Administration(url, token).ask("POST", "/guard/drift/acknowledge")
    typer.echo("acknowledged: every process begins anew within five seconds")


def _scores(process: dict[str, Any]) -> Table:
    drift = process["drift"]
    table = Table(title=f"process {process['pid']}: {drift['decisions']} prompts", title_justify="left")
    for column in ("score", "traffic", "alarm", "e-value", "stability index, beyond noise", "band"):
        table.add_column(column)
    for each in drift["scores"]:
        name = "/".join(filter(None, (each["adapter"], each["probe"])))
        traffic = f"{each['dimension']} {each['stratum']}" if each["dimension"] else "all"
        stability = each["stability"]
        numbers = (f"{each['evidence']['e_value']:.3g}", f"{stability['beyond']:.3f}", stability["band"])
        table.add_row(escape(name), escape(traffic), "DRIFT" if each["drifted"] else "", *numbers)
    return table


def _rates(drift: dict[str, Any]) -> Table:
    table = Table("rate", "share (95 %)", "usual, at most", "CUSUM", "alarm")
    for name in ("flags", "unscored"):
        rate, share = drift[name], drift[name]["share"]
        interval = f"{share['value']:.3%} ({share['low']:.3%} to {share['high']:.3%})"
        alarm = "" if rate["alarm_at"] is None else f"DRIFT at prompt {rate['alarm_at']}"
        table.add_row(name, interval, f"{rate['usual']:.3%}", f"{rate['level']:.0%} of its limit", alarm)
    return table


def _print_moved(moved: dict[str, Any]) -> None:
    """Print which strata moved a score's mean, where it moved by more than noise."""
    if abs(moved["shift"]) <= 3 * moved["noise"]:
        return
    parts = ", ".join(f"{each['name']} {each['share']:.0%}" for each in moved["contributions"][:5])
    typer.echo(
        f"{moved['probe']} moved by {moved['shift']:+.3f} (noise {moved['noise']:.3f}); by {moved['dimension']}: "
        f"{parts}"
    )


def _is_drifted(drift: dict[str, Any]) -> bool:
    rates = any(drift[name]["alarm_at"] is not None for name in ("flags", "unscored"))
    return rates or any(each["drifted"] for each in drift["scores"])
