"""What the demo shows: a table of answers, and the metrics that moved."""

from collections.abc import Mapping, Sequence

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from guard.verdict import Action
from serving.demo.asking import Answer

_STYLE = {Action.ALLOW: "green", Action.FLAG: "yellow", Action.STEER: "magenta", Action.BLOCK: "red"}
_WIDTH = 30
"""Letters of a question and of an answer that are shown."""
_SHOWN = (
    "foreguard_requests_total",
    "foreguard_unscored_total",
    "foreguard_score_count",
    "foreguard_decision_seconds_count",
)


def answers_table(
    answers: Sequence[Answer], right: Sequence[bool], score: str, thresholds: Mapping[Action, float]
) -> Table:
    """Return the table of `answers`; `score` against the threshold of the action taken, or of the mildest one."""
    table = Table(title="What the guard did", title_justify="left")
    for column in ("kind", "asked", "action", f"{score} / threshold", "answer", "first token", ""):
        table.add_column(column, justify="right" if column == "first token" else "left")
    for answer, is_right in zip(answers, right, strict=True):
        limit = thresholds.get(answer.action, min(thresholds.values()))
        table.add_row(
            answer.question.kind,
            _shortened(answer.question.messages[-1]["content"]),
            f"[{_STYLE[answer.action]}]{answer.action}[/]",
            f"{answer.scores.get(score, float('nan')):6.2f} / {limit:.2f}",
            _shortened(answer.text),
            f"{answer.seconds * 1e3:.0f} ms",
            "" if is_right else "[bold red]not what it should be[/]",
        )
    return table


def _shortened(text: str) -> str:
    """Return the beginning of `text` on one line, fit for a table."""
    line = " ".join(text.split())
    return escape(line if len(line) <= _WIDTH else f"{line[:_WIDTH].rstrip()} …")


def metrics_table(before: Mapping[str, float], after: Mapping[str, float]) -> Table:
    """Return the guard's metrics that moved between two readings."""
    table = Table(title="Metrics that moved", title_justify="left")
    table.add_column("metric")
    table.add_column("moved by", justify="right")
    for name, value in after.items():
        moved = value - before.get(name, 0.0)
        if moved and name.startswith(_SHOWN):
            table.add_row(name.replace("[", r"\["), f"{moved:+g}")
    return table


def sum_up(console: Console, answers: Sequence[Answer], right: Sequence[bool]) -> None:
    """Say what became of each kind, and how many verdicts were what the offline scores call for."""
    for kind in dict.fromkeys(answer.question.kind for answer in answers):
        of_kind = [answer for answer in answers if answer.question.kind == kind]
        stopped = sum(answer.action in (Action.STEER, Action.BLOCK) for answer in of_kind)
        wanted = "caught" if of_kind[0].question.is_harmful else "wrongly stopped"
        console.print(f"  {kind:12} {stopped} of {len(of_kind)} {wanted}")
    console.print(f"  verdicts as the offline scores call for: {sum(right)} of {len(right)}")
