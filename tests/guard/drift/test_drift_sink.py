"""The sink is fed by the journal, tells what drifted and who moved it, and goes on after a restart."""

import json
import logging

import numpy as np
import pytest

from guard.drift.settings import DriftSettings
from guard.drift.sink import DriftSink
from guard.drift.state import SinkState
from guard.journal import Journal
from guard.verdict import Unscored
from probes.errors import CalibrationError
from tests.guard.drift.traffic import SETTINGS, decision, quiet, sink


def feed(target, decisions):
    """Hand decisions over as the server does."""
    journal = Journal(target, on_drop=lambda: pytest.fail("a decision was dropped"))
    for each in decisions:
        journal.record(each)
    return target.snapshot()


def stream(snapshot, probe, dimension="", stratum=""):
    """The one stream that these name."""
    wanted = (probe, dimension, stratum)
    (found,) = (each for each in snapshot.scores if (each.probe, each.dimension, each.stratum) == wanted)
    return found


def test_quiet_traffic_raises_nothing():
    """5,000 benign prompts: each stream has what it should, no alarm, no shift beyond noise."""
    found = feed(sink(), quiet(np.random.default_rng(1), 5000))
    assert not found.drifted
    assert (found.decisions, found.flags.share.count, found.unscored.share.hits) == (5000, 5000, 0)
    assert stream(found, "harm").evidence.count == 5000
    assert stream(found, "harm", "route", "r1").evidence.count == 2500
    assert all(abs(each.shift) < 5 * each.noise for each in found.moved)
    assert stream(found, "harm").stability.band == "stable"


def test_a_tenant_that_drifts_is_found_and_named():
    """One of three tenants rises by 1.5 on one probe: its stream and the whole speak, the other probe and tenants do
    not, and that tenant has the shift to itself.
    """
    rng, target = np.random.default_rng(2), sink()
    feed(target, quiet(rng, 2000))
    moved = [
        decision(rng.normal(1.5 if at % 3 == 1 else 0.0), rng.normal(), tenant="abc"[at % 3], route=f"r{at % 2}")
        for at in range(1500)
    ]
    found = feed(target, moved)
    assert found.drifted
    assert stream(found, "harm").drifted
    drifted = {(each.probe, each.stratum) for each in found.scores if each.drifted and each.dimension == "tenant"}
    assert drifted == {("harm", "b")}
    assert not stream(found, "refusal").drifted
    (by_tenant,) = (each for each in found.moved if (each.probe, each.dimension) == ("harm", "tenant"))
    first = by_tenant.contributions[0]
    assert first.name == "b"
    assert first.share == pytest.approx(1.0, abs=0.25)
    assert by_tenant.shift > 5 * by_tenant.noise
    assert sum(each.share for each in by_tenant.contributions) == pytest.approx(1.0)


def test_the_realised_share_of_flags_has_an_interval():
    """2.3 % of standard normal scores are above 2: the interval holds that, in the whole and for each tenant."""
    found = feed(sink(), quiet(np.random.default_rng(3), 6000))
    assert found.flags.share.low < 0.0228 < found.flags.share.high
    tenants = [each for each in found.flagged if each.dimension == "tenant"]
    assert {each.stratum for each in tenants} == {"a", "b", "c"}
    assert all(each.share.low < 0.0228 < each.share.high for each in tenants)


def test_prompts_without_a_score_raise_an_alarm_of_their_own():
    """One in twenty has none: no score drifts, no flag is counted, and the rate of the unscored is told within 500."""
    rng, target = np.random.default_rng(4), sink()
    lost = [decision(unscored=Unscored.MISSING) if at % 20 == 0 else quiet(rng, 1)[0] for at in range(1000)]
    found = feed(target, lost)
    assert found.unscored.alarm_at < 500
    assert found.unscored.level > 0.5
    assert found.flags.share.count == 950
    assert found.drifted


def test_memory_is_bounded_however_many_tenants_come():
    """3,000 tenants: four have streams, the rest share one, and all requests are counted."""
    rng, target = np.random.default_rng(5), sink()
    found = feed(target, quiet(rng, 6000, tenants=[f"t{each}" for each in range(3000)]))
    tenants = {each.stratum: each for each in found.scores if (each.probe, each.dimension) == ("harm", "tenant")}
    assert set(tenants) == {"t0", "t1", "t2", "t3", "other"}
    assert sum(each.evidence.count for each in tenants.values()) == 6000
    assert len(found.scores) <= 2 * (1 + 2 * 5)
    assert len(target.state().model_dump_json()) < 4000 * len(found.scores)


def test_what_is_not_a_prompts_score_is_left_out():
    """Answers, adapters without a reference, unknown probes, numbers that are none, and clients who left."""
    target = sink()
    strange = decision(float("nan"))
    strange.verdict.scores["unknown"] = 1.0
    found = feed(target, [decision(judged="answer"), decision(model="adapter"), strange])
    target.give_up()
    assert (found.decisions, stream(found, "harm").evidence.count) == (2, 0)
    assert stream(found, "refusal").evidence.count == 1
    assert target.snapshot().given_up == 1


def test_a_request_without_a_name_has_a_stratum_too():
    """No tenant and no route."""
    found = feed(sink(), [decision()])
    assert stream(found, "harm", "tenant", "none").evidence.count == 1


def test_a_snapshot_is_json():
    """With an alarm in it, before and after the baseline, and when nothing has come yet."""
    rng, target = np.random.default_rng(6), sink()
    for decisions in ([], quiet(rng, 10), [decision(5.0, tenant="a")] * 2000):
        found = feed(target, decisions)
        assert json.loads(json.dumps(found.to_json(), allow_nan=False))["decisions"] == found.decisions


def test_alarms_stand_until_they_are_acknowledged():
    """Drift that ends is still told. After the acknowledgement everything begins anew."""
    rng, target = np.random.default_rng(7), sink()
    feed(target, [decision(rng.normal(2.0)) for _ in range(300)])
    assert feed(target, quiet(rng, 3000)).drifted
    target.acknowledge()
    found = feed(target, quiet(rng, 1000))
    assert (found.drifted, found.decisions) == (False, 1000)


def test_a_restarted_process_goes_on():
    """Saved after 1,300 decisions and loaded by another sink, it ends where one that never stopped does."""
    made = quiet(np.random.default_rng(8), 2500)
    whole, before, after = sink(), sink(), sink()
    feed(before, made[:1300])
    after.restore(SinkState.model_validate_json(before.state().model_dump_json()))
    wanted, found = feed(whole, made), feed(after, made[1300:])
    assert found.flags == wanted.flags
    assert found.flagged == wanted.flagged
    assert flat(found.to_json()) == pytest.approx(flat(wanted.to_json()))


def flat(said):
    """All numbers of plain data, by where they stand."""
    items = said.items() if isinstance(said, dict) else enumerate(said) if isinstance(said, list) else None
    if items is None:
        return {"": said} if isinstance(said, int | float) else {}
    return {f"{key}/{path}": value for key, each in items for path, value in flat(each).items()}


def test_a_state_of_another_reference_is_not_taken_on(caplog):
    """Evidence against old scores says nothing of new ones, nor does a CUSUM of another rate. Both are logged."""
    old, settings = sink(), DriftSettings(allowance=0.05, flag_rate=0.1, run_length=1000, most_strata=4)
    feed(old, quiet(np.random.default_rng(9), 100))
    new = sink(settings)
    with caplog.at_level(logging.WARNING):
        new.restore(old.state())
    found = new.snapshot()
    assert (stream(found, "harm").evidence.count, found.flags.share.count) == (0, 0)
    assert caplog.text.count("starts anew") == 4


def test_a_state_with_lists_cut_short_changes_nothing():
    """The same reference, and bettors missing: left out as a whole."""
    old, new = sink(), sink()
    feed(old, quiet(np.random.default_rng(10), 100))
    said = json.loads(old.state().model_dump_json())
    said["probes"][""]["harm"]["streams"]["tenant"]["a"]["test"]["sums"].pop()
    new.restore(SinkState.model_validate(said))
    found = new.snapshot()
    assert stream(found, "harm").evidence.count == 0
    assert stream(found, "refusal").evidence.count == 100


def test_false_alarms_of_all_streams_are_shared_out():
    """Limits of the whole and of every stratum that there can be add up to what the settings promise, and no more."""
    target = sink()
    feed(target, quiet(np.random.default_rng(11), 100, tenants=list("abcdefgh")))
    tests = [each.test for probe in target._probes[""].values() for each in probe._streams.values()]
    assert sum(1 / test.e_limit for test in tests) <= SETTINGS.false_alarm * (1 + 1e-9)
    assert sum(1 / test.detector_limit for test in tests) <= (1 + 1e-9) / SETTINGS.run_length


def test_the_operator_divides_traffic_as_they_like():
    """By a dimension of their own, or by none."""
    by_mode = {"mode": lambda decision: decision.verdict.mode.value}
    references = sink()._compared
    found = feed(DriftSink(references, SETTINGS, by_mode), [decision()])
    assert stream(found, "harm", "mode", "shadow").evidence.count == 1
    assert len(feed(DriftSink(references, SETTINGS, {}), [decision()]).scores) == 2


@pytest.mark.parametrize("wrong", [{"allowance": 1.0}, {"false_alarm": 0}, {"window": 1}, {"most_strata": 0}])
def test_settings_that_are_out_of_range_are_refused(wrong):
    """With the field."""
    with pytest.raises(CalibrationError, match=next(iter(wrong))):
        DriftSettings(**wrong)
