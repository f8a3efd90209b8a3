"""The command line: one frame, whose commands are found by entry points, so that no floor imports upwards."""

import sys
from importlib.metadata import entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from probes.errors import ForeguardError

if TYPE_CHECKING:  # these import numpy and torch, which `--help` does not need
    from guard.policy import Condition, Policy

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
        app.command(entry.name, context_settings=settings)(entry.load())
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
    from guard.policy_file import load_policy

    loaded = load_policy(policy)
    thresholds = _thresholds(loaded, artifact) if artifact else {}
    table = Table(title=f"{loaded.label}: {loaded.mode}, unscored prompts: {loaded.on_unscored}", title_justify="left")
    for column in ("rule", "action", "when"):
        table.add_column(column)
    for rule in loaded.rules:
        conditions = [
            _condition(name, condition, thresholds.get((rule.name, name))) for name, condition in rule.when.items()
        ]
        table.add_row(rule.name, rule.action.value, "\n".join(conditions))
    Console().print(table)


def _thresholds(policy: "Policy", artifact: Path) -> dict[tuple[str, str], float]:
    from guard.decide import bind
    from probes.artifact import BENIGN_SCORES, Artifact
    from probes.steering import require_servable_steering

    loaded = Artifact.load(artifact)
    manifest = loaded.manifest
    require_servable_steering(manifest)
    probes, vectors = [probe.name for probe in manifest.probes], [vector.name for vector in manifest.steering]
    return bind(
        policy, probes, loaded.tensors[BENIGN_SCORES].numpy(), steering=vectors, digest=manifest.digest
    ).thresholds


def _condition(name: str, condition: "Condition", threshold: float | None) -> str:
    from guard.policy import TargetFpr

    parts = []
    if isinstance(condition.above, TargetFpr):
        parts.append(
            f"{name} above its {condition.above.target_fpr:.3%} FPR threshold (confidence {condition.above.confidence:.0%})"
        )
    elif condition.above is not None:
        parts.append(f"{name} > {condition.above:g}")
    if threshold is not None and isinstance(condition.above, TargetFpr):
        parts[-1] += f" = {threshold:.4f}"
    if condition.below is not None:
        parts.append(f"{name} < {condition.below:g}")
    return " and ".join(parts)
