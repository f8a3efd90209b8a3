"""The command line: one frame, whose commands are found by entry points, so that no floor imports upwards."""

import hashlib
import secrets
import sys
from collections.abc import Iterator
from importlib.metadata import entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from guard.console import table_console
from probes.errors import ForeguardError, PolicyError

if TYPE_CHECKING:  # these import numpy and torch, which `--help` does not need
    from guard.policy import Condition, Policy, TargetFpr
    from guard.rollout import RolloutSettings
    from probes.artifact import Artifact

_PASSES_ARGUMENTS_ON = {"serve"}


def application() -> typer.Typer:
    """Return the command line with every installed command."""
    app = typer.Typer(
        name="foreguard",
        help="Guardrails inside vLLM: calibrate probes on a model, then flag, steer or block before the first token.",
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
    )
    for entry in sorted(entry_points(group="foreguard.commands"), key=lambda entry: entry.name):
        settings = (
            {"allow_extra_args": True, "ignore_unknown_options": True} if entry.name in _PASSES_ARGUMENTS_ON else {}
        )
        loaded = entry.load()
        if isinstance(loaded, typer.Typer):
            app.add_typer(loaded, name=entry.name)
        else:
            app.command(entry.name, context_settings=settings)(loaded)
    return app


def main() -> None:
    """Run the command line. A `ForeguardError` becomes its message and exit status 2."""
    try:
        application()()
    except ForeguardError as error:
        console = Console(stderr=True, highlight=False)
        console.print(f"[bold red]error[/] {escape(error.field)}: {escape(error.problem)}", soft_wrap=True)
        console.print(f"[bold]remedy[/] {escape(error.remedy)}", soft_wrap=True)
        sys.exit(2)


def check(
    policy: Annotated[Path, typer.Argument(help="Policy file (YAML).")],
    artifact: Annotated[
        Path | None, typer.Option(help="Also check the policy against this artifact, and show its thresholds.")
    ] = None,
) -> None:
    """Check a policy file, and say what it does.

    Prints the line and the remedy of a fault, and exits with status 2. With an artifact, also resolves every threshold.

        foreguard check policy.yaml --artifact ./artifact
    """
    from guard.policy_file import load_policies

    file = load_policies(policy)
    known = _loaded(artifact) if artifact else None
    for each in (file.policy, *file.variants.values()):
        _show(each, known)
    for line in _rollout(file.settings):
        table_console().print(line)


def key(
    name: Annotated[str, typer.Argument(help="What the policy is to call the caller.")],
) -> None:
    """Make a token for a caller whom a policy trusts, and print it with the policy's entry for it.

    The token is printed and kept nowhere. The policy has its digest alone.

        foreguard key red-team
    """
    from pydantic import ValidationError

    from guard.policy import Caller

    token = f"fgk_{secrets.token_urlsafe(32)}"
    try:
        caller = Caller(name=name, key_sha256=hashlib.sha256(token.encode()).hexdigest())
    except ValidationError as error:
        raise PolicyError(
            error.errors()[0]["msg"], field="name", remedy="use letters, digits, '.', '_' and '-', 64 at most"
        ) from error
    typer.echo(f"# The caller's token, which is kept nowhere: {token}")
    typer.echo(f"callers:\n  - name: {caller.name!r}\n    key_sha256: {caller.key_sha256}")
    typer.echo("    may_shadow: false\n    sees_scores: false")


def _loaded(artifact: Path) -> "Artifact":
    from probes.artifact import Artifact
    from probes.steering import require_servable_steering

    loaded = Artifact.load(artifact)
    require_servable_steering(loaded.manifest)
    return loaded


def _show(policy: "Policy", artifact: "Artifact | None") -> None:
    """Print a policy's rules, and with an artifact their thresholds. Raises `PolicyError` where it does not fit it."""
    from guard.binding import bind_to

    bound = bind_to(artifact, policy) if artifact else None
    thresholds = bound.thresholds if bound else {}
    table = Table(title=f"{policy.label}: {policy.mode}, unscored prompts: {policy.on_unscored}", title_justify="left")
    for column in ("rule", "action", "when"):
        table.add_column(column)
    for rule in (*policy.rules, *policy.answer_rules):
        conditions = [
            _condition(name, condition, thresholds.get((rule.name, name))) for name, condition in rule.when.items()
        ]
        of_answer = " the answer" if rule in policy.answer_rules else ""
        table.add_row(rule.name, rule.action.value + of_answer, "\n".join(conditions))
    console = table_console()
    console.print(table)
    for idle, before in (bound.idle_rules if bound else {}).items():
        console.print(f"note: rule {idle} never decides: {before} fires wherever it would, and goes before it")


def _rollout(settings: "RolloutSettings") -> Iterator[str]:
    """Yield who comes under which variant, a line each, in the order in which it is asked."""
    for override in settings.overrides:
        lists = ("tenants", override.tenants), ("routes", override.routes), ("models", override.models)
        whom = " and ".join(f"{name} {', '.join(each)}" for name, each in lists if each)
        yield f"{whom}: variant {override.variant}"
    if settings.canary:
        yield f"{settings.canary.percent:g} % of the other callers: variant {settings.canary.variant}"
    if settings.shadow:
        yield f"judged beside, and only recorded: variant {settings.shadow}"


def _condition(name: str, condition: "Condition", threshold: float | None) -> str:
    from guard.policy import TargetFpr

    above, below, parts = condition.above, condition.below, []
    if isinstance(above, TargetFpr):
        parts.append(f"{name} above {_promise(above)}" + (f" = {threshold:.4f}" if threshold is not None else ""))
    elif above is not None:
        parts.append(f"{name} > {above:g}")
    if isinstance(below, TargetFpr):
        parts.append(f"{name} not above {_promise(below)}")
    elif below is not None:
        parts.append(f"{name} < {below:g}")
    return " and ".join(parts)


def _promise(target: "TargetFpr") -> str:
    return f"its {target.target_fpr:.3%} FPR threshold (confidence {target.confidence:.0%})"
