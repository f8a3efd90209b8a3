"""Around a forward pass: scores are exact however a prompt was computed, and what is not known is never a score."""

import itertools
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from vllm.v1.kv_cache_interface import FullAttentionSpec, KVCacheConfig, KVCacheGroupSpec, UniformTypeKVCacheSpecs
from vllm.v1.outputs import AsyncModelRunnerOutput, ModelRunnerOutput

from guard.verdict import Unscored
from probes.errors import ModelError
from probes.manifest import Probe
from probes.readout import Readout
from probes.scoring import ProbeBank
from probes.steering import SteeringBank
from probes.template import whole
from serving.wire import GAPS, NO_ORDERS, SCORES, Due, Orders, Steer
from serving.worker.guarded_pass import GuardedPass, Places
from serving.worker.kv_slots import KVSlots, scoring_group
from serving.worker.pending_scores import DuePrompt, PendingScores, with_scores
from serving.worker.sensor import Sensor

HIDDEN, BLOCK, BLOCKS, MAX_TOKENS = 4, 4, 8, 16
NOWHERE = torch.zeros(0, dtype=torch.int64)


def cache(*specs):
    return KVCacheConfig(BLOCKS, [], [KVCacheGroupSpec([f"layer.{i}"], spec) for i, spec in enumerate(specs)])


def attention(block_size=BLOCK):
    return FullAttentionSpec(block_size=block_size, num_kv_heads=1, head_size=8, dtype=torch.float32)


class Batch:
    """One pass's rows: `(request, positions, KV-cache blocks)`, one request after another."""

    def __init__(self, *requests):
        self.requests = requests

    def places(self, request_ids):
        found, start = {}, 0
        for name, positions, _ in self.requests:
            found[name] = start, start + len(positions), positions[0]
            start += len(positions)
        return Places(*np.array([found[name] for name in request_ids], dtype=np.int64).reshape(-1, 3).T)

    def slots(self, group):
        own = [
            blocks[place // BLOCK] * BLOCK + place % BLOCK for _, places, blocks in self.requests for place in places
        ]
        return torch.tensor([*own, 0, 0])


@pytest.fixture
def probes():
    """One probe on all tokens, and one on the last."""
    specs = [
        Probe(name="peak", method="m", layers=(0,), readout=Readout(kind="max")),
        Probe(name="last", method="m", layers=(1,), bias=1.0),
    ]
    weights = torch.randn(2, 1, 1, HIDDEN, generator=torch.Generator().manual_seed(0))
    return ProbeBank.of(specs, {f"probe.{p.name}.weight": w for p, w in zip(specs, weights, strict=True)})


@pytest.fixture
def steering():
    """One vector, in force at full strength for two tokens, at half of it after."""
    return SteeringBank(("away",), {}, ((1.0, 1.0, 0.5),))


@pytest.fixture
def sensor():
    return Sensor(torch.zeros(MAX_TOKENS, 2), NOWHERE, NOWHERE, torch.zeros(MAX_TOKENS, 1))


@pytest.fixture
def guard(sensor, probes, steering, monkeypatch):
    """The guard of the only, and so the last, pipeline stage."""
    monkeypatch.setattr("serving.worker.guarded_pass.get_pp_group", lambda: SimpleNamespace(is_last_rank=True))
    guard = GuardedPass(sensor, probes, steering)
    guard.allocate(cache(attention()))
    return guard


@pytest.fixture
def tokens():
    """Token scores `[T, P]` of a prompt of ten tokens."""
    return torch.randn(10, 2, generator=torch.Generator().manual_seed(1))


def forward(guard, sensor, batch, parts, orders=NO_ORDERS, *, silent=()):
    """One pass in which the taps read `parts`, but for those that are silent."""
    guard.begin(len(parts), orders)
    guard.lay_out(batch)
    for tap in {0, 1}.difference(silent):
        sensor.parts[: len(parts), tap] = parts[:, tap]
    return next(iter(guard.collect()), None)


def expected(probes, tokens):
    return [probes.turn_scores(probes.add_up(tokens.numpy()), range(len(tokens)), whole(len(tokens)))]


def test_a_forgotten_slot_is_unknown(guard, sensor, tokens):
    """After the KV cache was emptied, a prompt that is taken for cached has no score."""
    forward(guard, sensor, Batch(("a", range(9), [0, 1, 2])), tokens[:9])
    guard.forget_all()
    due = Orders(due={"b": Due((whole(10),), [0, 1, 2])})
    scores = forward(guard, sensor, Batch(("b", range(9, 10), [0, 1, 2])), tokens[9:], due).resolve()["b"]
    assert np.isnan(scores[0][0])
    assert np.isfinite(scores[0][1])


@pytest.mark.parametrize("cuts", [[], [4], [1, 9], [3, 6, 8]])
def test_scores_are_those_of_the_whole_prompt_in_chunks_too(guard, sensor, probes, tokens, cuts):
    """Wherever a prompt is cut and whoever runs beside it, its scores are those of all its tokens together."""
    blocks, other = [5, 2, 7], torch.full((2, 2), 99.0)
    edges = [0, *cuts, 10]
    for begin, end in itertools.pairwise(edges):
        batch = Batch(("b", [0, 1], [0]), ("a", list(range(begin, end)), blocks))
        orders = Orders(due={"a": Due((whole(10),), blocks)}) if end == 10 else Orders()
        due = forward(guard, sensor, batch, torch.cat([other, tokens[begin:end]]), orders)
        assert (due is None) is (end < 10)
    np.testing.assert_array_equal(due.resolve()["a"], expected(probes, tokens))


def test_a_cached_prefix_still_has_its_scores(guard, sensor, probes, tokens):
    """Another request that computes the tail alone gets the scores of the prefix that the first one computed."""
    forward(guard, sensor, Batch(("a", list(range(8)), [5, 2])), tokens[:8])
    due = forward(
        guard, sensor, Batch(("b", [8, 9], [5, 2, 1])), tokens[8:], Orders(due={"b": Due((whole(10),), [5, 2, 1])})
    )
    np.testing.assert_array_equal(due.resolve()["b"], expected(probes, tokens))


def test_blocks_that_were_filled_from_elsewhere_are_unknown(guard, sensor, tokens):
    """What the slots of a loaded block held before is nobody's score now: the probe that needs it gets NaN."""
    forward(guard, sensor, Batch(("a", list(range(8)), [5, 2])), tokens[:8])
    orders = Orders(due={"b": Due((whole(10),), [5, 2, 1])}, unknown=[2])
    due = forward(guard, sensor, Batch(("b", [8, 9], [5, 2, 1])), tokens[8:], orders)
    [[peak, last]] = due.resolve()["b"]
    assert np.isnan(peak)
    assert np.isfinite(last)


def test_a_copied_block_takes_its_scores_along(guard, sensor, probes, tokens):
    """A partly cached block that is copied for another request keeps the scores of its tokens."""
    forward(guard, sensor, Batch(("a", list(range(8)), [5, 2])), tokens[:8])
    orders = Orders(due={"b": Due((whole(10),), [5, 6, 1])}, copies=[(2, 6)])
    due = forward(guard, sensor, Batch(("b", [8, 9], [5, 6, 1])), tokens[8:], orders)
    np.testing.assert_array_equal(due.resolve()["b"], expected(probes, tokens))


def test_nothing_looks_at_what_the_device_holds(probes, steering, monkeypatch):
    """Everything between two passes runs on a device that has no values to look at: it never waits for the device."""
    monkeypatch.setattr("serving.worker.guarded_pass.get_pp_group", lambda: SimpleNamespace(is_last_rank=True))
    with torch.device("meta"):
        sensor = Sensor(
            torch.zeros(MAX_TOKENS, 2),
            NOWHERE.to("meta"),
            NOWHERE.to("meta"),
            torch.zeros(MAX_TOKENS, 1),
        )
    guard = GuardedPass(sensor, probes, steering, watched=[1])
    guard.allocate(cache(attention()))
    asked = {"due": {"a": Due((whole(4),), [5])}, "watched": {"a": 3}}
    orders = Orders(**asked, steering={"a": Steer([1.0], 3)}, unknown=[2], copies=[(2, 6)])
    batch = Batch(("a", [0, 1, 2, 3], [5]))
    guard.begin(4, orders)
    guard.lay_out(SimpleNamespace(places=batch.places, slots=lambda *asked: batch.slots(*asked).to("meta")))
    due, answers = guard.collect()
    assert not due.failed
    assert not answers.failed
    assert due.parts.device.type == answers.parts.device.type == "meta"
    with pytest.raises(RuntimeError, match="meta"):
        bool(due.parts.any())


@pytest.mark.parametrize("first", [0, 3, 8])
def test_answers_tokens_are_taken_from_among_the_rows(guard, sensor, probes, tokens, first):
    """Of every watched request those at its answer's positions, in order: none, some or all of its rows."""
    guard = GuardedPass(sensor, probes, SteeringBank((), {}, ()), watched=[1, 0])
    guard.allocate(cache(attention()))
    batch = Batch(("z", [0, 1], [0]), ("a", [3, 4, 5, 6], [5, 2]), ("y", [7], [1, 3]), ("b", [9, 10, 11], [4, 6, 7]))
    orders = Orders(watched={"b": 10, "a": first})
    guard.begin(10, orders)
    guard.lay_out(batch)
    sensor.parts[:10] = tokens
    (answers,) = guard.collect()
    taken = answers.resolve()
    kept = [row for row, position in ((2, 3), (3, 4), (4, 5), (5, 6)) if position >= first]
    assert (taken.requests, taken.counts.tolist()) == (["b", "a"], [2, len(kept)])
    assert taken.firsts.tolist() == [10, max(first, 3)]
    scores = probes.add_up(tokens.numpy())[:, [1, 0]]
    np.testing.assert_array_equal(taken.scores, scores[[8, 9, *kept]])


@pytest.mark.parametrize("cached", [0, 3, 8, 9])
@pytest.mark.parametrize("drafts", [0, 2])
def test_an_answer_s_beginning_is_taken_whole_however_much_of_it_is_cached(
    guard, sensor, probes, tokens, cached, drafts
):
    """In the step that finishes its prompt: from its slots, before what the pass has of the answer itself."""
    guard = GuardedPass(sensor, probes, SteeringBank((), {}, ()), watched=[1, 0])
    guard.allocate(cache(attention()))
    blocks = [5, 2, 1]
    if cached:
        forward(guard, sensor, Batch(("z", range(cached), blocks)), tokens[:cached])
    more = torch.randn(drafts, 2, generator=torch.Generator().manual_seed(2))
    batch = Batch(("y", [7], [1, 3]), ("a", range(cached, 10 + drafts), blocks), ("b", [9], [4, 6, 7]))
    rows = torch.cat([tokens[:1], tokens[cached:], more, tokens[1:2]])
    orders = Orders(due={"a": Due((whole(10),), blocks)}, watched={"b": 8, "a": 4})
    guard.begin(len(rows), orders)
    guard.lay_out(batch)
    sensor.parts[: len(rows)] = rows
    _, answers = guard.collect()
    taken = answers.resolve()
    assert (taken.requests, taken.firsts.tolist(), taken.counts.tolist()) == (["b", "a"], [9, 4], [1, 6 + drafts])
    expected = probes.add_up(torch.cat([tokens[1:2], tokens[4:], more]).numpy())[:, [1, 0]]
    np.testing.assert_array_equal(taken.scores, expected)


def test_prompts_that_finish_together_have_their_own_scores(guard, sensor, probes, tokens):
    """Of different lengths, in blocks of their own, one of them cut before."""
    forward(guard, sensor, Batch(("b", list(range(3)), [4, 6])), tokens[:3])
    batch = Batch(("a", list(range(4)), [5]), ("b", [3, 4, 5], [4, 6]), ("c", [0], [3]))
    orders = Orders(due={"c": Due((whole(1),), [3]), "a": Due((whole(4),), [5]), "b": Due((whole(6),), [4, 6])})
    scores = forward(guard, sensor, batch, torch.cat([tokens[:4], tokens[3:6], tokens[9:]]), orders).resolve()
    for name, own in (("a", tokens[:4]), ("b", tokens[:6]), ("c", tokens[9:])):
        np.testing.assert_array_equal(scores[name], expected(probes, own))


def test_a_silent_tap_is_named(guard, sensor, tokens):
    """A prompt that finishes in a pass in which a tap did not run says so."""
    orders = Orders(due={"a": Due((whole(10),), [5, 2, 1])})
    due = forward(guard, sensor, Batch(("a", list(range(10)), [5, 2, 1])), tokens, orders, silent=[1])
    assert due.resolve() == {"a": Unscored.TAP_SILENT}


def test_a_tap_that_was_silent_in_an_earlier_chunk_leaves_no_old_values(guard, sensor, tokens):
    """The chunk that it missed is named, whatever the buffer held from the pass before."""
    forward(guard, sensor, Batch(("z", list(range(4)), [0])), tokens[:4])
    forward(guard, sensor, Batch(("a", list(range(8)), [5, 2])), tokens[:8], silent=[0])
    due = forward(
        guard, sensor, Batch(("a", [8, 9], [5, 2, 1])), tokens[8:], Orders(due={"a": Due((whole(10),), [5, 2, 1])})
    )
    assert due.resolve() == {"a": Unscored.TAP_SILENT}


def test_a_pass_that_was_never_laid_out_scores_nothing(guard, sensor, probes, tokens):
    """A runner that moved on without its adapter: unscored, and nothing that was known before is known any more."""
    forward(guard, sensor, Batch(("a", list(range(8)), [5, 2])), tokens[:8])
    guard.begin(2, Orders(due={"a": Due((whole(10),), [5, 2, 1])}))
    assert guard.collect()[0].resolve() == {"a": Unscored.SENSOR_ERROR}
    due = forward(
        guard, sensor, Batch(("b", [8, 9], [5, 2, 1])), tokens[8:], Orders(due={"b": Due((whole(10),), [5, 2, 1])})
    )
    assert np.isnan(due.resolve()["b"][0][0])


@pytest.mark.parametrize("value", [torch.nan, torch.inf, None])
@pytest.mark.parametrize("gap", [0, 3, 9])
def test_the_first_token_without_a_score_is_named(guard, sensor, tokens, gap, value):
    """Of each prompt that has none for want of it, at its position: not read, or not finite. Others are not named."""
    spoilt, blocks = tokens.clone(), [5, 2, 7]
    if value is not None:
        spoilt[gap:, 0] = value
    orders = Orders(due={"fine": Due((whole(10),), [0, 1, 3]), "spoilt": Due((whole(10),), blocks)})
    forward(guard, sensor, Batch(("fine", list(range(10)), [0, 1, 3])), tokens)
    if gap:
        forward(guard, sensor, Batch(("spoilt", list(range(gap)), blocks)), tokens[:gap])
    late = Batch(("fine", [9], [0, 1, 3]), ("spoilt", list(range(gap, 10)), blocks))
    silent = () if value is not None else {0}
    due = forward(guard, sensor, late, torch.cat([tokens[9:], spoilt[gap:]]), orders, silent=silent)
    output = with_scores(ModelRunnerOutput(req_ids=[], req_id_to_index={}), [due])
    expected = {"spoilt": gap} | ({"fine": 9} if silent else {})
    assert getattr(output, GAPS) == expected
    assert silent or np.isfinite(getattr(output, SCORES)["fine"]).all()


def test_where_all_is_scored_there_is_no_gap(guard, sensor, tokens):
    """Nor where a step's scores were lost: all of them were."""
    due = forward(
        guard, sensor, Batch(("a", list(range(10)), [5, 2, 1])), tokens, Orders(due={"a": Due((whole(10),), [5, 2, 1])})
    )
    lost = PendingScores.lost(due.probes, ["a"])
    for each in (due, lost):
        assert not hasattr(with_scores(ModelRunnerOutput(req_ids=[], req_id_to_index={}), [each]), GAPS)


@pytest.mark.parametrize("slot", [-1, BLOCKS * BLOCK])
def test_a_token_without_a_slot_scores_nothing(guard, sensor, tokens, slot):
    """It is nobody else's slot that is written: unscored, and nothing that was known before is known any more."""
    batch = Batch(("a", list(range(4)), [5]))
    astray = SimpleNamespace(places=batch.places, slots=lambda group: torch.tensor([20, 21, slot, 23]))
    due = forward(guard, sensor, astray, tokens[:4], Orders(due={"a": Due((whole(4),), [5])}))
    assert due.resolve() == {"a": Unscored.SENSOR_ERROR}
    due = forward(guard, sensor, Batch(("b", [4], [5, 2])), tokens[4:5], Orders(due={"b": Due((whole(5),), [5, 2])}))
    assert np.isnan(due.resolve()["b"][0][0])


@pytest.mark.parametrize("slot", [-1, BLOCKS * BLOCK, BLOCKS * BLOCK + 1])
def test_a_token_without_a_slot_on_a_device_scores_nothing(guard, sensor, tokens, slot):
    """There an index out of range would end the engine, and to look costs a wait; none is taken till all are
    forgotten.
    """
    kept = guard._slots
    kept._host = None  # as on a device
    forward(guard, sensor, Batch(("a", list(range(4)), [5])), tokens[:4])
    before = kept._values.clone()
    batch = Batch(("b", list(range(4)), [6]))
    astray = SimpleNamespace(places=batch.places, slots=lambda group: torch.tensor([24, 25, slot, 27]))
    due = forward(guard, sensor, astray, tokens[4:8], Orders(due={"b": Due((whole(4),), [6])}))
    assert np.isnan(due.resolve()["b"]).all()
    assert torch.equal(kept._values[:24].nan_to_num(7.0), before[:24].nan_to_num(7.0)), "another's slot was written"
    orders = Orders(due={"c": Due((whole(5),), [5, 2])})
    assert np.isnan(forward(guard, sensor, Batch(("c", [4], [5, 2])), tokens[4:5], orders).resolve()["c"]).all()
    guard.forget_all()
    forward(guard, sensor, Batch(("a", list(range(4)), [5])), tokens[:4])
    assert np.isfinite(forward(guard, sensor, Batch(("c", [4], [5, 2])), tokens[4:5], orders).resolve()["c"]).all()


def test_a_step_without_tokens_makes_no_pass(guard, sensor, tokens):
    """What the last pass left stays: the self-test looks at it after the engine has tidied up."""
    forward(guard, sensor, Batch(("a", list(range(8)), [5, 2])), tokens[:8])
    guard.begin(0, NO_ORDERS)
    assert guard.collect() == ()
    torch.testing.assert_close(sensor.parts[:8], tokens[:8])


def test_scores_that_cannot_be_reduced_are_lost_and_said_to_be(probes):
    """An error on the way to the scheduler costs the scores, not the engine."""
    due = PendingScores(probes, {"a": DuePrompt((whole(3),), (range(3),))}, torch.zeros(0, 2))
    assert due.resolve() == {"a": Unscored.SENSOR_ERROR}


def test_steering_begins_at_the_prompt_s_last_token_and_follows_its_schedule(guard, sensor):
    """Rows before it are left alone, those of neighbours too; a later pass goes on in the schedule."""
    orders = Orders(steering={"a": Steer([2.0], begin=3)})
    guard.begin(7, orders)
    guard.lay_out(Batch(("b", [0, 1], [0]), ("a", [1, 2, 3], [5, 2]), ("c", [5, 6], [1, 3])))
    assert sensor.coefficients[:8, 0].tolist() == [0, 0, 0, 0, 2, 0, 0, 0]
    guard.begin(3, orders)
    guard.lay_out(Batch(("a", [4, 5, 6], [5, 2])))
    assert sensor.coefficients[:8, 0].tolist() == [2, 1, 1, 0, 0, 0, 0, 0]


def test_steering_of_a_long_pass_does_not_stay_for_a_longer_one(guard, sensor):
    """A short unsteered pass after a long steered one leaves nothing for the rows that only a later one has."""
    guard.begin(9, Orders(steering={"a": Steer([2.0], begin=0)}))
    guard.lay_out(Batch(("a", list(range(9)), [5, 2, 1])))
    for count in (2, 9):
        guard.begin(count, Orders())
        guard.lay_out(Batch(("b", list(range(count)), [0, 3, 4])))
    assert not sensor.coefficients.any()


def test_stages_of_a_pipeline_hand_on_what_they_read(probes, steering, tokens, monkeypatch):
    """The last stage's scores are whole, with a tap that runs on the first stage; a tap silent there is named here."""
    stages = []
    for last, elsewhere in ((False, [1]), (True, [0])):
        sensor = Sensor(torch.zeros(MAX_TOKENS, 2), NOWHERE, torch.tensor(elsewhere), torch.zeros(MAX_TOKENS, 1))
        group = SimpleNamespace(is_last_rank=last)
        monkeypatch.setattr("serving.worker.guarded_pass.get_pp_group", lambda group=group: group)
        guard = GuardedPass(sensor, probes, steering)
        guard.allocate(cache(attention()))
        stages.append((sensor, guard))
    (first_sensor, first), (last_sensor, last) = stages
    batch, orders = Batch(("a", list(range(10)), [5, 2, 1])), Orders(due={"a": Due((whole(10),), [5, 2, 1])})
    for silent in (False, True):
        for _, guard in stages:
            guard.begin(10, orders)
            guard.lay_out(batch)
        if not silent:
            first_sensor.parts[:10, 0] = tokens[:, 0]
        sent = first.send()
        assert first.collect() == ()
        last.receive(sent)
        last_sensor.parts[:10, 1] = tokens[:, 1]
        scores = last.collect()[0].resolve()["a"]
        if silent:
            assert scores == Unscored.TAP_SILENT
        else:
            np.testing.assert_array_equal(scores, expected(probes, tokens))


def test_scores_are_kept_beside_the_first_group_that_holds_whole_contexts():
    """Groups of windows are passed over; layers of one type and different sizes count as their type."""
    window = SimpleNamespace(block_size=4)
    uniform = UniformTypeKVCacheSpecs(block_size=4, kv_cache_specs={"layer.0": attention(), "layer.1": attention()})
    assert scoring_group(cache(window, attention())) == 1
    assert scoring_group(cache(window, window, uniform)) == 2
    with pytest.raises(ModelError, match="disable-sliding-window"):
        scoring_group(cache(window))


def test_only_the_stage_that_keeps_scores_leaves_room_for_them(guard, monkeypatch):
    """In a pipeline the last one; the others' caches are as without a guard."""
    assert guard.room_for_cache(10_000, [attention()]) < 10_000
    monkeypatch.setattr("serving.worker.guarded_pass.get_pp_group", lambda: SimpleNamespace(is_last_rank=False))
    assert guard.room_for_cache(10_000, [attention()]) == 10_000


def test_a_slot_never_written_reads_as_unknown():
    """Nothing is a score by default."""
    slots = KVSlots(cache(attention()), torch.zeros(8, 3))
    assert slots.take(slots.slots([[7, 1]], [range(6)])).isnan().all()


def test_scores_ride_on_whichever_output_the_runner_gave(guard, sensor, tokens):
    """On vLLM's own, at once; on one that is still to come, when it comes; on none, nowhere."""

    class Later(AsyncModelRunnerOutput):
        def get_output(self):
            return ModelRunnerOutput(req_ids=[], req_id_to_index={})

    orders = Orders(due={"a": Due((whole(10),), [5, 2, 1])})
    due = forward(guard, sensor, Batch(("a", list(range(10)), [5, 2, 1])), tokens, orders)
    now = with_scores(ModelRunnerOutput(req_ids=[], req_id_to_index={}), [due])
    later = with_scores(Later(), [due])
    assert getattr(now, SCORES) == getattr(later.get_output(), SCORES) == due.resolve()
    assert with_scores(None, [due]) is None
