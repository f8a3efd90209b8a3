"""An operator's whole way, with a real server, a real browser and a real PostgreSQL: from shadow mode to enforcement,
and back, while clients go on asking.
"""

import threading
import time
from collections import Counter

import httpx
import pytest

from guard.policy_history import PolicyHistory
from guard.store.engine import open_store
from guard.store.label import Label, Labels
from guard.store.reader import Reader
from guard.tuning.recent import recent
from guard.verdict import Action
from serving.offline.process import free_port
from tests.guard.store.postgres import Postgres, find_postgres
from tests.serving.console.conftest import CHROMIUM
from tests.serving.server import SERVED_NAME
from tests.serving.world import BENIGN, HARMFUL, block_limit, clearly_harmful, policy_text

pytestmark = [pytest.mark.engine, pytest.mark.timeout(900)]

ADA = "ada's-secret-token"
CALLERS = [f"caller-{number}" for number in range(40)]
MIXED = [*BENIGN, *HARMFUL[:8]]


class Operated:
    """A server, its clients, and what they were told."""

    def __init__(self, server, console, url, state):
        self.server, self.console, self.state = server, console, state
        self.engine = open_store(url)
        self.answers = []
        self.failed = []
        self._is_over = threading.Event()
        self._clients = threading.Thread(target=self._go_on, daemon=True)

    def ask(self, messages, caller):
        body = {"model": SERVED_NAME, "messages": messages, "max_tokens": 1}
        headers = {"authorization": f"Bearer {caller}", "connection": "close"}
        answer = httpx.post(f"{self.server.url}/v1/chat/completions", json=body, headers=headers, timeout=60)
        self.answers.append(answer)
        return answer

    def begin(self):
        """Ask from now on, one request after another."""
        self._clients.start()

    def end(self):
        """Ask no more."""
        self._is_over.set()
        self._clients.join()

    def _go_on(self):
        number = 0
        while not self._is_over.is_set():
            number += 1
            try:
                self.ask(MIXED[number % len(MIXED)], CALLERS[number % len(CALLERS)])
            except httpx.HTTPError as error:
                self.failed.append(error)

    def wait_for(self, condition, seconds=30):
        until = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < until
            time.sleep(0.1)


@pytest.fixture(scope="module")
def database():
    programs = find_postgres()
    if programs is None:
        pytest.skip("PostgreSQL is not installed (Debian: apt-get install postgresql)")
    server = Postgres(programs)
    yield server.new_store()
    server.close()


@pytest.fixture(scope="module")
def operated(start, reference, artifact, database, tmp_path_factory):
    """A server in shadow mode that stores its decisions in PostgreSQL, under a policy with a variant that enforces."""
    port, state = free_port(), tmp_path_factory.mktemp("state")
    about = {
        "FOREGUARD_ADMIN_PORT": str(port),
        "FOREGUARD_ADMIN_TOKENS": f"ada={ADA}",
        "FOREGUARD_STATE": str(state),
        "FOREGUARD_STORE": database,
    }
    limit = block_limit(reference, artifact)
    with start(policy_text(reference, artifact), "--enforce-eager", **about) as server:
        (server.log.parent / "policy.yaml").write_text(
            "# Kept by ada.\nname: story\nversion: '1'\nmode: shadow\noff_template: allow\nrules:\n"
            f"- name: harmful\n  action: block\n  when:\n    harm: {{above: {limit}}}\n"
            "variants:\n  enforcing: {mode: enforce}\n"
        )
        made = Operated(server, f"http://127.0.0.1:{port}/guard/console", database, state)
        made.limit, made.harmful = limit, clearly_harmful(reference, artifact, 1)[0]
        made.wait_for(lambda: made.ask(BENIGN[0], "x").headers["x-guardrail-policy"] == "story@1")
        yield made
        made.engine.dispose()


@pytest.fixture(scope="module")
def page(operated):
    """Ada's browser, signed in."""
    if not CHROMIUM.exists():
        pytest.skip("Chromium is not installed (Debian: apt-get install chromium)")
    sync_api = pytest.importorskip("playwright.sync_api")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=str(CHROMIUM), args=["--no-sandbox"])
        made = browser.new_page()
        made.goto(operated.console)
        made.fill("#token", ADA)
        made.click("button")
        made.wait_for_selector("header nav")
        yield made
        browser.close()


def test_from_shadow_to_everybody_and_back(operated, page):
    """Watch, label, move a threshold seeing beforehand what changes, enforce for 5 %, for all, see drift, roll back.

    Meanwhile no request fails, none goes unguarded, and every decision is in the store.
    """
    operated.begin()
    operated.wait_for(lambda: len(recent(operated.engine, 1000)) >= 150, seconds=120)
    _sees_traffic(operated, page)
    _labels(operated, page)
    moved = _moves_a_threshold(operated, page)
    assert _stopped(operated) == 0
    would = operated.ask(operated.harmful, "x").headers["x-guardrail-event-id"]
    operated.wait_for(lambda: Reader(operated.engine).decision(would))
    assert Reader(operated.engine).decision(would).decision.decision is Action.BLOCK
    _gives_a_canary(operated, page, 5)
    some = _stopped(operated)
    assert 0 < some < len(CALLERS) / 2
    _gives_a_canary(operated, page, 100)
    assert _stopped(operated) == len(CALLERS)
    _sees_drift(operated, page)
    _rolls_back(operated, page)
    assert _stopped(operated) == some
    operated.end()
    _lost_nothing(operated)
    told = [(each.who, each.what) for each in PolicyHistory(operated.state).changes()]
    assert told[:4] == [("ada", "rolled back"), ("ada", "applied"), ("ada", "applied"), ("ada", "applied")]
    assert f"above: {moved}" in (operated.server.log.parent / "policy.yaml").read_text()


def _open(page, operated, path):
    page.goto(f"{operated.console}{path}")
    page.wait_for_selector("h1")


def _sees_traffic(operated, page):
    _open(page, operated, "/")
    page.locator(".tile", has_text="decisions in the last hour").wait_for()
    _open(page, operated, "/scores")
    told = page.locator("[role=img]").first.get_attribute("aria-label")
    assert f"harmful above {operated.limit:.2f}" in told


def _labels(operated, page):
    """By the scores of the lab's own prompts nobody can tell them apart here: all that is asked for is a label each."""
    _open(page, operated, "/review")
    given = []
    for key in "bhub":
        event_id = page.locator("h2").first.inner_text()
        page.keyboard.press(key)
        page.wait_for_function(
            f"document.querySelector('h2') && document.querySelector('h2').innerText != '{event_id}'"
        )
        given.append(event_id)
    labels = Labels(operated.engine).current(given)
    assert [labels[each].label for each in given] == [Label.BENIGN, Label.HARMFUL, Label.UNSURE, Label.BENIGN]
    assert {labels[each].who for each in given} == {"ada"}


def _moves_a_threshold(operated, page):
    """The page says how many decisions change before anything does, and it is so many."""
    _open(page, operated, "/what-if")
    moved = round(operated.limit - 0.25, 2)
    page.get_by_label("Threshold", exact=True).first.fill(str(moved))
    page.get_by_role("slider").and_(page.locator(f'[aria-valuenow="{moved}"]')).wait_for()
    page.wait_for_timeout(500)
    of = int(page.locator(".tile", has_text="of so many").locator("strong").inner_text().replace(",", ""))
    shown = int(page.locator(".tile strong").first.inner_text())
    found = recent(operated.engine, 20_000)
    scores = found.columns["harm"][-of:]
    assert shown == int(((scores > operated.limit) != (scores > moved)).sum())
    page.get_by_role("button", name="Take this threshold to the policy").click()
    page.get_by_text("Proposed: harmful, harm above").wait_for()
    _apply(page)
    text = (operated.server.log.parent / "policy.yaml").read_text()
    assert f"above: {moved}" in text
    assert text.startswith("# Kept by ada.\n")
    return moved


def _apply(page):
    page.get_by_role("button", name="Apply", exact=True).click()
    page.get_by_text("is in force in 1 of 1 processes").wait_for()


def _gives_a_canary(operated, page, percent):
    _open(page, operated, "/policy")
    page.get_by_label("Percent of callers").fill(str(percent))
    page.get_by_role("button", name="Put the canary into the text").click()
    page.locator("code", has_text="canary").first.wait_for()
    _apply(page)


def _stopped(operated):
    """Of one harmful request by every caller, how many were stopped."""
    reasons = [operated.ask(operated.harmful, each).json()["choices"][0]["finish_reason"] for each in CALLERS]
    return reasons.count("content_filter")


def _sees_drift(operated, page):
    """One harmful request a thousand times is not the traffic of calibration: the page says so, and which score."""
    for number in range(400):
        operated.ask(operated.harmful, CALLERS[number % len(CALLERS)])
    page.wait_for_timeout(6000)
    _open(page, operated, "/drift")
    page.get_by_text("Drifted: harm").first.wait_for()
    _open(page, operated, "/")
    page.get_by_role("link", name="See what moved them.").wait_for()


def _rolls_back(operated, page):
    _open(page, operated, "/policy")
    page.get_by_role("button", name="Roll back to").click()
    page.get_by_text("is in force in 1 of 1 processes").wait_for()


def _lost_nothing(operated):
    """Every answer was guarded, none failed, and each decision is in the store under the client's event id."""
    assert operated.failed == []
    assert Counter(answer.status_code for answer in operated.answers).keys() == {200}
    assert all(answer.headers["x-guardrail-policy"].startswith("story@1") for answer in operated.answers[1:])
    asked = {answer.headers["x-guardrail-event-id"] for answer in operated.answers}
    assert len(asked) == len(operated.answers)
    operated.wait_for(lambda: Labels(operated.engine).unknown(asked) == set())
    found = recent(operated.engine, 20_000)
    assert Counter(found.actions.tolist())[Action.BLOCK] > 400
    assert set(found.policies.tolist()) >= {"story@1", "story@1+enforcing"}
