"""`python -m benchmarks.causes MODEL`: does what the papers say of refusal hold in a real chat model?

A copy of the model is taught to refuse (`aligned`), and the studies are asked of that copy, with the model as it
was beside it. Goes on where it stopped.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer

from benchmarks.causes.aligned import save_aligned
from calibration.fitting.study import StudyResult, Table
from calibration.pipeline.calibrate import calibrate
from calibration.pipeline.settings import Settings
from calibration.prompts.splits import divide
from calibration.prompts.starter_set import starter_set
from calibration.report.evidence import Evidence
from probes.artifact import Artifact

_METHODS = ("refusal_direction", "harmfulness_direction", "safety_neurons")
_STUDIES = (
    "neuron_patching", "alignment_tax", "safety_heads", "grafting", "refusal_answers", "steered_answers", "attribution",
    "subspace_illusion", "refusal_by_category",
)  # fmt: skip
_MOST_ROWS = 24
_TOO_WIDE = 12
"""Columns."""


def main(
    model: Annotated[Path, typer.Argument(help="Folder of a chat model in safetensors.")],
    work: Annotated[Path, typer.Option(help="Folder for the copy and its artifact.")] = Path(".bench/causes"),
    limit: Annotated[int, typer.Option(min=60, help="Most training prompts per class.")] = 400,
    write: Annotated[Path | None, typer.Option(help="Write the findings to this Markdown file.")] = None,
) -> None:
    """Teach a copy of a chat model to refuse, and ask what its refusals hang on."""
    copy, artifact = work / "aligned", work / "artifact"
    if not (copy / "config.json").exists():
        save_aligned(model, copy)
    if not (artifact / "manifest.json").exists():
        settings = Settings(partner=model, only=(*_METHODS, *_STUDIES), forms=0, skip_long=True, limit=limit)
        calibrate(copy, divide(starter_set()), artifact, settings)
    text = "\n".join(findings(Evidence.of(Artifact.load(artifact))))
    if write is not None:
        write.write_text(text)
    typer.echo(text)


def findings(evidence: Evidence) -> Iterator[str]:
    """Yield what each study found, in Markdown, with those of its tables that fit a page."""
    for study in evidence.studies:
        yield from _found(study)
    for name, reason in evidence.not_asked.items():
        yield f"### {name}\n\nNot asked: {reason}\n"


def _found(study: StudyResult) -> Iterator[str]:
    yield f"### {study.title}\n\n{study.finding}\n"
    for table in study.tables:
        if len(table.rows) <= _MOST_ROWS and len(table.columns) <= _TOO_WIDE:
            yield "\n".join((*_table(table), ""))


def _table(table: Table) -> Iterator[str]:
    yield f"| {' | '.join(table.columns)} |"
    yield f"|{' --- |' * len(table.columns)}"
    for row in table.rows:
        yield f"| {' | '.join(_cell(each) for each in row)} |"


def _cell(value: str | float) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value).replace("|", r"\|").replace("\n", " ")


if __name__ == "__main__":
    typer.run(main)
