"""A client that people use, in a process of its own: asked one thing at a time, its requests counted in the server's
log.
"""

import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.serving.server import SERVED_NAME, Server

SCRIPTS = Path(__file__).parent / "scripts"
INSTALLED = Path(__file__).parents[2] / ".venv" / "clients"
_REQUEST = re.compile(r'"(?:GET|POST) (/v1/\S+) HTTP/[\d.]+" (\d+)')
"""A line of uvicorn's access log: it is written before the client has the answer's first byte."""

ENVIRONMENT = {
    "OPENAI_API_KEY": "none",
    "ANTHROPIC_API_KEY": "none",
    "HF_HUB_OFFLINE": "1",
    # Nothing outside the machine is asked.
    "LITELLM_LOCAL_MODEL_COST_MAP": "True",
    "OPENAI_AGENTS_DISABLE_TRACING": "1",
    "LANGSMITH_TRACING": "false",
}


@dataclass(frozen=True)
class Seen:
    """What a client made of one request: what it gave back, or the error that it raised."""

    requests: list[tuple[str, int]]
    """Path and status of each request that it made."""
    text: str | None = None
    """All that it would show to a person."""
    finish: str | None = None
    refusal: str | None = None
    error: str | None = None
    """The class of the error."""
    said: str = ""
    """The error's own text."""
    code: str | None = None
    more: dict[str, Any] = field(default_factory=dict)


@dataclass
class Client:
    """A running script of `scripts/` and the server that it talks to."""

    process: "subprocess.Popen[str]"
    server: Server

    def ask(self, case: str, prompt: str) -> Seen:
        """Have the client do `case` with `prompt`."""
        before = self.server.log.stat().st_size
        self.process.stdin.write(json.dumps({"case": case, "prompt": prompt}) + "\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        assert line, f"the client's process ended with {self.process.wait(10)}"
        return Seen(requests=requests_since(self.server, before), **json.loads(line))


def requests_since(server: Server, position: int) -> list[tuple[str, int]]:
    """Return path and status of the requests that the server's log tells of behind `position`."""
    with server.log.open("rb") as log:
        log.seek(position)
        return [(path, int(status)) for path, status in _REQUEST.findall(log.read().decode(errors="replace"))]


def command(script: str) -> list[str]:
    """Return the command of a script. Skips the test where there is no Node.js and the script needs it."""
    assert (INSTALLED / ".installed").exists(), "install the clients: make .venv/clients/.installed"
    if script.endswith(".py"):
        return [str(INSTALLED / "bin" / "python"), str(SCRIPTS / script)]
    if shutil.which("node") is None:
        pytest.skip("node is not on PATH: install Debian's nodejs and npm, then make .venv/clients/.installed again")
    return ["node", str(SCRIPTS / script)]


@contextmanager
def running_client(script: str, server: Server, log: Path) -> Iterator[Client]:
    """Run a script of `scripts/` against `server` until the test is done with it; what it says on stderr is in
    `log`.
    """
    given = {"FOREGUARD_URL": server.url, "FOREGUARD_MODEL": SERVED_NAME}
    with log.open("w") as errors:
        process = subprocess.Popen(
            command(script),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            env={**os.environ, **ENVIRONMENT, **given},
            # Node.js looks for packages where it stands.
            cwd=INSTALLED / "node",
        )
        try:
            yield Client(process, server)
        finally:
            process.stdin.close()
            process.kill()
            process.wait(10)
            process.stdout.close()
