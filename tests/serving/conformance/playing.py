"""Every scenario on one engine, unguarded and then guarded."""

from pathlib import Path
from typing import Any

from tests.serving.conformance.cast import Cast
from tests.serving.conformance.engine import engine
from tests.serving.conformance.modes import Mode
from tests.serving.conformance.rounds import SCENARIOS


def play_every_scenario(mode: Mode, cast: Cast, folder: Path) -> dict[str, Any]:
    """Return every scenario's outcomes and events, by engine, and what each says about itself."""
    found: dict[str, Any] = {}
    for name, guard in (("unguarded", None), ("guarded", cast.guard)):
        with engine(folder / name, guard, mode.flags, v2=mode.v2, asynchronous=mode.asynchronous) as running:
            found[name] = {
                scenario: [running.play(requests) for requests in rounds(cast)]
                for scenario, rounds in SCENARIOS.items()
            }
            found[f"{name} about"] = running.about
    return found
