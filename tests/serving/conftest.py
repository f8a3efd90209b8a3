"""Servers that many tests share: an engine takes half a minute to start."""

from pathlib import Path

import pytest

from serving.offline.process import free_port, guarded_command, unguarded_command
from tests.serving.lab import MODEL, Reference
from tests.serving.live_policy import ConfigMap
from tests.serving.planted import planted_artifact
from tests.serving.server import FLAGS, permitting, served
from tests.serving.world import world


@pytest.fixture(scope="session")
def reference() -> Reference:
    return Reference()


@pytest.fixture(scope="session")
def artifact_folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("artifact") / "planted"


@pytest.fixture(scope="session")
def artifact(reference, artifact_folder):
    return planted_artifact(reference, artifact_folder)


@pytest.fixture(scope="session")
def cache_root(tmp_path_factory) -> Path:
    """One compile cache for all servers, guarded or not: the trap that a guard must not fall into."""
    return tmp_path_factory.mktemp("vllm-cache")


@pytest.fixture(scope="session")
def start(artifact, artifact_folder, cache_root, tmp_path_factory):
    """Return a function that starts a guarded server with a policy's text, or an unguarded one with none.

    It permits the variables `permit`, which a server otherwise refuses. A `linked` policy is reached by links, as
    Kubernetes mounts a ConfigMap.
    """

    def start(policy: str | None, *vllm: str, permit: tuple[str, ...] = (), linked: bool = False, **environment: str):
        folder, port = tmp_path_factory.mktemp("server"), free_port()
        environment.setdefault("VLLM_CACHE_ROOT", str(cache_root))
        if policy is None:
            return served(unguarded_command(MODEL, port, [*FLAGS, *vllm]), port, folder / "log", environment)
        if linked:
            ConfigMap(folder).write(policy)
        else:
            (folder / "policy.yaml").write_text(policy)
        command = guarded_command(MODEL, artifact_folder, folder / "policy.yaml", port, [*FLAGS, *vllm])
        return served(permitting(command, *permit) if permit else command, port, folder / "log", environment)

    return start


@pytest.fixture(scope="session", params=[pytest.param("eager", marks=pytest.mark.long), "compiled"])
def here(request, start, reference, artifact):
    """A guarded server that blocks, steers and observes, after an unguarded one answered the same prompts."""
    with world(start, reference, artifact, *(["--enforce-eager"] if request.param == "eager" else [])) as made:
        yield made
