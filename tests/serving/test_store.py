"""A live server stores its decisions: all of them, under their clients' event ids, and prompts only where asked for."""

import time

import httpx
import psutil
import pytest

from guard.store.cipher import Cipher, new_key
from guard.store.engine import open_store
from guard.store.reader import Reader
from guard.store.text_vault import TextVault, count_texts
from serving.offline.process import free_port
from tests.serving.server import SERVED_NAME
from tests.serving.world import BENIGN, clearly_harmful, policy_text

pytestmark = [pytest.mark.engine, pytest.mark.timeout(600)]

ADA, KEY, PLANTED = "ada's-secret-token", new_key(), "zanzibarquagga"


class Storing:
    """A server with a store, and its administration."""

    def __init__(self, server, url, admin, harmful):
        self.server, self.url, self.admin, self.harmful = server, url, admin, harmful
        self.engine = open_store(url)

    def ask(self, messages, **options):
        body = {"model": SERVED_NAME, "messages": messages, "max_tokens": 2} | options
        return httpx.post(f"{self.server.url}/v1/chat/completions", json=body, timeout=60)

    def record(self, event_id):
        """The decision of an event id, once it is written."""
        until = time.monotonic() + 10
        while (found := Reader(self.engine).decision(event_id)) is None and time.monotonic() < until:
            time.sleep(0.05)
        assert found is not None
        return found.decision

    def administer(self, method, path, **options):
        headers = {"authorization": f"Bearer {ADA}"}
        return httpx.request(method, f"{self.admin}{path}", headers=headers, timeout=30, **options)


@pytest.fixture(scope="module", params=[pytest.param("plain", marks=pytest.mark.long), "texts"])
def live(request, start, reference, artifact, tmp_path_factory):
    """A server that stores decisions in SQLite, and one that stores prompts, too."""
    folder, port = tmp_path_factory.mktemp("store"), free_port()
    url = f"sqlite:///{folder}/decisions.db"
    about = {"FOREGUARD_STORE": url, "FOREGUARD_REPLICA": "pod-7", "FOREGUARD_STORE_KEY": KEY}
    about |= {"FOREGUARD_ADMIN_PORT": str(port), "FOREGUARD_ADMIN_TOKENS": f"ada={ADA}"}
    about |= {"FOREGUARD_STATE": str(folder / "state")}
    about |= {"FOREGUARD_STORE_TEXTS": "1"} if request.param == "texts" else {}
    with start(policy_text(reference, artifact), "--enforce-eager", **about) as server:
        made = Storing(server, url, f"http://127.0.0.1:{port}", clearly_harmful(reference, artifact, 2))
        made.texts, made.folder = request.param == "texts", folder
        yield made
        made.engine.dispose()


def test_every_decision_is_stored_under_the_client_s_event_id(live):
    """Streamed or not, allowed or blocked: with route, model, policy, scores, tokens and the server's name."""
    for messages in (BENIGN[0], live.harmful[0]):
        for stream in (False, True):
            reply = live.ask(messages, stream=stream)
            found = live.record(reply.headers["x-guardrail-event-id"])
            assert found.action.value == reply.headers["x-guardrail-decision"]
            assert found.policy == reply.headers["x-guardrail-policy"]
            assert (found.route, found.model, found.replica) == ("/v1/chat/completions", SERVED_NAME, "pod-7")
            assert found.scores
            assert found.policy_digest
            assert found.prompt_tokens > 0


def test_prompts_are_stored_only_where_asked_for_and_never_readable(live):
    """No file of the store holds a word of a prompt; with the key the whole prompt comes back."""
    reply = live.ask([{"role": "user", "content": f"Spell {PLANTED}."}])
    event_id = reply.headers["x-guardrail-event-id"]
    live.record(event_id)
    time.sleep(1)
    held = b"".join(path.read_bytes() for path in live.folder.glob("decisions.db*"))
    assert event_id.encode() in held
    assert PLANTED.encode() not in held
    if live.texts:
        assert PLANTED in TextVault(live.engine, Cipher(KEY)).text(event_id)
    else:
        assert count_texts(live.engine) == 0


def test_an_operator_labels_decisions(live):
    """The label is the operator's; event ids that nobody knows are named; the status counts."""
    event_id = live.ask(BENIGN[0]).headers["x-guardrail-event-id"]
    live.record(event_id)
    rows = [{"event_id": each, "label": "benign", "chance": 0.5} for each in (event_id, "fge_nobody")]
    reply = live.administer("POST", "/guard/labels", json={"labels": rows})
    assert (reply.status_code, reply.json()) == (200, {"given": 2, "unknown": ["fge_nobody"]})
    given = Reader(live.engine).decision(event_id).label
    assert (given.who, given.label.value, given.chance) == ("ada", "benign", 0.5)
    told = live.administer("GET", "/guard/store").json()
    assert told["decisions"] > 0
    assert told["labels"] == 2
    bad = live.administer("POST", "/guard/labels", json={"labels": [{"event_id": event_id, "label": "good"}]})
    assert (bad.status_code, bad.json()["error"]["field"]) == (422, "labels[0].label")


def test_metrics_count_what_is_stored_and_no_process_has_the_secrets(live):
    """The engine's environment and command line hold neither the address nor the key."""
    live.record(live.ask(BENIGN[0]).headers["x-guardrail-event-id"])
    time.sleep(2)
    assert live.server.metric("foreguard_store_written_total") > 0
    assert live.server.metric("foreguard_store_dropped_total") == 0
    assert live.server.metric("foreguard_store_problem") == 0
    for child in psutil.Process(live.server.process.pid).children(recursive=True):
        told = "".join([*child.environ().values(), *child.cmdline()])
        assert KEY not in told
        assert live.url not in told
