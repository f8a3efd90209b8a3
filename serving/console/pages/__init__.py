"""The console's pages, registered with NiceGUI."""

from collections.abc import Awaitable, Callable

from nicegui import ui

from serving.console.frame import PAGES, frame, shown
from serving.console.pages.drift import drift
from serving.console.pages.health import health
from serving.console.pages.live import live
from serving.console.pages.policy import policy
from serving.console.pages.review import review
from serving.console.pages.roc import roc
from serving.console.pages.scores import scores
from serving.console.pages.what_if import what_if
from serving.console.source import Source

Build = Callable[[Source], Awaitable[None]]
_BUILT: dict[str, Build] = {
    "Live": live,
    "Scores": scores,
    "What if": what_if,
    "Review": review,
    "ROC": roc,
    "Policy": policy,
    "Drift": drift,
    "Health": health,
}


def register(source: Source) -> None:
    """Register all pages; they read `source`."""
    for title, path in PAGES.items():
        _register(title, path or "/", _BUILT[title], source)


def _register(title: str, path: str, build: Build, source: Source) -> None:
    @ui.page(path)
    async def page() -> None:
        with frame(title):
            await shown(build, source)
