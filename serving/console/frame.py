"""What all pages have in common: the header with its links, headings, tables, and what is said where nothing is."""

import html
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import ParamSpec, TypeVar

from nicegui import run, ui

from probes.errors import ForeguardError
from serving.console.access import SIGN_OUT, WHO
from serving.console.source import Source, told

PAGES = {
    "Live": "",
    "Scores": "/scores",
    "What if": "/what-if",
    "Review": "/review",
    "ROC": "/roc",
    "Policy": "/policy",
    "Drift": "/drift",
    "Health": "/health",
}
"""Titles and paths, in the order of the header."""
_CSS = """
:root { color-scheme: light dark; }
body { font-family: system-ui, sans-serif; }
header { background: #14304f !important; color: #fff; }
header nav { display: flex; flex-wrap: wrap; gap: .2rem .9rem; align-items: baseline; }
header nav a { color: #fff !important; padding: .35rem 0; }
header nav a[aria-current] { font-weight: 700; border-bottom: 2px solid #fff; }
.page { width: 100%; max-width: 72rem; margin: 0 auto; }
h1 { font-size: 1.5rem; font-weight: 600; line-height: 1.3; margin: .2rem 0; }
h2 { font-size: 1.15rem; font-weight: 600; line-height: 1.3; margin: 1rem 0 .2rem; }
.page p { margin: .2rem 0; max-width: 48rem; }
.numbers { overflow-x: auto; width: 100%; }
.numbers table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
.numbers caption { text-align: left; font-weight: 600; padding: .3rem 0; }
@media (min-width: 40rem) { .numbers caption { white-space: nowrap; } }
.page > .q-btn { align-self: flex-start; }
.numbers th, .numbers td { text-align: left; padding: .25rem .9rem .25rem 0; border-bottom: 1px solid #8886;
  vertical-align: top; }
.numbers td.right, .numbers th.right { text-align: right; }
.tiles { display: flex; flex-wrap: wrap; gap: 1rem 2rem; }
.tile strong { display: block; font-size: 1.5rem; font-weight: 600; font-variant-numeric: tabular-nums; }
.side { display: flex; flex-wrap: wrap; gap: .5rem 2rem; width: 100%; }
.side > * { flex: 1 1 20rem; min-width: 0; }
.chart { width: 100%; height: 18rem; }
.alarm { border-left: 4px solid #c22; padding: .3rem .8rem; width: 100%; }
.note { border-left: 4px solid #888; padding: .3rem .8rem; }
pre { white-space: pre-wrap; overflow-wrap: anywhere; margin: 0; font-size: .85rem; }
:focus-visible { outline: 3px solid #3b8eea !important; outline-offset: 2px; }
.skip { position: absolute; left: -100rem; } .skip:focus { left: .5rem; top: .5rem; z-index: 9999; background: #fff; }
"""
P = ParamSpec("P")
T = TypeVar("T")


def operator() -> str:
    """Return the name of the operator who looks at the page; empty where nobody signs in."""
    request = ui.context.client.request
    return str(request.session.get(WHO, "")) if request else ""


@contextmanager
def frame(title: str) -> Iterator[None]:
    """Lay a page out, and put what follows into its main part."""
    ui.add_css(_CSS)
    ui.colors(primary="#1f4e86", negative="#a11d1d")
    ui.page_title(f"{title} · Foreguard")
    ui.link("Skip to the page", "#main").classes("skip")
    with ui.header().classes("items-center justify-between"):
        with ui.element("nav").props('aria-label="Pages"'):
            for name, path in PAGES.items():
                link = ui.link(name, path or "/")
                if name == title:
                    link.props('aria-current="page"')
        _sign_out()
    with ui.element("div").props('id="main"').classes("page q-pa-sm column no-wrap"):
        heading(title, 1)
        yield


def _sign_out() -> None:
    if name := operator():
        ui.html(
            f'<form method="post" action="{SIGN_OUT}">{html.escape(name)} '
            '<button style="margin-left:.6rem">Sign out</button></form>',
            sanitize=False,
        )


def heading(text: str, level: int = 2) -> None:
    """Show a heading."""
    ui.html(html.escape(text), sanitize=False, tag=f"h{level}")


def paragraph(text: str, css: str = "") -> None:
    """Show a paragraph of plain text."""
    ui.html(html.escape(text), sanitize=False, tag="p").classes(css)


def nothing_yet(text: str) -> None:
    """Say that there is nothing to show, and what to do about it."""
    paragraph(text, "note")


def tiles(numbers: Iterable[tuple[str, str]]) -> None:
    """Show a few numbers large: what they are of, and the numbers."""
    shown = "".join(
        f'<div class="tile"><strong>{html.escape(number)}</strong>{html.escape(of)}</div>' for of, number in numbers
    )
    ui.html(shown, sanitize=False).classes("tiles")


def table(caption: str, heads: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Show a table; numbers stand at the right. Text is plain: whatever is in it is shown as it is."""
    body = "".join(f"<tr>{''.join(_cell(each) for each in row)}</tr>" for row in rows)
    head = "".join(f'<th scope="col">{html.escape(each)}</th>' for each in heads)
    text = (
        f"<table><caption>{html.escape(caption)}</caption><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
    )
    ui.html(text, sanitize=False).classes("numbers").props(f'tabindex="0" role="region" aria-label="{_named(caption)}"')


def _named(text: str) -> str:
    return html.escape(text.replace('"', "'"))


def _cell(value: object) -> str:
    is_number = isinstance(value, int | float)
    shown = f"{value:,}" if isinstance(value, int) else f"{value:.4g}" if isinstance(value, float) else str(value)
    return f'<td class="right">{shown}</td>' if is_number else f"<td>{html.escape(shown)}</td>"


async def shown(build: Callable[P, Awaitable[None]], *args: P.args, **kwargs: P.kwargs) -> None:
    """Build a part of a page; where that cannot be done, say why and what to do."""
    try:
        await build(*args, **kwargs)
    except ForeguardError as error:
        ui.html(html.escape(told(error)), sanitize=False, tag="p").classes("alarm").props('role="alert"')


async def in_thread(ask: Callable[[], T]) -> T:
    """Return what `ask` reads, while the page stays alive."""
    return await run.io_bound(ask)  # type: ignore[return-value]  # None only where the process ends


async def stored(source: Source, ask: Callable[[], T]) -> T:
    """Return what `ask` reads of the source's store. Raises `StoreGone`."""
    return await in_thread(lambda: source.read(ask))
