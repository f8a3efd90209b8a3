"""A real server and its clients."""

import asyncio
import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import openai
import psutil

from serving.offline.process import ServerProcess, running

SERVED_NAME = "lab"
FLAGS = ["--served-model-name", SERVED_NAME, "--max-model-len", "1024"]


@dataclass
class Server:
    """A running server."""

    process: ServerProcess
    clients: dict[str, openai.OpenAI] = field(default_factory=dict)

    @property
    def url(self) -> str:
        return self.process.url

    @property
    def log(self) -> Path:
        return self.process.log

    def client(self, key: str = "none") -> openai.OpenAI:
        if key not in self.clients:
            self.clients[key] = openai.OpenAI(base_url=f"{self.url}/v1", api_key=key, max_retries=0, timeout=60)
        return self.clients[key]

    def async_client(self, key: str = "none") -> openai.AsyncOpenAI:
        """Return a client to be used as an async context manager."""
        return openai.AsyncOpenAI(base_url=f"{self.url}/v1", api_key=key, max_retries=0, timeout=60)

    def metric(self, name: str, /, **labels: str) -> float:
        """Return the value of one metric on /metrics, summed over the series that match `labels`."""
        wanted = [f'{key}="{text}"' for key, text in labels.items()]
        samples = self.process.metrics().items()
        return sum(value for head, value in samples if head.split("{")[0] == name and all(w in head for w in wanted))

    @contextmanager
    def engine_stopped(self) -> Iterator[Callable[[], None]]:
        """Stop the engine, so that requests wait, until the function that this yields is called."""
        children = psutil.Process(self.process.pid).children(recursive=True)
        engines = [child for child in children if "EngineCore" in " ".join(child.cmdline())]
        assert engines

        def go_on() -> None:
            for engine in engines:
                engine.resume()

        for engine in engines:
            engine.suspend()
        try:
            yield go_on
        finally:
            go_on()


def permitting(command: list[str], *variables: str) -> list[str]:
    """Return `command`, a guarded server's, that does not refuse these variables: for tests that need what they
    open.
    """
    code = (
        f"import sys; from serving.launch.environment import REFUSED; [REFUSED.pop(name) for name in {variables!r}];"
        f" from guard.cli import main; sys.argv = {command!r}; main()"
    )
    return [sys.executable, "-c", code]


@contextmanager
def served(command: list[str], port: int, log: Path, environment: dict[str, str]) -> Iterator[Server]:
    """Run a server, and close its clients before it stops."""
    with running(command, port, log, environment) as process:
        server = Server(process)
        yield server
        for client in server.clients.values():
            client.close()


async def hang_up(port: int, content: str, after: float = 0.01, at: bytes | None = None, **options) -> bytes:
    """Ask a chat question, and close the connection `after` so many seconds, or when the bytes `at` have come.

    Returns what had come by then.
    """
    body = json.dumps(
        {"model": SERVED_NAME, "messages": [{"role": "user", "content": content}], "max_tokens": 64, **options}
    ).encode()
    headers = f"Host: lab\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(b"POST /v1/chat/completions HTTP/1.1\r\n" + headers.encode() + body)
    await writer.drain()
    come = bytearray()
    try:
        async with asyncio.timeout(after):
            while piece := await reader.read(65536):
                come += piece
                if at and at in come:
                    break
    except TimeoutError:
        pass
    writer.close()
    await writer.wait_closed()
    return bytes(come)
