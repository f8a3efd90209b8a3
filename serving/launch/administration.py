"""Starting the administration: a process of its own, so that nothing an operator looks at holds a request up."""

import os
import subprocess
import sys
from pathlib import Path

from probes.errors import ServingError
from serving.admin.operators import Operators
from serving.config import GuardConfig
from serving.settings import ADMIN_TOKENS, STATE
from serving.state import DRIFT, PROCESSES
from serving.store_settings import StoreSettings


def take_tokens() -> str:
    """Take the operators' tokens out of the environment, where vLLM's processes would have them, and return them.

    Raises `ServingError` where there are none, or weak ones.
    """
    tokens = os.environ.pop(ADMIN_TOKENS, "")
    Operators.parse(tokens)
    return tokens


def keep_state(folder: Path) -> None:
    """Have this server's processes keep their state in `folder`. Raises `ServingError` where they cannot."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for each in (PROCESSES, DRIFT):
            (folder / each).mkdir(exist_ok=True)
            for left in (folder / each).glob("*.json"):
                left.unlink()  # of a server that was killed
    except OSError as error:
        raise ServingError(
            f"cannot be written: {error.strerror}", field="--state", remedy="name a folder that can be"
        ) from error
    os.environ[STATE] = str(folder.resolve())


def administrate(
    config: GuardConfig, tokens: str, host: str, port: int, state: Path, store: StoreSettings | None
) -> subprocess.Popen[str]:
    """Start the administration; it ends when this process does, or when its standard input is closed."""
    process = subprocess.Popen(  # noqa: S603 - of this very program
        [sys.executable, "-m", "serving.console", host, str(port), str(state.resolve())],
        stdin=subprocess.PIPE,
        text=True,
        env=os.environ | {ADMIN_TOKENS: tokens},
    )
    assert process.stdin is not None  # noqa: S101 - it is a pipe
    print(config.model_dump_json(), file=process.stdin)
    print(store.model_dump_json() if store else "", file=process.stdin, flush=True)
    return process
