"""What the demo and the console's demo share: what is guarded, its calibration, and commands as people type them."""

import subprocess
import sys
from pathlib import Path

from rich.console import Console
from rich.markup import escape

from probes.errors import ModelError, ServingError
from serving.demo.real_model import real_model
from serving.demo.subjects import Model, Subject, lab, smollm2

_FOREGUARD = str(Path(sys.executable).with_name("foreguard"))


def step(console: Console, number: int, what: str) -> None:
    """Print a step's heading."""
    console.rule(f"[bold]{number}. {what}", align="left")


def subject_of(console: Console, guarded: Model, lab_folder: Path, work: Path) -> Subject:
    """Return what is guarded: the lab model where the real one cannot be had."""
    if guarded is Model.LAB:
        return lab(lab_folder)
    try:
        model = real_model(console)
    except ModelError as error:
        console.print(f"[bold red]{escape(error.problem)}[/]: the demo goes on with the lab model", soft_wrap=True)
        return lab(lab_folder)
    foreguard("prompts", "--out", str(work / "starter"))
    return smollm2(model, work / "starter", lab_folder.parent)


def calibrate(subject: Subject, artifact: Path, work: Path) -> None:
    """Calibrate on a part of the subject's prompts, and write the report. Raises `ServingError` where it fails."""
    splits: list[str] = []
    for split, every in subject.every.items():
        lines = (subject.prompts / f"{split}.jsonl").read_text().split("\n")
        kept = [line for line in lines if 0 < len(line) <= subject.most_letters][::every]
        (file := work / f"{split}.jsonl").write_text("".join(f"{line}\n" for line in kept))
        splits += [f"--{split}", str(file)]
    only = [word for name in subject.methods for word in ("--only", name)]
    forms = ["--forms", str(subject.forms)]
    foreguard("calibrate", str(subject.model), *splits, "--out", str(artifact), *only, *forms)
    foreguard("report", str(artifact), "--out", str(artifact.with_name("report")))


def foreguard(*arguments: str, quiet: bool = False) -> None:
    """Run `foreguard` with these arguments. Raises `ServingError` where it fails."""
    output = subprocess.DEVNULL if quiet else None
    ended = subprocess.run([_FOREGUARD, *arguments], check=False, stdout=output)  # noqa: S603 - our own command line
    if ended.returncode:
        raise ServingError(
            f"`foreguard {arguments[0]}` ended with status {ended.returncode}",
            field="demo",
            remedy="see its message above",
        )
