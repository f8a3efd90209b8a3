"""Prompts that the operator wants kept: read, deleted, and sealed anew under a new key."""

from collections.abc import Collection

from sqlalchemy import Engine, delete, func, select, update

from guard.store.cipher import Cipher
from guard.store.engine import for_writing
from guard.store.parts import parts
from guard.store.row import clean
from guard.store.schema import texts

_AT_ONCE = 200


class TextVault:
    """The texts of one store. Methods raise `sqlalchemy.exc.DBAPIError` where it is gone."""

    def __init__(self, engine: Engine, cipher: Cipher) -> None:
        self._engine, self._cipher = engine, cipher

    def text(self, event_id: str) -> str | None:
        """Return a decision's prompt, None where none is kept. Raises `StoreError` where no key opens it."""
        with self._engine.connect() as connection:
            wanted = select(texts.c.sealed).where(texts.c.event_id == clean(event_id))
            sealed = connection.execute(wanted).scalar_one_or_none()
        return None if sealed is None else self._cipher.unseal(sealed, clean(event_id))

    def reseal(self) -> int:
        """Seal every text with the first key that older keys sealed, and return how many. The old keys may then go.

        Raises `StoreError` where a text was sealed with a key that is not listed. Those before it are done.
        """
        number, after = 0, ""
        while True:
            with for_writing(self._engine).begin() as connection:
                wanted = select(texts.c.event_id, texts.c.sealed).where(texts.c.event_id > after)
                rows = connection.execute(wanted.order_by(texts.c.event_id).limit(_AT_ONCE)).all()
                for event_id, sealed in rows:
                    if not self._cipher.is_newest(sealed):
                        anew = self._cipher.seal(self._cipher.unseal(sealed, event_id), event_id)
                        connection.execute(update(texts).where(texts.c.event_id == event_id).values(sealed=anew))
                        number += 1
            if not rows:
                return number
            after = rows[-1].event_id


def count_texts(engine: Engine) -> int:
    """Return how many prompts are kept."""
    with engine.connect() as connection:
        return connection.execute(select(func.count()).select_from(texts)).scalar_one()


def delete_texts(engine: Engine, event_ids: Collection[str]) -> int:
    """Delete the prompts of these decisions, and return how many there were. No key is needed."""
    number = 0
    for some in parts([clean(each) for each in event_ids]):
        with for_writing(engine).begin() as connection:
            number += connection.execute(delete(texts).where(texts.c.event_id.in_(some))).rowcount
    return number
