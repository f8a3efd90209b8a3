"""The guarded server's command with faulty parts in it."""

import sys
from collections.abc import Mapping, Sequence


def faulty_command(command: Sequence[str], parts: Mapping[str, str]) -> list[str]:
    """Return `command`, a guarded server's, with the classes that `serving.launch.server` names replaced by `parts`."""
    replaced = "".join(f"s.{part} = {name!r};" for part, name in parts.items())
    code = (
        f"import sys, serving.launch.server as s; {replaced} "
        f"from guard.cli import main; sys.argv = {list(command)!r}; main()"
    )
    return [sys.executable, "-c", code]
