"""The console beside a fleet: a process of its own that reads the fleet's decision store."""

from pathlib import Path

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import Route

from guard.store.packages import require_packages
from probes.artifact import Artifact
from serving.admin.operators import Operators
from serving.config import GuardConfig
from serving.console.access import PATH
from serving.console.mount import with_console
from serving.console.source import Source


def serve_beside(
    store: str, artifact: Path | None, policy: Path | None, operators: Operators | None, host: str, port: int
) -> None:
    """Serve until interrupted. Raises `ForeguardError` for what cannot be opened."""
    require_packages()
    app = Starlette(routes=[Route("/", _to_console)])
    guarded = with_console(app, source_of(store, artifact, policy), operators)
    print(f"foreguard: the console is at http://{host}:{port}{PATH}", flush=True)
    uvicorn.run(guarded, host=host, port=port, log_level="warning")


def source_of(store: str, artifact: Path | None, policy: Path | None) -> Source:
    """Return what the pages read."""
    from guard.store.cipher import cipher_from
    from guard.store.engine import engine_for
    from guard.store.text_vault import TextVault

    engine, cipher = engine_for(store), cipher_from()
    loaded = Artifact.load(artifact) if artifact else None
    config = None
    if loaded is not None and artifact is not None and policy is not None:
        config = GuardConfig(artifact=artifact, artifact_digest=loaded.manifest.digest, policy=policy)
        config.bind_policies([loaded])
    return Source(engine, TextVault(engine, cipher) if cipher else None, config, loaded)


async def _to_console(_request: Request) -> Response:
    return RedirectResponse(PATH)
