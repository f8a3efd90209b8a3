"""The guard's worker under connectors that keep blocks as these tests want it: a server may have none of them."""

from serving.worker.worker import GuardedWorker


class Worker(GuardedWorker):
    """A guarded worker that takes any of vLLM's settings."""

    def foreguard_require_settings(self) -> None:
        """Take them."""
