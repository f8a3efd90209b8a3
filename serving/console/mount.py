"""Mounting the console into an application: pages are registered once a process, and read one source."""

import os
import tempfile
from contextlib import suppress

from starlette.applications import Starlette

from probes.errors import ServingError
from serving.admin.operators import Operators
from serving.console.access import PATH, Access
from serving.console.source import Source

INSTALL = "run: pip install 'foreguard[console]'"


def with_console(app: Starlette, source: Source, operators: Operators | None) -> Access:
    """Return `app` with the console at `/guard/console`. Raises `ServingError` where its packages are missing."""
    # NiceGUI would keep sessions in the working folder.
    os.environ.setdefault("NICEGUI_STORAGE_PATH", tempfile.mkdtemp(prefix="foreguard-console-"))
    try:
        from nicegui import ui

        from serving.console.pages import register
    except ImportError as error:
        raise ServingError(f"the console needs the package {error.name}", field="console", remedy=INSTALL) from error
    register(source)
    ui.run_with(
        app,  # type: ignore[arg-type]  # a Starlette application has all that it asks of FastAPI's
        mount_path=PATH,
        title="Foreguard",
        favicon="🛡️",
        dark=None,
        language="en-US",
        tailwind=False,
        show_welcome_message=False,
        storage_secret=None,  # sessions are ours, and it keeps none
        reconnect_timeout=10.0,
    )
    with suppress(AttributeError):
        from nicegui import app as nicegui_app

        nicegui_app.config.socket_io_js_transports = ["websocket"]
    return Access(app, operators)
