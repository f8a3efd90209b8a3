"""Columns say what records say, in the same order, on both kinds of databases."""

import numpy as np
import pytest

from guard.store.engine import open_store
from guard.store.filters import Filters
from guard.store.label import GivenLabel, Label, Labels
from guard.store.migration import upgrade
from guard.store.reader import Reader
from guard.tuning import recent as module
from guard.tuning.recent import recent
from guard.verdict import Action, Unscored
from tests.guard.store.conftest import postgres  # noqa: F401 - a fixture
from tests.guard.tuning.recorded import in_store


@pytest.fixture(params=["sqlite", "postgresql"])
def engine(request, tmp_path):
    """An empty store of each kind."""
    kind = request.param
    url = f"sqlite:///{tmp_path}/d.db" if kind == "sqlite" else request.getfixturevalue("postgres").new_store()
    engine = open_store(url)
    upgrade(engine)
    yield engine
    engine.dispose()


def scores_of(number):
    """Of two artifacts in turn, and none at all of every fifth decision."""
    if number % 5 == 0:
        return {}
    return {"harm": number / 7, "refusal": -float(number)} if number % 2 else {"novelty": float(number), "harm": 0.1}


def test_columns_agree_with_records(engine, monkeypatch):
    """Every value of every decision, read in several blocks; written out of order by several processes."""
    monkeypatch.setattr(module, "_AT_ONCE", 17)
    words = {
        "tenant": lambda n: ("acme", None, "globex")[n % 3],
        "route": lambda n: ("/v1/chat/completions", None)[n % 2],
        "model": lambda n: "base" if n % 4 else None,
        "action": lambda n: Action.BLOCK if n % 11 == 0 else Action.ALLOW,
        "rule": lambda n: "sure" if n % 11 == 0 else None,
        "judged": lambda n: "answer" if n % 13 == 0 else "prompt",
        "unscored": lambda n: Unscored.MISSING if n % 5 == 0 else None,
        "policy_digest": "d1",
        "prompt_tokens": lambda n: n,
    }
    for start in (60, 0, 30):
        in_store(engine, [scores_of(n) for n in range(start, start + 30)], start=start, **words)
    Labels(engine).give([GivenLabel(f"fge_{n}", Label.HARMFUL, "ada", "review", 0.25) for n in range(0, 90, 4)])
    Labels(engine).give([GivenLabel("fge_4", Label.BENIGN, "ada", "csv"), GivenLabel("gone", Label.BENIGN, "a", "csv")])
    Labels(engine).give([GivenLabel("fge_8", Label.WITHDRAWN, "ada", "review")])
    found, records = recent(engine, 80), Reader(engine).recent(80)
    assert found.keys.tolist() == [record.key for record in records]
    for place, record in enumerate(records):
        decision = record.decision
        assert decision.scores == {
            name: column[place] for name, column in found.columns.items() if not np.isnan(column[place])
        }
        pairs = {
            "actions": decision.decision, "rules": decision.rule, "tenants": decision.tenant, "routes": decision.route,
            "models": decision.model, "judged": decision.judged, "unscored": decision.unscored,
            "policies": decision.policy, "digests": decision.policy_digest, "prompt_tokens": decision.prompt_tokens,
            "labels": record.label.label if record.label else None,
            "sources": record.label.source if record.label else None,
        }  # fmt: skip
        assert {name: getattr(found, name)[place] for name in pairs} == pairs
        chance = record.label.chance if record.label else None
        assert np.isnan(found.chances[place]) if chance is None else found.chances[place] == chance
        assert found.times[place] == np.datetime64(decision.at.replace(tzinfo=None), "us")


def test_filters_and_rows(store):
    """Only decisions that fit; some rows of them keep all that is theirs."""
    in_store(store, [{"harm": float(n)} for n in range(20)], "bh" * 10, tenant=lambda n: ("a", "b")[n % 2])
    found = recent(store, 5, Filters(tenant="b"))
    assert found.columns["harm"].tolist() == [19, 17, 15, 13, 11]
    some = found.rows(np.array([True, False, True, False, False]))
    assert (len(some), some.columns["harm"].tolist(), some.labels.tolist()) == (2, [19, 15], [Label.HARMFUL] * 2)


@pytest.mark.parametrize("n", [0, 10])
def test_an_empty_store(store, n):
    """No decision, no column, no error."""
    found = recent(store, n)
    assert len(found) == 0
    assert found.columns == {}
    assert found.labels.tolist() == []


@pytest.mark.parametrize("chance", [0.0, -1.0, 1.5])
def test_a_chance_that_is_no_probability_is_not_known(store, chance):
    """Whatever wrote it: no estimate weighs by it."""
    in_store(store, [{"harm": 1.0}], "b", [chance])
    assert np.isnan(recent(store, 1).chances).all()
