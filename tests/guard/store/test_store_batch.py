"""A batch is written once, whatever is in it and however often it is tried."""

import math
from dataclasses import replace
from datetime import UTC, datetime
from hashlib import sha256

import pytest
from sqlalchemy import func, select

from guard.store.batch import Batches
from guard.store.reader import Reader
from guard.store.row_key import TIES, row_key, time_of
from guard.store.schema import decisions
from guard.verdict import Action, Mode, Unscored
from tests.guard.store.traffic import START, kept

WHOLE = kept(
    7,
    action=Action.STEER,
    scores={"harm": 0.1 + 0.2, "refusal": -1e-300, "überlauf": math.inf},
    judged="answer",
    mode=Mode.SHADOW,
    request_id="chatcmpl-1",
    caller="red-team",
    tenant="Ærø",
    route="/v1/messages",
    model="tuned",
    rule="harmful",
    category="weapons",
    unscored=Unscored.MEDIA,
    constraint="structured_outputs",
    policy_digest="0123456789abcdef",
    replica="pod-1",
    would=Action.BLOCK,
    would_policy="p@1+strict",
    would_rule="strict",
    would_category="all",
    prompt_tokens=12,
    answer_tokens=3,
    seconds=0.25,
    decision_seconds=1.5e-5,
)


def written(engine):
    return [record.decision for record in Reader(engine).recent(1000)]


def test_what_is_read_is_what_was_written(engine):
    """Every field, scores to the last bit, and a decision that says as little as possible."""
    plain = kept(1, scores={})
    assert Batches(engine).write([plain, WHOLE]) == 0
    assert written(engine) == [WHOLE, plain]
    assert Reader(engine).decision("fge_7").decision == WHOLE
    assert Reader(engine).decision("fge_8") is None


def test_a_batch_may_be_written_again(engine):
    """Where the connection broke while it was committed, nobody knows whether it was."""
    batches, batch = Batches(engine), [kept(number) for number in range(20)]
    batches.write(batch[:10])
    assert batches.write(batch) == 0
    assert written(engine) == batch[::-1]


def test_decisions_of_one_microsecond_are_all_kept(engine):
    """There are 2,048 keys for each. Times stay exact."""
    names = (sha256(bytes([number])).hexdigest() for number in range(200))
    batch = [replace(kept(number), at=START, event_id=name) for number, name in enumerate(names)]
    assert len({row_key(START, each.event_id) for each in batch}) < len(batch)
    assert Batches(engine).write(batch) == 0
    assert sorted(written(engine), key=lambda each: each.scores["harm"]) == batch


def test_keys_are_in_the_order_of_time():
    """And hold it to the microsecond."""
    late = datetime(2099, 12, 31, 23, 59, 59, 999_999, tzinfo=UTC)
    assert time_of(row_key(late, "event")) == late
    assert row_key(late, "event") < 2**63
    assert row_key(START, "a") // TIES == row_key(START, "b") // TIES


@pytest.mark.parametrize(
    "bad",
    [
        replace(kept(1), at=datetime(3000, 1, 1, tzinfo=UTC)),
        replace(kept(1), at=None),
        replace(kept(1), scores={"harm": "high"}),
        replace(kept(1), prompt_tokens=2**70),
        replace(kept(1), mode=None),
    ],
    ids=["far future", "no time", "no number", "too large", "missing"],
)
def test_a_row_that_no_database_takes_costs_itself_alone(engine, bad):
    """It is counted, and the rest of its batch is written."""
    batches = Batches(engine)
    assert batches.write([kept(0), bad, kept(2)]) == 1
    assert [each.event_id for each in written(engine)] == ["fge_2", "fge_0"]


def test_a_client_s_request_id_cannot_break_a_batch(engine):
    """NUL, half a surrogate pair, and a megabyte."""
    ids = ["a\0b", "a\ud800b", "x" * 1_000_000]
    batch = [replace(kept(number), request_id=each, tenant=each) for number, each in enumerate(ids)]
    assert Batches(engine).write(batch) == 0
    assert [each.request_id for each in written(engine)[::-1]] == ["a\ufffdb", "a?b", "x" * 500]


def test_many_probes_have_room(engine):
    """The list of their names is longer than what PostgreSQL can index."""
    scores = {f"a-probe-with-quite-a-long-name-{number}": float(number) for number in range(400)}
    Batches(engine).write([kept(1, scores=scores)])
    assert written(engine)[0].scores == scores


def test_words_are_written_once(engine):
    """Two writers that know nothing of each other use the same numbers."""
    for number in range(4):
        Batches(engine).write([kept(number, tenant="acme")])
    with engine.connect() as connection:
        assert connection.execute(select(func.count(decisions.c.tenant.distinct()))).scalar_one() == 1
