"""`python -m tests.serving.seams FOLDER ... [--document FILE]`: which versions of vLLM have the guard's seams.

A FOLDER is where a wheel was unpacked, so that `vllm/` and its metadata lie in it. Nothing in it is run.
"""

import argparse
from collections.abc import Iterable
from pathlib import Path

from benchmarks.document import write_between
from tests.serving.seams.imported import imported
from tests.serving.seams.sources import Sources
from tests.serving.seams.table import SEAMS

MARKS = "<!-- seams: written by python -m tests.serving.seams -->", "<!-- end of seams -->"


def seams() -> list[tuple[str, str]]:
    """Return every seam, with our file that needs it."""
    groups = (*imported().items(), *SEAMS.items())
    return [(file, seam) for file, group in groups for seam in group]


def table(versions: Iterable[Sources]) -> str:
    """Return the versions as a table in Markdown."""
    lines = ["| vLLM | seams there | made up for | missing |", "| --- | --- | --- | --- |"]
    asked = seams()
    for sources in sorted(versions, key=lambda each: each.version()):
        misses = [f"{file}: {miss}" for file, seam in asked if (miss := sources.misses(seam))]
        differs = [differs for _, seam in asked if (differs := sources.differs(seam))]
        cells = sources.version(), f"{len(asked) - len(misses)} of {len(asked)}", _named(differs), _named(misses)
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _named(what: list[str]) -> str:
    return "; ".join(what) or "none"


def main() -> None:
    """Print the table, and write it where asked."""
    parser = argparse.ArgumentParser(prog="python -m tests.serving.seams", description=__doc__)
    parser.add_argument("folders", type=Path, nargs="+", metavar="FOLDER")
    parser.add_argument("--document", type=Path, help="document to write the table into")
    given = parser.parse_args()
    made = table(map(Sources, given.folders))
    print(made)
    if given.document:
        write_between(given.document, *MARKS, made)


if __name__ == "__main__":
    main()
