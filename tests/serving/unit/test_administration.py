"""Operators change the policy by its revision, and everybody else is told nothing."""

import errno
import os
import threading
import time
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from guard import process_states
from guard.policy_file import load_policy
from guard.policy_history import revision_of
from guard.process_states import ProcessState
from probes.errors import ServingError
from serving.admin import policy_desk
from serving.admin.app import application
from serving.admin.drift_desk import DriftDesk
from serving.admin.operators import Operators
from serving.admin.policy_desk import PolicyDesk
from serving.admin.store_desk import StoreDesk
from tests.serving.unit.conftest import POLICY

TOKENS = "ada=ada's-secret-token,grace=grace's-secret-token"
OTHER = POLICY.replace('version: "1"', 'version: "2"')


class Running:
    """A server's processes, which take in what the policy file says."""

    def __init__(self, folder, path):
        self.folder, self.path = folder / "processes", path
        self.problem = None
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._follow, daemon=True)
        self._thread.start()

    def _follow(self):
        while not self._is_over.is_set():
            for pid in (11, 12):
                policy = load_policy(self.path)
                known = {"pid": pid, "policy": policy.label, "since": time.time(), "digest": policy.digest}
                if self.problem and pid == 12:
                    known |= {"digest": "0", "problem": self.problem}
                process_states.tell(self.folder, ProcessState(**known))
            time.sleep(0.02)

    def end(self):
        """Take in nothing more."""
        self._is_over.set()
        self._thread.join()


@pytest.fixture
def guard(config):
    """The guard's configuration, whose policy file says `POLICY`."""
    return config()


@pytest.fixture
def running(guard, tmp_path):
    """The server's processes."""
    running = Running(tmp_path / "state", guard.policy)
    yield running
    running.end()


@pytest.fixture
def admin(guard, running, tmp_path, monkeypatch):
    """Ada's client."""
    monkeypatch.setattr(policy_desk, "_ANSWER_S", 0.5)
    state = tmp_path / "state"
    app = application(PolicyDesk(guard, state), DriftDesk(state), Operators.parse(TOKENS), StoreDesk(None))
    return TestClient(app, headers={"authorization": "Bearer ada's-secret-token"})


def put(admin, content, revision=None, **options):
    """Apply a policy to what the file says now, or to a revision."""
    revision = revision or admin.get("/guard/policy").headers["etag"]
    return admin.put("/guard/policy", content=content, headers={"if-match": revision}, **options)


def test_the_policy_is_read_with_its_revision(admin, guard):
    """As the file has it."""
    reply = admin.get("/guard/policy")
    assert reply.text == POLICY
    assert reply.headers["etag"] == f'"{revision_of(guard.policy.read_bytes())}"'


def test_a_policy_is_applied_and_every_process_says_so(admin, guard):
    """The file has it, the answer says who goes by it, and the audit log who put it there."""
    reply = put(admin, OTHER)
    assert reply.status_code == 200
    assert reply.json()["in_force"] == [11, 12]
    assert guard.policy.read_text() == OTHER
    assert [path.name for path in guard.policy.parent.glob(".*yaml*")] == []
    last, first = admin.get("/guard/policy/history").json()["changes"]
    assert (last["who"], last["what"], last["label"]) == ("ada", "applied", "test@2")
    assert (first["who"], first["what"], first["label"]) == ("file", "found", "test@1")
    assert last["before"] == first["revision"]


def test_a_process_that_does_not_go_by_it_is_named(admin, running):
    """With what it says itself: 202, for the change is made and not everywhere."""
    running.problem = "an engine did not take it"
    reply = put(admin, OTHER)
    assert reply.status_code == 202
    [waiting] = reply.json()["waiting"]
    assert (waiting["pid"], waiting["problem"]) == (12, "an engine did not take it")


def test_without_a_revision_or_at_an_old_one_nothing_changes(admin, guard):
    """Nobody overwrites what they have not seen; an old change that is sent again does nothing."""
    first = admin.get("/guard/policy").headers["etag"]
    assert admin.put("/guard/policy", content=OTHER).status_code == 412
    assert put(admin, OTHER, first).status_code == 200
    again = put(admin, POLICY, first)
    assert again.status_code == 412
    assert "If-Match" in again.json()["error"]["field"]
    assert guard.policy.read_text() == OTHER


def test_of_two_who_change_it_at_once_one_does(admin, guard):
    """The other is told."""
    revision, texts = admin.get("/guard/policy").headers["etag"], [f"# {number}\n{OTHER}" for number in range(8)]
    replies = {}

    def change(text):
        replies[text] = put(admin, text, revision).status_code

    threads = [threading.Thread(target=change, args=[text]) for text in texts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(replies.values()) == [200, *[412] * 7]
    assert replies[guard.policy.read_text()] == 200


@pytest.mark.parametrize(
    ("content", "field"),
    [
        (b"name: [", "policy:"),
        (b"", "policy"),
        (b"\xff", "policy"),
        (POLICY.replace("harm:", "nothing:").encode(), "rules.harmful.when.nothing"),
        (b"#" * (1 << 20) + POLICY.encode(), "policy"),
    ],
)
def test_a_bad_policy_is_refused_with_its_field(admin, guard, content, field):
    """It is never in the file, and not in the history."""
    before = len(admin.get("/guard/policy/history").json()["changes"])
    reply = put(admin, content)
    assert reply.status_code == 422
    assert field in reply.json()["error"]["field"]
    assert reply.json()["error"]["remedy"]
    assert guard.policy.read_text() == POLICY
    assert len(admin.get("/guard/policy/history").json()["changes"]) == before


def test_a_policy_that_blocks_everything_is_confirmed_first(admin):
    """By the benign prompts of calibration, of which it would block all; in shadow mode it blocks none."""
    everything = OTHER.replace("above: 2", "above: -1")
    reply = put(admin, everything)
    assert reply.status_code == 409
    assert "100%" in reply.json()["error"]["problem"]
    assert put(admin, everything.replace("mode: enforce", "mode: shadow") + "mode: shadow\n").status_code == 200
    assert put(admin, everything, params={"confirm": "yes"}).status_code == 200


def test_a_policy_is_rolled_back(admin, guard):
    """To the one before, or to any that was in force; that is a change, too."""
    first = revision_of(guard.policy.read_bytes())
    put(admin, OTHER)
    put(admin, OTHER.replace('"2"', '"3"'))
    revision = admin.get("/guard/policy").headers["etag"]
    assert admin.post("/guard/policy/rollback", headers={"if-match": revision}).status_code == 200
    assert guard.policy.read_text() == OTHER
    revision = admin.get("/guard/policy").headers["etag"]
    reply = admin.post("/guard/policy/rollback", headers={"if-match": revision}, params={"revision": first})
    assert reply.status_code == 200
    assert guard.policy.read_text() == POLICY
    changes = admin.get("/guard/policy/history").json()["changes"]
    assert [each["what"] for each in changes] == ["rolled back", "rolled back", "applied", "applied", "found"]


def test_a_change_by_hand_is_in_the_history(admin, guard):
    """Also one that is no policy: the audit log says what the file had, and when."""
    admin.get("/guard/policy/history")
    guard.policy.write_text("name: [")
    guard.policy.write_text(OTHER)
    last, _ = admin.get("/guard/policy/history").json()["changes"]
    assert (last["who"], last["what"], last["label"]) == ("file", "found", "test@2")
    assert admin.get(f"/guard/policy/history/{last['revision']}").text == OTHER


def test_a_diff_says_which_lines_change(admin):
    """Of two revisions, or of one and what the file says now."""
    put(admin, OTHER)
    last, first = admin.get("/guard/policy/history").json()["changes"]
    found = admin.get("/guard/policy/diff", params={"before": first["revision"]}).text
    assert '-version: "1"\n+version: "2"\n' in found
    both = {"before": last["revision"], "after": first["revision"]}
    assert '-version: "2"\n+version: "1"\n' in admin.get("/guard/policy/diff", params=both).text
    assert admin.get("/guard/policy/diff", params={"before": "none"}).status_code == 422


def test_a_link_is_not_written_through(admin, guard):
    """It is a ConfigMap's: the remedy says so, and nothing changes."""
    guard.policy.with_name("data.yaml").write_text(POLICY)
    guard.policy.with_name("link").symlink_to("data.yaml")
    guard.policy.with_name("link").replace(guard.policy)
    reply = put(admin, OTHER)
    assert reply.status_code == 503
    assert "link" in reply.json()["error"]["problem"]
    assert guard.policy.read_text() == POLICY
    assert len(admin.get("/guard/policy/history").json()["changes"]) == 1


def test_a_file_that_cannot_be_exchanged_stays_and_the_history_says_so(admin, guard, monkeypatch):
    """Such as one that is mounted alone: the last line of the audit log has what the file still holds."""
    replace = Path.replace

    def busy(beside, target):
        if target == guard.policy:
            raise OSError(errno.EBUSY, os.strerror(errno.EBUSY))
        return replace(beside, target)

    monkeypatch.setattr(Path, "replace", busy)
    held = revision_of(guard.policy.read_bytes())
    reply = put(admin, OTHER)
    assert reply.status_code == 503
    assert "mount its folder" in reply.json()["error"]["remedy"]
    assert guard.policy.read_text() == POLICY
    assert admin.get("/guard/policy/history").json()["changes"][0]["revision"] == held
    assert [path.name for path in guard.policy.parent.glob(".*yaml*")] == []


def test_a_history_that_cannot_be_written_stops_the_change(admin, guard, tmp_path):
    """Nothing is changed that nobody would find in the audit log."""
    admin.get("/guard/policy/history")
    log = tmp_path / "state" / "audit.jsonl"
    log.rename(log.with_suffix(".moved"))
    log.mkdir()
    reply = put(admin, OTHER)
    assert reply.status_code == 503
    assert reply.json()["error"]["field"] == "--state"
    assert guard.policy.read_text() == POLICY


@pytest.mark.parametrize("token", [None, "", "Bearer", "Bearer ada's-secret-toke", "Basic ada's-secret-token"])
@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/guard/policy"),
        ("PUT", "/guard/policy"),
        ("POST", "/guard/policy/rollback"),
        ("GET", "/guard/policy/history"),
        ("GET", "/guard/policy/history/0123456789abcdef"),
        ("GET", "/guard/policy/diff"),
        ("GET", "/guard/processes"),
        ("GET", "/guard/drift"),
        ("POST", "/guard/drift/acknowledge"),
    ],
)
def test_nobody_else_is_told_anything(admin, method, path, token):
    """Whatever is asked: 401, before the request is looked at."""
    headers = {"authorization": token or ""}
    reply = admin.request(method, path, headers=headers, content=b"x")
    assert (reply.status_code, reply.json()) == (401, {"error": "Unauthorized"})


def test_processes_say_what_they_go_by(admin):
    """Each of them."""
    time.sleep(0.1)
    found = admin.get("/guard/processes").json()["processes"]
    assert [(each["pid"], each["policy"]) for each in found] == [(11, "test@1"), (12, "test@1")]


@pytest.mark.parametrize(
    "text", ["", " ", ",", "ada=short", "short", "ada=" + "x" * 20 + ",ada=" + "y" * 20, "a=b c" * 9]
)
def test_weak_tokens_are_refused(text):
    """And none at all; no token is in the message."""
    with pytest.raises(ServingError) as caught:
        Operators.parse(text)
    assert "x" * 20 not in str(caught.value)


def test_a_token_alone_is_admin_s():
    """Several have names."""
    assert Operators.parse("t" * 20).name_of(f"Bearer {'t' * 20}") == "admin"
    assert Operators.parse(TOKENS).name_of("bearer grace's-secret-token") == "grace"
