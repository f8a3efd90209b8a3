"""The guard's worker for weights that vLLM makes up, which no artifact was calibrated on."""

from collections.abc import Sequence

from probes.artifact import Artifact
from serving.worker.worker import GuardedWorker


class MadeUp(GuardedWorker):
    """A guarded worker that takes any model for its artifact's."""

    def foreguard_require_settings(self) -> None:
        """Take them: no file is read."""

    def foreguard_require_calibrated(self, artifacts: Sequence[Artifact]) -> None:
        """Take it: what is measured is time."""
