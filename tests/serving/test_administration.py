"""An operator changes the policy of a live server from a terminal: applied everywhere, written down, rolled back."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import httpx
import psutil
import pytest

from serving.offline.process import free_port
from tests.serving.live_policy import Live
from tests.serving.world import block_limit, clearly_harmful, policy_text

pytestmark = [pytest.mark.engine, pytest.mark.timeout(600)]

ADA = "ada's-secret-token"


class Administered(Live):
    """A server of two API processes that is administrated, and Ada's terminal."""

    def __init__(self, server, limit, harmful, port, state):
        super().__init__(server, limit, harmful)
        self.admin = f"http://127.0.0.1:{port}"
        self.state = state

    def command(self, *args, bearer=ADA, group="policy"):
        """Run `foreguard policy` with these arguments; return its status and what it printed."""
        foreguard = str(Path(sys.executable).with_name("foreguard"))
        about = {"FOREGUARD_ADMIN_URL": self.admin, "FOREGUARD_ADMIN_TOKEN": bearer, "COLUMNS": "200"}
        done = subprocess.run(
            [foreguard, group, *args], capture_output=True, text=True, check=False, env=os.environ | about, timeout=60
        )
        return done.returncode, done.stdout + done.stderr

    def drift(self, *args):
        """Run `foreguard drift` with these arguments; return its status and what it printed."""
        return self.command(*args, group="drift")

    def apply(self, text, *args):
        """Apply a policy."""
        path = self.state / "new.yaml"
        path.write_text(text)
        return self.command("apply", str(path), *args)

    def process(self):
        """The administration's process."""
        children = psutil.Process(self.server.process.pid).children(recursive=True)
        [found] = [child for child in children if "serving.console" in " ".join(child.cmdline())]
        return found


@pytest.fixture(scope="module")
def live(start, reference, artifact, tmp_path_factory):
    """A server, its administration, and a folder for its state."""
    port, state = free_port(), tmp_path_factory.mktemp("state")
    about = {
        "FOREGUARD_ADMIN_PORT": str(port),
        "FOREGUARD_ADMIN_TOKENS": f"ada={ADA}",
        "FOREGUARD_STATE": str(state),
    }
    flags = ["--enforce-eager", "--api-server-count", "2"]
    with start(policy_text(reference, artifact), *flags, **about) as server:
        yield Administered(
            server, block_limit(reference, artifact), clearly_harmful(reference, artifact, 4), port, state
        )


def test_a_policy_is_applied_everywhere_and_rolled_back(live):
    """Both API processes go by it when the command returns; the history says who did it."""
    for action in ("flag", "block"):
        status, printed = live.apply(live.text(action, action=action))
        assert (status, f"{action}@1" in printed, "in force in 2 of 2 processes" in printed) == (0, True, True), printed
        assert live.labels() == {f"{action}@1"}
        assert live.ask(live.harmful[0]).headers["x-guardrail-decision"] == action
    status, printed = live.command("rollback")
    assert (status, "flag@1" in printed) == (0, True), printed
    assert live.labels() == {"flag@1"}
    assert live.ask(live.harmful[0]).headers["x-guardrail-decision"] == "flag"
    status, printed = live.command("history")
    rows = [line for line in printed.splitlines() if "ada" in line]
    assert [bool(re.search(what, row)) for what, row in zip(("rolled back", "applied", "applied"), rows, strict=True)]
    assert "file" in printed
    assert live.command("show") == (0, live.text("flag", action="flag"))
    status, printed = live.command("status")
    assert (status, printed.count("flag@1")) == (0, 2)


def test_what_changes_is_shown_first(live):
    """A file against the server's, with nothing applied."""
    live.apply(live.text("shown"))
    path = live.state / "other.yaml"
    path.write_text(live.text("shown", action="flag"))
    status, printed = live.command("diff", str(path))
    assert status == 0
    assert "-- {name: harmful, action: block" in printed
    assert "+- {name: harmful, action: flag" in printed
    assert live.labels() == {"shown@1"}


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda text: text.replace("harm:", "nothing:"), "nothing"),
        (lambda text: text + "unknown: 1\n", "unknown"),
        (lambda text: re.sub(r"above: [^}]+", "above: -1000000.0", text), "benign prompts"),
    ],
)
def test_a_bad_policy_is_refused_before_it_is_anywhere(live, change, reason):
    """With the field and the remedy, and status 2; the file is as it was."""
    live.apply(live.text("good"))
    status, printed = live.apply(change(live.text("bad")))
    assert status == 2
    assert reason in printed
    assert "remedy" in printed
    assert live.labels() == {"good@1"}
    assert live.file.read_text() == live.text("good")


def test_an_old_revision_and_a_wrong_token_change_nothing(live):
    """The first says what the file is at; the second, that the token is nobody's."""
    live.apply(live.text("one"))
    status, printed = live.apply(live.text("two"), "--revision", "0" * 16)
    assert (status, "is at revision" in printed) == (2, True)
    status, printed = live.command("show", bearer="somebody's-token-or-other")
    assert (status, "operator" in printed) == (2, True)
    assert live.labels() == {"one@1"}


def test_drift_is_told_and_acknowledged(live):
    """A hundred flagged prompts in a row are no usual rate: status 1, until an operator says that it was understood."""

    def wait_until(status, alarm):
        for _ in range(30):
            ended, printed = live.drift("status")
            if ended == status and ("DRIFT at prompt" in printed) is alarm and "unscored" in printed:
                return
            time.sleep(1)
        raise AssertionError(printed)

    live.apply(live.text("flagging", action="flag"))
    for number in range(100):
        live.ask(live.harmful[number % 4])
    wait_until(1, alarm=True)
    assert live.drift("acknowledge")[0] == 0
    wait_until(0, alarm=False)


def test_clients_do_not_reach_it(live):
    """Its routes are on its own port alone, and no key of a client's opens them."""
    for path in ("/guard/policy", "/guard/policy/history", "/guard/processes"):
        assert httpx.get(f"{live.server.url}{path}", timeout=30).status_code == 404
        assert httpx.get(f"{live.admin}{path}", timeout=30).status_code == 401


def test_the_engine_s_processes_do_not_have_the_tokens(live):
    """They are the administration's alone."""
    children = psutil.Process(live.server.process.pid).children(recursive=True)
    having = {child.pid for child in children if ADA in "".join(child.environ().values())}
    assert having == {live.process().pid}


def test_the_server_serves_on_without_its_administration(live):
    """Killed, it costs no request; the policy file is followed as ever."""
    live.apply(live.text("before"))
    os.kill(live.process().pid, signal.SIGKILL)
    assert live.labels() == {"before@1"}
    live.write(live.text("after"))
    live.wait_for("after")
    status, printed = live.command("show")
    assert (status, "does not answer" in printed) == (2, True)
    lines = [json.loads(line) for line in (live.state / "audit.jsonl").read_text().splitlines()]
    assert lines[-1]["label"] == "before@1"
