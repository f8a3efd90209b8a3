"""Artifacts: a folder of `manifest.json` and `probes.safetensors`, written whole and read with suspicion.

No pickle, ever. Loading checks digests, schema, names, shapes, dtypes and finiteness before anything is used.
"""

import ctypes
import errno
import hashlib
import json
import os
import shutil
import stat
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors

from probes.errors import ArtifactCorrupt, SchemaTooNew
from probes.manifest import SCHEMA_VERSION, Manifest

MANIFEST = "manifest.json"
TENSORS = "probes.safetensors"
BENIGN_SCORES = "scores.harmless"
HARMFUL_SCORES = "scores.harmful"
BENIGN_ANSWERS = "answers.harmless"
HARMFUL_ANSWERS = "answers.harmful"
_LARGEST = {MANIFEST: 64 << 20, TENSORS: 4 << 30}
"""Bytes that a file may have; an attachment may have 1 GiB.

A hundred probes on all blocks of the largest models need 1.
"""
_RECALIBRATE = "fetch the artifact again, or run `foreguard calibrate`"


@dataclass(frozen=True, slots=True)
class Artifact:
    """A loaded artifact.

    `tensors` holds, all float32: each probe's as `Probe.shapes` has them, `steering.<name>.<tensor>` of the shapes that
    `SteeringVector.shapes` gives, and the calibration split's scores `scores.harmless` `[N, K]` and `scores.harmful`
    `[M, K]`, columns in the manifest's order of probes: thresholds for any target false-positive rate come from these.
    `scores.harmless.<ending>` are likewise of turns that are left open, by how. Where there are
    watches, `answers.harmless` `[N, W]` and `answers.harmful` `[M, W]` are the scores of the model's answers to such
    prompts likewise, and each watch has its tensors as `Watch.shapes` has them. `attachments` are whole files that go
    along, by name: no server reads them.
    """

    manifest: Manifest
    tensors: Mapping[str, torch.Tensor]
    attachments: Mapping[str, bytes] = field(default_factory=dict)

    @classmethod
    def load(cls, folder: Path) -> "Artifact":
        """Read and check the artifact in `folder`, attachments included. Raises `ArtifactCorrupt` or `SchemaTooNew`."""
        while True:
            before = _identity(folder)
            try:
                return cls._load(folder)
            except ArtifactCorrupt:
                # Its files may be of two artifacts, if the folder was replaced while it was read.
                if _identity(folder) == before:
                    raise

    @classmethod
    def _load(cls, folder: Path) -> "Artifact":
        manifest = _load_manifest(folder)
        raw = _read_described(folder / TENSORS, manifest.tensors_sha256, "tensors_sha256")
        attachments = {
            name: _read_described(folder / name, digest, f"attachments.{name}")
            for name, digest in manifest.attachments.items()
        }
        try:
            tensors = load_tensors(raw)
        except SafetensorError as error:
            raise ArtifactCorrupt(f"{TENSORS} cannot be read: {error}", field=TENSORS, remedy=_RECALIBRATE) from error
        _check_tensors(manifest, tensors)
        return cls(manifest, tensors, attachments)

    def save(self, folder: Path) -> Manifest:
        """Write the artifact to `folder`, replacing what is there only when all is written; return the sealed
        manifest.
        """
        _check_tensors(self.manifest, self.tensors)
        # Copies, because safetensors refuses tensors that share their storage.
        raw = save_tensors({name: tensor.clone().contiguous() for name, tensor in self.tensors.items()})
        digests = {name: hashlib.sha256(content).hexdigest() for name, content in self.attachments.items()}
        described = {"tensors_sha256": hashlib.sha256(raw).hexdigest(), "attachments": digests}
        sealed = _seal(self.manifest.model_copy(update=described))
        folder.parent.mkdir(parents=True, exist_ok=True)
        staging = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
        try:
            (staging / TENSORS).write_bytes(raw)
            for name, content in self.attachments.items():
                (staging / name).write_bytes(content)
            (staging / MANIFEST).write_text(sealed.model_dump_json(indent=2) + "\n", encoding="utf-8")
            staging.chmod(0o755)
            _replace(staging, folder)
        finally:
            shutil.rmtree(staging, ignore_errors=True)
        return sealed


def _replace(staging: Path, folder: Path) -> None:
    if not folder.exists():
        staging.replace(folder)
    elif not _exchange(staging, folder):
        # Without that call there is a moment in which the folder is missing; a reader tries again.
        retired = staging.with_name(staging.name + "-old")
        folder.replace(retired)
        staging.replace(folder)
        shutil.rmtree(retired)


def _exchange(first: Path, second: Path) -> bool:
    """Swap two folders in one step, so that at no time is there none; return whether the system can.

    `renameat2` with RENAME_EXCHANGE: Linux, on most local file systems.
    """
    at_working_directory, exchange = -100, 2
    renameat2 = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if renameat2 is None:
        return False
    if not renameat2(at_working_directory, os.fsencode(first), at_working_directory, os.fsencode(second), exchange):
        return True
    number = ctypes.get_errno()
    if number in (errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP):
        return False
    raise OSError(number or errno.EIO, os.strerror(number), str(second))


def _identity(folder: Path) -> tuple[int, int] | None:
    try:
        status = folder.stat()
    except OSError:
        return None
    return status.st_ino, status.st_ctime_ns  # an inode's number is soon used again; its time of change is not


def _load_manifest(folder: Path) -> Manifest:
    try:
        content = json.loads(_read(folder / MANIFEST))
    except (ValueError, RecursionError) as error:
        raise ArtifactCorrupt(f"{MANIFEST} is not JSON: {error}", field=MANIFEST, remedy=_RECALIBRATE) from error
    version = content.get("schema_version") if isinstance(content, dict) else None
    if isinstance(version, int) and version > SCHEMA_VERSION:
        raise SchemaTooNew(
            f"schema {version} is newer than {SCHEMA_VERSION}, the newest that this Foreguard reads",
            field="schema_version",
            remedy="upgrade foreguard, or calibrate with this version",
        )
    try:
        manifest = Manifest.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or MANIFEST
        raise ArtifactCorrupt(f"{MANIFEST}: {first['msg']}", field=where, remedy=_RECALIBRATE) from error
    if _digest(content) != manifest.digest:
        raise ArtifactCorrupt(f"{MANIFEST} was changed after it was written", field="digest", remedy=_RECALIBRATE)
    return manifest


def _seal(manifest: Manifest) -> Manifest:
    return manifest.model_copy(update={"digest": _digest(json.loads(manifest.model_dump_json()))})


def _digest(content: dict[str, object]) -> str:
    rest = {key: value for key, value in content.items() if key != "digest"}
    return hashlib.sha256(json.dumps(rest, separators=(",", ":"), ensure_ascii=False).encode()).hexdigest()


def _read_described(path: Path, sha256: str, field: str) -> bytes:
    raw = _read(path)
    if hashlib.sha256(raw).hexdigest() != sha256:
        raise ArtifactCorrupt(
            f"{path.name} is not the file that the manifest describes", field=field, remedy=_RECALIBRATE
        )
    return raw


def _read(path: Path) -> bytes:
    """Return the content of a file of the artifact.

    Raises `ArtifactCorrupt` for one that could be endless or anyone's.
    """
    try:
        found = path.resolve(strict=True)
        if not found.is_relative_to(path.parent.resolve(strict=True)):
            raise _unusable(path.name, "it is a link out of the artifact's folder")
        return _read_regular(found, path.name, _LARGEST.get(path.name, 1 << 30))
    except (OSError, RuntimeError) as error:  # a link to itself is either
        raise _unusable(path.name, getattr(error, "strerror", None) or str(error)) from error


def _read_regular(path: Path, name: str, limit: int) -> bytes:
    # Opened once and asked about what was opened; not blocking, or a pipe would wait for its other end.
    with os.fdopen(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK), "rb") as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise _unusable(name, "it is no regular file")
        if status.st_size > limit:
            raise _unusable(name, f"it has {status.st_size} bytes, and may have {limit}")
        return file.read(limit)


def _unusable(name: str, why: str) -> ArtifactCorrupt:
    return ArtifactCorrupt(
        f"cannot read {name}: {why}", field=name, remedy="name a folder that `foreguard calibrate` wrote"
    )


def _check_tensors(manifest: Manifest, tensors: Mapping[str, torch.Tensor]) -> None:
    hidden_size, num_probes = manifest.fingerprint.hidden_size, len(manifest.probes)
    expected: dict[str, tuple[int | None, ...]] = {
        name: shape for probe in manifest.probes for name, shape in probe.shapes(hidden_size).items()
    }
    for v in manifest.steering:
        expected |= {f"steering.{v.name}.{tensor}": shape for tensor, shape in v.shapes(hidden_size).items()}
    expected |= {BENIGN_SCORES: (None, num_probes), HARMFUL_SCORES: (None, num_probes)}
    expected |= {f"{BENIGN_SCORES}.{ending}": (None, num_probes) for ending in manifest.other_endings}
    for watch in manifest.watches:
        expected |= watch.shapes
    if manifest.watches:
        expected |= dict.fromkeys((BENIGN_ANSWERS, HARMFUL_ANSWERS), (None, len(manifest.watches)))
    if set(expected) != set(tensors):
        odd = sorted(set(expected) ^ set(tensors))
        raise ArtifactCorrupt(f"missing or unexpected tensors: {', '.join(odd)}", field=TENSORS, remedy=_RECALIBRATE)
    for name, shape in expected.items():
        _check_tensor(name, tensors[name], shape)


def _check_tensor(name: str, tensor: torch.Tensor, expected: tuple[int | None, ...]) -> None:
    shape = (tensor.shape[0] if expected[0] is None and tensor.ndim else expected[0], *expected[1:])
    if tensor.dtype != torch.float32 or tuple(tensor.shape) != shape:
        raise ArtifactCorrupt(
            f"is {tensor.dtype} {list(tensor.shape)}, not float32 {list(shape)}", field=name, remedy=_RECALIBRATE
        )
    if not torch.isfinite(tensor).all():
        raise ArtifactCorrupt("holds NaN or infinite values", field=name, remedy=_RECALIBRATE)
    if name.startswith("watch.") and name.endswith(".spread") and not (tensor > 0).all():
        raise ArtifactCorrupt("holds a spread that is not positive", field=name, remedy=_RECALIBRATE)
