"""The administration's process, as `foreguard serve --admin-port` starts it: beside the server, and ended with it.

Standard input is a pipe from the server's process: the guard's configuration in one line, and then nothing until that
process ends.
"""

import os
import sys
import threading
from pathlib import Path

import uvicorn

from serving.admin.app import application
from serving.admin.drift_desk import DriftDesk
from serving.admin.operators import Operators
from serving.admin.policy_desk import PolicyDesk
from serving.config import GuardConfig
from serving.settings import ADMIN_TOKENS


def main(host: str, port: str, state: str) -> None:
    """Serve on an address until the server ends; `state` is the folder of its state."""
    config = GuardConfig.model_validate_json(sys.stdin.readline())
    desk, operators = PolicyDesk(config, Path(state)), Operators.parse(os.environ[ADMIN_TOKENS])
    desk.history()  # which notes what the server starts with
    app = application(desk, DriftDesk(Path(state)), operators)
    server = uvicorn.Server(uvicorn.Config(app, host, int(port), log_level="warning"))
    threading.Thread(target=_end_with_stdin, args=[server], daemon=True).start()
    server.run()


def _end_with_stdin(server: uvicorn.Server) -> None:
    sys.stdin.read()
    server.should_exit = True


if __name__ == "__main__":
    main(*sys.argv[1:])
