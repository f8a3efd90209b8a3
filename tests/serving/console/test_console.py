"""The console in a real browser: it shows what was planted, changes what is asked for, and lets nobody else in."""

import re

import httpx
import numpy as np
import pytest

from guard.store.label import Label, Labels
from serving.console.frame import PAGES
from tests.serving.console.planted import COUNT, POLICY, TOKEN, scores

AXE = pytest.importorskip("axe_playwright_python.sync_playwright").Axe
SERIOUS = ("serious", "critical")


def cells(page, caption):
    """Return the text of a table's rows, by its caption's beginning."""
    table = page.locator("table", has=page.locator("caption", has_text=re.compile(f"^{re.escape(caption)}")))
    return [row.locator("td").all_inner_texts() for row in table.locator("tbody tr").all()]


@pytest.mark.parametrize(
    ("width", "scheme"),
    [
        (1280, "light"),
        (390, "dark"),
        pytest.param(390, "light", marks=pytest.mark.long),
        pytest.param(1280, "dark", marks=pytest.mark.long),
    ],
)
def test_every_page_can_be_read_by_everybody(signed_in, console, width, scheme):
    """At a desk and on a phone, in the light and in the dark: no page scrolls sideways, and axe finds nothing
    serious.
    """
    page, axe = signed_in(width=width, scheme=scheme), AXE()
    for title, path in PAGES.items():
        page.goto(console.url + path)
        page.wait_for_selector(f'header a[aria-current="page"]:has-text("{title}")')
        page.wait_for_timeout(300)
        assert page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth") <= 0, title
        found = axe.run(page).response["violations"]
        assert [(each["id"], each["nodes"][0]["html"]) for each in found if each["impact"] in SERIOUS] == [], title


def test_links_lead_from_page_to_page(signed_in):
    """Each of the header's links opens the page that it names."""
    page = signed_in()
    for title in PAGES:
        page.get_by_role("link", name=title, exact=True).click()
        page.wait_for_selector(f'header a[aria-current="page"]:has-text("{title}")')


def test_the_last_hour_is_counted(signed_in):
    """Decisions, would-be stops and the policy of each replica are those that were planted."""
    page = signed_in()
    planted, _ = scores()
    stopped = int((planted > 1).sum())
    assert page.locator(".tile", has_text="decisions in the last hour").inner_text().startswith(f"{COUNT}")
    assert f"{stopped} ({stopped / COUNT:.1%})" in page.locator(".tile", has_text="would be").inner_text()
    [replica] = cells(page, "The last decision of each of 1 replicas")
    assert (replica[0], replica[1], replica[3]) == ("one", "planted@1", str(COUNT))
    assert page.locator("[role=img]").count() == 2


def test_scores_are_drawn_over_calibration_s(signed_in):
    """The description for who cannot see the chart names the means and the thresholds."""
    page = signed_in("/scores")
    told = page.locator("[role=img]").first.get_attribute("aria-label")
    planted, _ = scores()
    mean = float(re.search(r"own traffic has a mean of (-?[\d.]+)", told)[1])
    assert mean == pytest.approx(planted.mean(), abs=0.1)
    assert "harmful above 2.00" in told
    assert "doubtful above 1.00" in told


@pytest.mark.parametrize("cut", [1.5, 2.5, 3.25])
def test_what_another_threshold_would_have_done(signed_in, cut):
    """Counts by action and tenant are those of an independent count of the planted scores."""
    page = signed_in("/what-if")
    page.get_by_label("Threshold", exact=True).first.fill(str(cut))
    page.wait_for_function("document.querySelector('.tile strong').innerText != '0'")
    planted, _ = scores()
    now = {"block": int((planted > 2).sum()), "flag": int(((planted > 1) & (planted <= 2)).sum()), "steer": 0}
    then = {"block": int((planted > cut).sum()), "flag": int(((planted > 1) & (planted <= cut)).sum()), "steer": 0}
    rows = {row[0]: (int(row[1]), int(row[2])) for row in cells(page, "Decisions by action")}
    assert {action: rows[action] for action in now} == {action: (now[action], then[action]) for action in now}
    changed = int(((planted > 2) != (planted > cut)).sum())
    assert page.locator(".tile strong").first.inner_text() == str(changed)
    assert len(cells(page, "The newest of")) == min(changed, 50)
    school = planted[np.arange(COUNT) % 3 == 1]
    [of_school] = [row for row in cells(page, "By tenant") if row[0] == "school"]
    assert of_school[4] == f"{int((school > 2).sum())} → {int((school > cut).sum())}"


def test_the_slider_moves_by_keyboard(signed_in):
    """It can be reached with the tab key, and an arrow key changes the threshold and the counts."""
    page = signed_in("/what-if")
    page.get_by_label("Threshold", exact=True).first.focus()
    page.keyboard.press("Tab")
    before = page.get_by_label("Threshold", exact=True).first.input_value()
    for _ in range(40):
        page.keyboard.press("ArrowLeft")
    page.wait_for_function("document.querySelector('.tile strong').innerText != '0'")
    assert float(page.get_by_label("Threshold", exact=True).first.input_value()) < float(before)


def test_a_rate_has_a_threshold_or_says_how_many_labels_are_missing(signed_in):
    """5 % is certified by the 120 even benign labels; for 0.1 % the page says how many more it takes."""
    page = signed_in("/what-if")
    rate = page.get_by_label("False-positive rate, %")
    rate.fill("5")
    page.get_by_role("button", name="Find the threshold").click()
    page.get_by_text("certified by 120 benign labels").wait_for()
    rate.fill("0.1")
    page.get_by_role("button", name="Find the threshold").click()
    page.get_by_text("Not certified: 2,875 more benign labels are needed (120 of 2,995 are there).").wait_for()


def test_labels_are_given_by_keyboard_and_taken_back(signed_in, store):
    """One key a label, with who gave it, how the decision was picked and by which chance; `z` takes the last one
    back.
    """
    page = signed_in("/review")
    given = []
    for key, label in (("b", Label.BENIGN), ("h", Label.HARMFUL)):
        event_id = page.locator("h2").first.inner_text()
        page.keyboard.press(key)
        page.wait_for_function(f"document.querySelector('h2').innerText != '{event_id}'")
        given.append((event_id, label))
    current = Labels(store).current([event_id for event_id, _ in given])
    for event_id, label in given:
        assert (current[event_id].label, current[event_id].who) == (label, "ada")
        assert 0 < current[event_id].chance <= 1
        assert current[event_id].source.startswith("review")
    page.keyboard.press("z")
    page.wait_for_function(f"document.querySelector('h2').innerText == '{given[1][0]}'")
    assert given[1][0] not in Labels(store).current([given[1][0]])
    assert [each.label for each in Labels(store).history(given[1][0])][-1] is Label.WITHDRAWN


def test_a_curve_needs_labels_and_has_a_table(signed_in):
    """The AUROC of the planted labels stands over the recall at each rate that they can show."""
    page = signed_in("/roc")
    [caption] = page.locator("caption").all_inner_texts()
    assert float(re.search(r"AUROC ([\d.]+)", caption)[1]) > 0.97
    assert [row[0] for row in cells(page, "AUROC")] == ["1.0%", "5.0%"]


def test_a_threshold_is_taken_to_the_policy_applied_and_rolled_back(signed_in, console):
    """The difference is shown first; comments stay; the history says who; and the way back is one button."""
    page = signed_in("/what-if")
    page.get_by_label("Threshold", exact=True).first.fill("2.5")
    page.wait_for_function("document.querySelector('.tile strong').innerText != '0'")
    page.get_by_role("button", name="Take this threshold to the policy").click()
    page.get_by_text("Proposed: harmful, harm above 2.5000").wait_for()
    assert "+      harm: {above: 2.5}  # a number" in page.locator("code").first.inner_text()
    assert console.policy == POLICY
    page.get_by_role("button", name="Apply", exact=True).click()
    page.get_by_text("is in force in 2 of 2 processes").wait_for()
    assert console.policy == POLICY.replace("above: 2.0", "above: 2.5")
    page.goto(f"{console.url}/policy")
    assert cells(page, "Changes")[0][1:3] == ["ada", "applied"]
    page.get_by_role("button", name=re.compile("Roll back")).click()
    page.get_by_text("is in force in 2 of 2 processes").wait_for()
    assert console.policy == POLICY


def test_a_canary_is_put_into_the_text_and_taken_out(signed_in, console):
    """5 % of callers come under the variant once it is applied; 0 takes the line away again."""
    page = signed_in("/policy")
    for percent, expected in (("5", "\ncanary: {variant: enforcing, percent: 5.0}\n"), ("0", None)):
        page.get_by_label("Percent of callers").fill(percent)
        page.get_by_role("button", name="Put the canary into the text").click()
        page.locator("code").first.wait_for()
        page.get_by_role("button", name="Apply", exact=True).click()
        page.get_by_text("is in force in 2 of 2 processes").wait_for()
        assert (expected in console.policy) if expected else ("canary" not in console.policy)
        page.goto(f"{console.url}/policy")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("rules: [", "Not applied."),
        (POLICY.replace("harm:", "nothing:"), "no probe"),
        (POLICY.replace("above: 2.0", "above: -9.0").replace("mode: shadow", "mode: enforce"), "blocks 100%"),
    ],
)
def test_a_bad_policy_is_refused_with_its_reason(signed_in, console, text, said):
    """No process goes by it, and the file stays; one that blocks everything has to be confirmed."""
    page = signed_in("/policy")
    before = console.policy
    page.get_by_label("Policy file (YAML)").fill(text)
    page.get_by_role("button", name="Apply", exact=True).click()
    page.get_by_text(said).first.wait_for()
    assert console.policy == before


@pytest.mark.parametrize("path", ["", *[path for path in PAGES.values() if path], "/_nicegui/3.18.0/static/nicegui.js"])
def test_without_a_token_there_is_nothing(console, path):
    """Pages lead to the sign-in, files are refused; every answer forbids being framed."""
    answer = httpx.get(console.url + path)
    assert answer.status_code in (303, 401)
    assert answer.headers["x-frame-options"] == "DENY"
    assert "planted" not in answer.text


@pytest.mark.parametrize("token", ["", "wrong-token-of-nobody", TOKEN.upper(), "x" * 5000])
def test_a_wrong_token_opens_nothing(console, token):
    """No cookie comes with the refusal that would let anyone in."""
    with httpx.Client() as client:
        refused = client.post(f"{console.url}/sign-in", data={"token": token})
        assert refused.status_code == 401
        assert client.get(console.url).status_code == 303


def test_the_cookie_is_for_this_site_alone(console):
    """Scripts cannot read it, other sites cannot send it, and signing out ends it."""
    with httpx.Client() as client:
        signed = client.post(f"{console.url}/sign-in", data={"token": TOKEN})
        cookie = signed.headers["set-cookie"].lower()
        assert "httponly" in cookie
        assert "samesite=strict" in cookie
        assert client.get(f"{console.url}/").status_code == 200
        client.post(f"{console.url}/sign-out")
        assert client.get(f"{console.url}/").status_code == 303


def test_a_websocket_of_another_site_is_refused(console):
    """Also with the cookie: whoever lures an operator onto a page gets nothing of the console."""
    websockets = pytest.importorskip("websockets.sync.client")
    with httpx.Client() as client:
        client.post(f"{console.url}/sign-in", data={"token": TOKEN})
        cookie = "; ".join(f"{name}={value}" for name, value in client.cookies.items())
    address = console.url.replace("http", "ws") + "/_nicegui_ws/socket.io/?EIO=4&transport=websocket"
    for headers in ({}, {"cookie": cookie}):
        with pytest.raises(Exception, match="403"):
            websockets.connect(address, additional_headers=headers, origin="http://elsewhere.example")
