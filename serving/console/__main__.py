"""The administration's process, as `foreguard serve --admin-port` starts it: beside the server, and ended with it.

It serves the HTTP interface of `serving.admin`, and the console where its packages are installed.

Standard input is a pipe from the server's process: the guard's configuration in one line, the decision store's settings
in the next (an empty one without a store), and then nothing until that process ends.
"""

import os
import sys
import threading
from pathlib import Path

import uvicorn
from starlette.applications import Starlette
from starlette.types import ASGIApp

from probes.errors import ServingError
from serving.admin.app import application
from serving.admin.drift_desk import DriftDesk
from serving.admin.operators import Operators
from serving.admin.policy_desk import PolicyDesk
from serving.admin.store_desk import StoreDesk
from serving.config import GuardConfig
from serving.console.mount import with_console
from serving.console.source import Source
from serving.settings import ADMIN_TOKENS
from serving.store_settings import StoreSettings


def main(host: str, port: str, state: str) -> None:
    """Serve on an address until the server ends; `state` is the folder of its state."""
    config = GuardConfig.model_validate_json(sys.stdin.readline())
    line = sys.stdin.readline().strip()
    store = StoreDesk(StoreSettings.model_validate_json(line) if line else None)
    desk, operators = PolicyDesk(config, Path(state)), Operators.parse(os.environ[ADMIN_TOKENS])
    desk.history()  # which notes what the server starts with
    drift = DriftDesk(Path(state))
    source = _source(config, desk, drift, store)
    app = _with_console(application(desk, drift, operators, store), source, operators)
    server = uvicorn.Server(uvicorn.Config(app, host, int(port), log_level="warning"))
    threading.Thread(target=_end_with_stdin, args=[server], daemon=True).start()
    server.run()


def _source(config: GuardConfig, desk: PolicyDesk, drift: DriftDesk, store: StoreDesk) -> Source:
    """Return what the console reads."""
    artifact = config.load_artifact()
    if store.settings is None:
        return Source(None, None, config, artifact, desk, drift)
    from guard.store.text_vault import TextVault

    cipher = store.settings.cipher()
    return Source(store.engine, TextVault(store.engine, cipher) if cipher else None, config, artifact, desk, drift)


def _with_console(app: Starlette, source: Source, operators: Operators) -> ASGIApp:
    """Return the application with the console, or without it where its packages are missing."""
    try:
        return with_console(app, source, operators)
    except ServingError as error:
        print(f"foreguard: no console: {error.problem}; {error.remedy}", file=sys.stderr, flush=True)
        return app


def _end_with_stdin(server: uvicorn.Server) -> None:
    sys.stdin.read()
    server.should_exit = True


if __name__ == "__main__":
    main(*sys.argv[1:])
