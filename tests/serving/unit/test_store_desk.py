"""Operators label stored decisions, and the launch takes the store's secrets out of the environment."""

import json
import os

import pytest

from guard.store.cipher import new_key
from guard.store.errors import StoreError
from guard.store.migration import upgrade
from serving.admin.store_desk import BadLabels, NoStore, StoreDesk, StoreGone
from serving.launch.storage import stored, take_store
from serving.store_settings import STORE, STORE_KEY, StoreSettings, store_settings


@pytest.fixture
def desk(tmp_path):
    desk = StoreDesk(StoreSettings(url=f"sqlite:///{tmp_path}/decisions.db"))
    upgrade(desk.engine)
    yield desk
    desk.engine.dispose()


def document(**row):
    return json.dumps({"labels": [{"event_id": "fge_1", "label": "benign"} | row]}).encode()


def test_labels_are_given_and_unknown_ids_are_named(desk):
    """One that the store does not have is labelled all the same."""
    given = desk.label(document(chance=0.5), "ada")
    assert (given.number, given.unknown) == (1, {"fge_1"})
    assert desk.status()["labels"] == 1


@pytest.mark.parametrize(
    "content",
    [
        *(b"", b"[]", b"{}", b'{"labels": []}', b'{"labels": [1]}', b"[" * 100_000),
        *(document(label="good"), document(label=[]), document(event_id=""), document(event_id=1)),
        *(document(chance=0), document(chance=1.1), document(chance=True), document(chance="1"), document(more=1)),
    ],
    ids=range(15),
)
def test_what_are_no_labels_changes_nothing(desk, content):
    """The error says where, and what to send."""
    with pytest.raises(BadLabels, match="nothing was labelled"):
        desk.label(content, "ada")
    assert desk.status()["labels"] == 0


def test_without_a_store_or_its_database_it_is_said_so(tmp_path):
    """And without the password."""
    with pytest.raises(NoStore, match="foreguard serve --store"):
        StoreDesk(None).status()
    gone = StoreDesk(StoreSettings(url="postgresql://user:s3cret@127.0.0.1:1/database"))
    with pytest.raises(StoreGone) as refused:
        gone.label(document(), "ada")
    assert "s3cret" not in str(refused.value)


def test_secrets_leave_the_environment_and_reach_whoever_is_told(monkeypatch, tmp_path):
    """What is published is read by its path, and is gone at the end."""
    url, key = f"sqlite:///{tmp_path}/s3cret.db", new_key()
    monkeypatch.setenv(STORE, url)
    monkeypatch.setenv(STORE_KEY, key)
    settings = take_store(StoreSettings(url=url, texts=True, days=3))
    with stored(settings):
        assert store_settings() == settings
        assert (settings.url, settings.keys, settings.days) == (url, key, 3)
        assert not [value for value in os.environ.values() if key in value or "s3cret" in value]
    assert store_settings() is None
    assert "s3cret" not in repr(settings)
    assert key not in repr(settings)


@pytest.mark.parametrize("key", ["", "short"])
def test_prompts_without_a_good_key_are_refused(monkeypatch, key):
    """Before anything starts."""
    monkeypatch.setenv(STORE_KEY, key)
    with pytest.raises(StoreError) as refused:
        take_store(StoreSettings(url="sqlite:////nowhere/decisions.db", texts=True))
    assert refused.value.field == STORE_KEY
