"""The policy desk: reads, changes and rolls back the policy file of a running server, and keeps the history of it.

The file is the channel. The desk checks a new content as the server will, writes down who changes what, and exchanges
the file in one step. The server's processes take it in and say so.
"""

import difflib
import secrets
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from guard.decide import score_columns
from guard.policy_file import parse_policies
from guard.policy_history import Change, PolicyHistory, revision_of
from guard.process_states import ProcessState, states
from guard.rollout import Rollout
from guard.verdict import Action, Mode
from probes.artifact import BENIGN_SCORES
from probes.errors import ForeguardError, PolicyError
from serving.config import GuardConfig
from serving.state import PROCESSES

_ANSWER_S = 5.0
"""How long the server's processes are waited for."""
_TOO_MANY = 0.5
"""Share of calibration's benign prompts. A policy that blocks more of them asks for a confirmation."""


class Outdated(PolicyError):
    """The policy file was changed since it was read."""


class Unconfirmed(PolicyError):
    """The policy would block nearly everything, and nobody said that it may."""


class ReadOnly(PolicyError):
    """The policy file cannot be written here."""


@dataclass(frozen=True, slots=True)
class Applied:
    """A content that is in the policy file now."""

    revision: str
    label: str
    digest: str
    in_force: tuple[int, ...]
    """The processes that go by it."""
    waiting: tuple[ProcessState, ...]
    """Those that do not, or do not yet."""
    seconds: float
    """How long it took, from the file's change to the last process's word."""


class PolicyDesk:
    """What an operator can do about the policy. One process has it."""

    def __init__(self, config: GuardConfig, folder: Path) -> None:
        """`folder` has the history, and what the server's processes tell."""
        self._config = config
        self._artifacts = config.load_artifacts()
        self._history = PolicyHistory(folder)
        self._processes = folder / PROCESSES
        self._changing = threading.Lock()

    def content(self) -> bytes:
        """Return what the policy file holds. Raises `PolicyError` where it cannot be read."""
        try:
            return self._config.policy.read_bytes()
        except OSError as error:
            raise PolicyError(f"cannot be read: {error.strerror}", field="policy", remedy="put it back") from error

    def processes(self) -> list[ProcessState]:
        """Return what each of the server's processes goes by."""
        return states(self._processes)

    def history(self) -> list[Change]:
        """Return all changes, the last one first. One that came some other way is written down now."""
        with self._changing, _kept():
            self._note_found()
            return self._history.changes()

    def text(self, revision: str) -> bytes:
        """Return the policy file's content of a revision. Raises `PolicyError` for one that is not known."""
        content = self.content()
        return content if revision == revision_of(content) else self._history.text(revision)

    def diff(self, before: str, after: str) -> str:
        """Return what changes from one revision to another, as a unified diff."""
        one, other = (self.text(each).decode(errors="replace").splitlines(keepends=True) for each in (before, after))
        return "".join(difflib.unified_diff(one, other, before, after))

    def apply(self, content: bytes, expected: str, who: str, *, confirmed: bool = False) -> Applied:
        """Put `content` into the policy file, in the place of the revision `expected`, and wait for the processes.

        Raises `PolicyError`: `Outdated` where the file is at another revision, `Unconfirmed` for a policy that blocks
        more than half of calibration's benign prompts, `ReadOnly` where the file is not to be written here.
        """
        return self._change(content, expected, who, "applied", confirmed=confirmed)

    def roll_back(self, expected: str, who: str, revision: str | None = None) -> Applied:
        """Put an earlier revision back: the one before the last change, or another. Raises as `apply` does."""
        content = self._history.text(revision or self._before(expected))
        return self._change(content, expected, who, "rolled back", confirmed=True)

    def _before(self, revision: str) -> str:
        made = next((each for each in self.history() if each.revision == revision and each.before), None)
        if made is None or made.before is None:
            raise PolicyError("nothing came before it", field="revision", remedy="name one of the history's")
        return made.before

    def _change(
        self, content: bytes, expected: str, who: str, what: Literal["applied", "rolled back"], *, confirmed: bool
    ) -> Applied:
        rollout = self._checked(content)
        if not confirmed:
            self._require_some_pass(rollout)
        with self._changing, _kept():
            self._note_found()
            held = revision_of(self.content())
            if held != expected:
                raise Outdated(
                    f"the policy file is at revision {held}, not at {expected}",
                    field="If-Match",
                    remedy="read it again, and apply the change to what it says now",
                )
            label, revision = rollout.base.policy.label, revision_of(content)
            if revision != held:
                change = Change(who=who, what=what, revision=revision, before=held, label=label)
                with self._written(content) as beside:
                    self._history.record(change, content)
                    self._exchange(beside)
        return self._awaited(revision, rollout)

    def _checked(self, content: bytes) -> Rollout:
        try:
            return self._config.bind(parse_policies(content.decode()), self._artifacts)
        except UnicodeDecodeError as error:
            raise PolicyError(f"is not UTF-8: {error}", field="policy", remedy="save the file as UTF-8") from error

    def _require_some_pass(self, rollout: Rollout) -> None:
        scores = np.asarray(self._artifacts[0].tensors[BENIGN_SCORES].numpy())
        for bound in (each.model for each in rollout.sets):
            policy = bound.policy
            columns = score_columns(policy, bound.probes, scores)
            share = float(np.mean(bound.severities(columns) == Action.BLOCK.severity)) if len(scores) else 0.0
            if policy.mode is Mode.ENFORCE and share > _TOO_MANY:
                raise Unconfirmed(
                    f"{policy.label} blocks {share:.0%} of calibration's benign prompts",
                    field="rules",
                    remedy="raise its thresholds, or confirm that it is meant so",
                )

    def _note_found(self) -> None:
        """Write down a content of the file that came there some other way than by this desk."""
        content, last = self.content(), next(iter(self._history.changes()), None)
        if last is not None and last.revision == revision_of(content):
            return
        try:
            label = parse_policies(content.decode()).policy.label
        except (ForeguardError, UnicodeDecodeError):
            label = ""  # the server goes by the one before, and says why
        before = last.revision if last else None
        found = Change(who="file", what="found", revision=revision_of(content), before=before, label=label)
        self._history.record(found, content)

    @contextmanager
    def _written(self, content: bytes) -> Iterator[Path]:
        """Yield a file with the content, fit to be put in the policy file's place, so that nobody reads half of it."""
        path = self._config.policy
        if path.is_symlink():
            raise ReadOnly(
                "is a link that somebody else exchanges, as Kubernetes does with a ConfigMap",
                field="policy",
                remedy="change it where it comes from; the server takes it in by itself",
            )
        beside = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
        try:
            beside.write_bytes(content)
            beside.chmod(path.stat().st_mode & 0o777)
        except OSError as error:
            raise ReadOnly(
                f"cannot be written: {error.strerror}", field="policy", remedy="mount its folder so that it can be"
            ) from error
        try:
            yield beside
        finally:
            with suppress(OSError):
                beside.unlink()  # where it is not the policy file by now

    def _exchange(self, beside: Path) -> None:
        """Put `beside` in the policy file's place. Where that fails, the history says what the file still holds."""
        try:
            beside.replace(self._config.policy)
        except OSError as error:
            self._note_found()
            raise ReadOnly(
                f"cannot be exchanged: {error.strerror}; nothing was changed",
                field="policy",
                remedy="mount its folder, and not the file alone",
            ) from error

    def _awaited(self, revision: str, rollout: Rollout) -> Applied:
        began, digest = time.monotonic(), rollout.digest
        while True:
            found = self.processes()
            waiting = tuple(each for each in found if each.digest != digest)
            taken = time.monotonic() - began
            if (found and not waiting) or taken > _ANSWER_S:
                in_force = tuple(each.pid for each in found if each.digest == digest)
                return Applied(revision, rollout.base.policy.label, digest, in_force, waiting, taken)
            time.sleep(0.05)


@contextmanager
def _kept() -> Iterator[None]:
    """Raise `ReadOnly` where the history cannot be read or written: nothing changes that it does not tell of."""
    try:
        yield
    except OSError as error:
        raise ReadOnly(
            f"the history cannot be kept: {error.strerror}; nothing was changed",
            field="--state",
            remedy="make room in the folder, or let this process write to it",
        ) from error
