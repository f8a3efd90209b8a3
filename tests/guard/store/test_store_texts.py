"""Prompts that are kept are sealed: without the key they say nothing, and with another row's they do not open."""

from datetime import UTC, datetime

import pytest
from sqlalchemy import select, text

from guard.store.batch import Batches, KeptText
from guard.store.cipher import VARIABLE, Cipher, cipher_from, new_key
from guard.store.errors import StoreError
from guard.store.schema import texts
from guard.store.text_vault import TextVault, count_texts, delete_texts

OLD, NEW = new_key(), new_key()
PROMPT = "How do I wire a plug? 🔌"


def keep(engine, cipher, *event_ids):
    now = datetime.now(UTC)
    assert Batches(engine, cipher).write([], [KeptText(each, PROMPT, now) for each in event_ids]) == 0


def test_a_text_comes_back_whole_and_lies_sealed(engine):
    """Nothing of it is in the database."""
    keep(engine, Cipher(OLD), "fge_a")
    assert TextVault(engine, Cipher(OLD)).text("fge_a") == PROMPT
    assert TextVault(engine, Cipher(OLD)).text("fge_b") is None
    with engine.connect() as connection:
        sealed = connection.execute(select(texts.c.sealed)).scalar_one()
    assert not any(word.encode() in sealed for word in ("How do", "wire", "plug"))
    assert Cipher(OLD).seal(PROMPT, "fge_a") != Cipher(OLD).seal(PROMPT, "fge_a")


def test_a_text_that_was_changed_or_moved_does_not_open(engine):
    """Not under another event id, and not with one bit turned."""
    keep(engine, Cipher(OLD), "fge_a")
    with engine.begin() as connection:
        connection.execute(text("UPDATE foreguard_texts SET event_id = 'fge_b'"))
    with pytest.raises(StoreError, match="changed") as refused:
        TextVault(engine, Cipher(OLD)).text("fge_b")
    assert refused.value.field == "fge_b"
    sealed = bytearray(Cipher(OLD).seal(PROMPT, "fge_a"))
    sealed[-1] ^= 1
    with pytest.raises(StoreError, match="changed"):
        Cipher(OLD).unseal(bytes(sealed), "fge_a")


def test_keys_are_changed_without_losing_a_text(engine):
    """The new key stands before the old one; once all is sealed anew, the old one may go."""
    keep(engine, Cipher(OLD), *(f"fge_{number}" for number in range(450)))
    both = Cipher(f"{NEW}, {OLD}")
    keep(engine, both, "fge_new")
    with pytest.raises(StoreError, match="another key") as refused:
        TextVault(engine, Cipher(NEW)).text("fge_0")
    assert refused.value.field == VARIABLE
    assert TextVault(engine, both).reseal() == 450
    assert TextVault(engine, both).reseal() == 0
    assert {TextVault(engine, Cipher(NEW)).text(f"fge_{each}") for each in (0, 449, "new")} == {PROMPT}


def test_texts_are_deleted_without_a_key(engine):
    """Whoever asks to be forgotten is, also where the key is lost."""
    keep(engine, Cipher(OLD), "fge_a", "fge_b", "fge_c")
    assert delete_texts(engine, ["fge_a", "fge_b", "fge_z"]) == 2
    assert count_texts(engine) == 1


@pytest.mark.parametrize(
    "keys",
    ["short", "not base64!", f"{OLD},", f"{OLD}, {OLD[:-4]}", OLD + "AAAA"],
    ids=["short", "no base64", "an empty one", "cut", "too long"],
)
def test_a_key_that_is_none_is_refused_and_not_shown(keys):
    """The error names the variable and the key's place."""
    with pytest.raises(StoreError, match=r"key [12]") as refused:
        cipher_from({VARIABLE: keys})
    assert refused.value.field == VARIABLE
    assert OLD[:8] not in str(refused.value)


def test_without_a_key_no_text_is_kept():
    """An empty variable is none."""
    assert cipher_from({}) is None
    assert cipher_from({VARIABLE: " "}) is None
