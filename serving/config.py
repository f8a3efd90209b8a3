"""The guard's configuration, as every vLLM process finds it in `additional_config`.

vLLM hashes `additional_config` into its compile-cache key, so a graph compiled without the tap is never loaded by a
guarded server. The key holds the artifact's digest and the policy's path, not its content: a new policy compiles
nothing.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from guard.binding import bind_to
from guard.decide import BoundPolicy
from guard.policy_file import load_policies
from guard.rollout import PolicyFile, Rollout
from probes.artifact import Artifact
from probes.errors import ArtifactMismatch, ServingError
from serving.checked import require_policy
from serving.wire import EXTRA


class AdapterConfig(BaseModel):
    """An adapter that has an artifact of its own."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    """What requests call it."""
    path: Path
    """The adapter's folder, whose files the artifact's fingerprint was compared with."""
    artifact: Path
    artifact_digest: str


class GuardConfig(BaseModel):
    """Where the guard's files are, and which artifacts they must be."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    artifact: Path
    artifact_digest: str
    policy: Path
    adapters: tuple[AdapterConfig, ...] = ()
    behind_middleware: bool = False
    """Whether requests come through the guard's part of the API server, so that one that does not is unscored."""

    @classmethod
    def from_vllm(cls, additional_config: Any) -> "GuardConfig":
        """Read the configuration that `foreguard serve` put into vLLM's `additional_config`."""
        try:
            return cls.model_validate(additional_config[EXTRA])
        except (KeyError, TypeError, ValidationError) as error:
            raise ServingError(
                "vLLM was started with the guard's classes but without its configuration",
                field="additional_config.foreguard",
                remedy="start the server with `foreguard serve`",
            ) from error

    def to_vllm(self) -> dict[str, Any]:
        """Return the entry for vLLM's `additional_config`."""
        return {EXTRA: self.model_dump(mode="json")}

    def load_artifact(self) -> Artifact:
        """Load the artifact. Raises `ArtifactMismatch` if it is not the one that the server started with."""
        return _load(self.artifact, self.artifact_digest)

    def load_artifacts(self) -> list[Artifact]:
        """Load the model's artifact, and then its adapters'. Raises `ArtifactMismatch` likewise."""
        return [self.load_artifact(), *(_load(each.artifact, each.artifact_digest) for each in self.adapters)]

    def bind_policy(self, artifact: Artifact) -> BoundPolicy:
        """Read the policy and bind it to the model's `artifact`.

        Raises `PolicyError`, also for one that was changed.
        """
        return bind_to(artifact, self._load_policies().policy)

    def bind_policies(self, artifacts: Sequence[Artifact]) -> Rollout:
        """Bind the policy file's policies to the model's artifact and its adapters', as `load_artifacts` has them.

        Raises likewise.
        """
        return self.bind(self._load_policies(), artifacts)

    def bind(self, file: PolicyFile, artifacts: Sequence[Artifact]) -> Rollout:
        """Bind a policy file that was read later to all artifacts. Raises `PolicyError` where it does not fit them."""
        artifact, *others = artifacts
        names = [each.name for each in self.adapters]
        return Rollout.bind(file, artifact, dict(zip(names, others, strict=True)))

    def _load_policies(self) -> PolicyFile:
        file = load_policies(self.policy)
        require_policy(file.policy)
        return file


def _load(folder: Path, digest: str) -> Artifact:
    artifact = Artifact.load(folder)
    if artifact.manifest.digest != digest:
        raise ArtifactMismatch(
            "the artifact was replaced while the server was starting",
            field="artifact",
            remedy="start the server again",
        )
    return artifact
