"""A console on planted data, and a real browser that looks at it."""

import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from guard.store.engine import engine_for
from serving.offline.process import free_port
from tests.serving.console.planted import TOKEN

CHROMIUM = Path("/usr/bin/chromium")
START_S = 60


@dataclass
class Console:
    """A running console."""

    url: str
    folder: Path
    process: subprocess.Popen

    @property
    def policy(self):
        return (self.folder / "policy.yaml").read_text()


@pytest.fixture(scope="module")
def console(tmp_path_factory):
    """A console with a desk, a store of 600 decisions, and an artifact."""
    folder, port = tmp_path_factory.mktemp("console"), free_port()
    command = [sys.executable, "-m", "tests.serving.console.planted", str(folder), str(port)]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(command, cwd=Path(__file__).parents[3], stdout=log, stderr=log)
    running = Console(f"http://127.0.0.1:{port}/guard/console", folder, process)
    began = time.monotonic()
    while time.monotonic() - began < START_S:
        assert process.poll() is None, (folder / "log").read_text()
        try:
            httpx.get(running.url, timeout=5)
            break
        except httpx.TransportError:
            time.sleep(0.2)
    yield running
    process.kill()
    process.wait()


@pytest.fixture(scope="module")
def chromium():
    """A headless browser."""
    if not CHROMIUM.exists():
        pytest.skip("Chromium is not installed (Debian: apt-get install chromium)")
    sync_api = pytest.importorskip("playwright.sync_api")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=str(CHROMIUM), args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def signed_in(console, chromium):
    """Opens pages of the console, signed in; what they ask of other hosts, and what goes wrong in them, is noted."""
    contexts, outside, errors = [], [], []

    def open_page(path="", *, width=1280, scheme="light"):
        context = chromium.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
        contexts.append(context)
        page = context.new_page()
        host = console.url.split("/")[2]
        page.on("request", lambda request: outside.append(request.url) if host not in request.url else None)
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.goto(console.url)
        page.fill("#token", TOKEN)
        page.click("button")
        page.wait_for_selector("header nav")
        if path:
            page.goto(console.url + path)
        page.wait_for_selector("h1")
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert [url for url in outside if not url.startswith(("data:", "blob:"))] == []
    assert errors == []


@pytest.fixture
def store(console):
    """The store's engine."""
    engine = engine_for(f"sqlite:///{console.folder}/decisions.db")
    yield engine
    engine.dispose()
