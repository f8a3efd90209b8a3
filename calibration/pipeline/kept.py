"""Work that is done once: a stage's result is a file, whose name has the key of everything that it was made from.

A stage is a function of values. Its key is computed from its name and its arguments' keys, so that a run which was
interrupted, or which asks for one thing more, takes every file that still answers its question, and no other.
"""

import hashlib
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from filelock import FileLock, Timeout
from pydantic import TypeAdapter
from pydantic_core import to_json

from calibration.prompts.progress import stage
from calibration.recording.stage_file import write_whole
from probes.errors import CalibrationError

WORK = ".foreguard-work"
_Value = TypeVar("_Value")
_KEY_DIGITS = 12


@dataclass(frozen=True, slots=True)
class Kept(Generic[_Value]):
    """A value, and the key of what it was made from."""

    value: _Value
    key: str


@dataclass(frozen=True, slots=True)
class Codec(Generic[_Value]):
    """How a stage's result is written to a file, and read back. `save` writes all of it or nothing."""

    suffix: str
    save: Callable[[_Value, Path], None]
    load: Callable[[Path], _Value]


def json_codec(kind: Any) -> Codec[Any]:
    """Return the codec for values of a type that pydantic knows."""
    adapter: TypeAdapter[Any] = TypeAdapter(kind)

    def save(value: Any, path: Path) -> None:
        write_whole(path, adapter.dump_json(value, indent=2).decode() + "\n")

    return Codec(".json", save, lambda path: adapter.validate_json(path.read_bytes()))


def key_of(name: str, *arguments: Any) -> str:
    """Return the key of a stage by its arguments: a kept one counts by its key, any other by its JSON."""
    digest = hashlib.sha256(name.encode())
    for each in arguments:
        digest.update(b"\0" + (each.key.encode() if isinstance(each, Kept) else to_json(each)))
    return digest.hexdigest()


@dataclass(frozen=True, slots=True)
class Work:
    """The folder of a calibration under way, named by what no stage is told of: the model, the prompts, the tools."""

    folder: Path

    @classmethod
    def beside(cls, out: Path, *content: Any) -> "Work":
        """Return the work for an artifact at `out`, which is made from `content`."""
        folder = out.parent / WORK / key_of("work", *content)[:16]
        folder.mkdir(parents=True, exist_ok=True)
        return cls(folder)

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Hold the folder for this process. Raises `CalibrationError` where another one is at work in it.

        The lock ends with the process, however that ends.
        """
        lock = FileLock(self.folder / "lock", blocking=False)
        try:
            lock.acquire()
        except Timeout as error:
            raise CalibrationError(
                "another calibration of this model with these prompts is under way beside it",
                field="--out",
                remedy="wait for it to end, or let --out lie in another folder",
            ) from error
        try:
            yield
        finally:
            lock.release()

    def keep(
        self, name: str, codec: Codec[_Value], compute: Callable[..., _Value], *arguments: Any, title: str = ""
    ) -> Kept[_Value]:
        """Return `compute` of the arguments' values; from its file, where there is one."""
        key = key_of(name, *arguments)
        path = self.path(name, key, codec.suffix)
        if not path.exists():
            with stage(title or name):
                codec.save(compute(*map(_value, arguments)), path)
        return Kept(codec.load(path), key)

    def derive(self, name: str, compute: Callable[..., _Value], *arguments: Any) -> Kept[_Value]:
        """Return the same without a file, for what is quickly computed or keeps files of its own."""
        return Kept(compute(*map(_value, arguments)), key_of(name, *arguments))

    def path(self, name: str, key: str, suffix: str = "") -> Path:
        """Return where a stage keeps what it made; it may be a folder."""
        return self.folder / f"{name}-{key[:_KEY_DIGITS]}{suffix}"

    def forget(self) -> None:
        """Remove the work, and the folder of all work where this was the last."""
        shutil.rmtree(self.folder)
        if not any(self.folder.parent.iterdir()):
            self.folder.parent.rmdir()


def _value(argument: Any) -> Any:
    return argument.value if isinstance(argument, Kept) else argument
