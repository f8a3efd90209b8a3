"""What the launch has checked, for the processes that it starts: each looks again, and refuses what has changed
meanwhile.

Loading a model takes minutes, in which a file can be edited or a volume exchanged. This travels in the environment,
which vLLM's processes inherit. In vLLM's configuration it would go into the compile cache's key: every new policy would
compile the model anew. An engine on another machine inherits nothing; its canary tells the policy that it decides by
(`selftest`).
"""

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path

from pydantic import BaseModel

from guard.policy import Policy
from probes.errors import ArtifactMismatch, PolicyError

VARIABLE = "FOREGUARD_CHECKED"
_READ = (".safetensors", ".json", ".jinja", ".model", ".txt")
"""What vLLM reads of a model's or an adapter's folder."""


class Checked(BaseModel):
    """Which files the launch has compared with the artifacts, and which policy it has bound to them."""

    policy: str = ""
    """`Policy.digest`."""
    folders: dict[Path, str]
    """The state of the model's folder and its adapters', before their files were read."""

    @classmethod
    def begin(cls, folders: Sequence[Path]) -> "Checked":
        """Note the state of `folders`, whose files are about to be read."""
        os.environ.pop(VARIABLE, None)
        return cls(folders={folder.resolve(): _state(folder) for folder in folders})

    def with_policy(self, policy: Policy) -> "Checked":
        """Return what was checked, `policy` among it."""
        return self.model_copy(update={"policy": policy.digest})

    def publish(self) -> None:
        """Tell the processes that this one is about to start."""
        os.environ[VARIABLE] = self.model_dump_json()


def require_policy(policy: Policy) -> None:
    """Raise `PolicyError` where the launch has bound another policy than this process has read."""
    checked = _published()
    if checked and checked.policy != policy.digest:
        raise PolicyError(
            "the policy changed while the server was starting", field="policy", remedy="start the server again"
        )


def require_files() -> None:
    """Raise `ArtifactMismatch` where a model's files are no longer those that the launch has read."""
    checked = _published()
    for folder, state in checked.folders.items() if checked else ():
        if _state(folder) != state:
            raise ArtifactMismatch(
                "files changed after they had been compared with the artifact: other ones may have been loaded",
                field=str(folder),
                remedy="start the server again when nothing writes to the folder",
            )


def _published() -> Checked | None:
    text = os.environ.get(VARIABLE)
    return Checked.model_validate_json(text) if text else None


def _state(folder: Path) -> str:
    """Return a digest of sizes, times and inodes, which change with what a file holds: reading it would take
    minutes.
    """
    found = hashlib.sha256()
    for path in sorted(path for path in folder.glob("*") if path.suffix in _READ and path.is_file()):
        status = path.stat()
        found.update(f"{path.name} {status.st_size} {status.st_mtime_ns} {status.st_ino};".encode())
    return found.hexdigest()
