"""What is labelled next: borderline decisions first, each with a known chance, so that rates come out right."""

import numpy as np
import pytest

from guard.decide import bind
from guard.policy import Policy
from guard.store.filters import Filters
from guard.store.label import GivenLabel, Label, Labels
from guard.tuning.chance import drawn
from guard.tuning.estimates import estimates
from guard.tuning.judged import Rules, judge
from guard.tuning.recent import recent
from guard.tuning.review import FLOOR, design, source_of, to_review
from guard.verdict import Unscored
from tests.guard.tuning.recorded import in_memory, in_store

PROBES = ["harm", "refusal"]
CUT = 2.0


def bound(*, probes=("harm", "refusal")):
    """A policy with a threshold on each of these."""
    rules = [{"name": f"r-{name}", "action": "flag", "when": {name: {"above": CUT}}} for name in probes]
    policy = Policy.model_validate({"name": "p", "version": "1", "rules": rules})
    return bind(policy, PROBES, np.zeros((0, 2), np.float32))


def traffic(count, seed=0):
    """Scores that mostly agree."""
    rng = np.random.default_rng(seed)
    harm = rng.normal(size=count)
    return [
        {"harm": float(a), "refusal": float(b)} for a, b in zip(harm, harm + 0.3 * rng.normal(size=count), strict=True)
    ]


def test_borderline_and_disputed_decisions_come_first(store):
    """Of the first hundred, three times the share that there is in all; each has a chance of its own."""
    in_store(store, traffic(3000))
    asked = to_review(store, bound(), 100, seed=1)
    near = [abs(each.distance) < 0.5 or each.disagreement < 0.02 for each in asked]
    plan = design(recent(store, 3000), Rules.of(bound()))
    assert np.mean(near) > 3 * np.mean((np.abs(plan.distances) < 0.5) | (plan.disagreement < 0.02))
    assert all(FLOOR <= each.chance <= 1 for each in asked)
    assert len({each.record.decision.event_id for each in asked}) == 100
    first = asked[0]
    cut = first.record.decision.scores[first.score] - CUT
    assert (first.rule, np.sign(first.distance)) == (f"r-{first.score}", np.sign(cut))


def test_chances_by_hand():
    """One at the threshold has chance 1, with each quarter of a spread half of it, what is stopped a quarter at least,
    and everything the floor.
    """
    spread = np.quantile(np.arange(-100, 101) / 50, [0.25, 0.75])
    unit = (spread[1] - spread[0]) / 1.349
    policy = bound(probes=("harm",))
    body = np.arange(-100, 101) / 50
    harm = np.concatenate([body, CUT + unit * np.array([0.0, -0.1, -0.3, 0.6, 3.0])])
    found = in_memory({"harm": harm, "refusal": np.zeros(len(harm))})
    plan = design(found, Rules.of(policy))
    scale = (np.quantile(harm, 0.75) - np.quantile(harm, 0.25)) / 1.349
    expected = 0.5 ** np.floor(np.abs(harm - CUT) / scale / 0.25)
    expected = np.maximum(expected, np.where(harm > CUT, 0.25, FLOOR))
    assert plan.chances == pytest.approx(expected)
    assert plan.chances[201] == 1
    assert np.isnan(plan.disagreement).all()


def test_probes_that_disagree_raise_the_chance():
    """The most disputed percent of the decisions has chance 1, however far it is from any threshold."""
    rng = np.random.default_rng(1)
    harm = rng.normal(size=2000)
    refusal = harm.copy()
    refusal[:10] = harm[:10] - 4
    plan = design(in_memory({"harm": harm, "refusal": refusal}), Rules.of(bound()))
    assert (plan.chances[:10] == 1).all()
    assert (plan.disagreement[:10] <= 0.01).all()


def test_what_has_a_label_or_no_scores_is_never_asked_for(store):
    """Nor comes anything twice as labels are given, batch after batch, until all that the design picks have one."""
    scores = traffic(200)
    in_store(store, scores, "b" * 20 + "-" * 180, [1.0] * 200)
    in_store(store, [{}] * 20, start=200, unscored=Unscored.MISSING)
    seen = {f"fge_{number}" for number in range(20)}
    while asked := to_review(store, bound(), 30, floor=1.0):
        ids = {each.record.decision.event_id for each in asked}
        assert not ids & seen
        assert {each.chance for each in asked} == {1.0}
        seen |= ids
        Labels(store).give([GivenLabel(each, Label.BENIGN, "ada", "review", 1.0) for each in ids])
    assert seen == {f"fge_{number}" for number in range(200)}


def test_the_design_ends_before_its_chances_would_be_wrong(store):
    """With a floor below 1 fewer come than are asked for: the others were not picked."""
    in_store(store, traffic(300))
    asked = to_review(store, bound(), 1000)
    found = recent(store, 300)
    plan = design(found, Rules.of(bound()))
    expected = plan.chances.sum()
    assert abs(len(asked) - expected) < 5 * np.sqrt(expected)


def test_a_label_of_unknown_chance_is_confirmed_where_the_design_picks_it(store):
    """Or the labels of known chance would be of what nobody complains about; then it is left out like any other."""
    ids = in_store(store, traffic(50), "b" * 50)
    asked = to_review(store, bound(), 100, floor=1.0)
    assert {each.record.decision.event_id for each in asked} == set(ids)
    assert asked[0].record.label.label is Label.BENIGN
    assert to_review(store, bound(), 100, floor=1.0, confirm=False) == []
    Labels(store).give([GivenLabel(each, Label.BENIGN, "ada", "review", 1.0) for each in ids])
    assert to_review(store, bound(), 100, floor=1.0) == []


def test_an_even_design_takes_over_what_an_uneven_one_labelled(store):
    """Once: under its own name a label is left alone, by either design."""
    ids = in_store(store, traffic(50), "b" * 50, [1.0] * 50)

    def relabel(source):
        Labels(store).give([GivenLabel(each, Label.BENIGN, "ada", source, 1.0) for each in ids])

    relabel(source_of())
    assert {each.source for each in to_review(store, bound(), 100, floor=1.0)} == {source_of(1.0)}
    assert len(to_review(store, bound(), 100, floor=1.0)) == 50
    assert to_review(store, bound(), 100) == []
    for source in (source_of(1.0), "review", "csv"):
        relabel(source)
        assert to_review(store, bound(), 100, floor=1.0) == []


def test_filters_and_seeds(store):
    """Only decisions that fit; another seed asks for others, the same one for the same."""
    in_store(store, traffic(400), tenant=lambda n: ("a", "b")[n % 2])
    asked = to_review(store, bound(), 20, seed=1, filters=Filters(tenant="a"))
    assert {each.record.decision.tenant for each in asked} == {"a"}
    ids = [[each.record.decision.event_id for each in to_review(store, bound(), 20, seed=s)] for s in (1, 1, 2)]
    assert ids[0] == ids[1] != ids[2]
    with pytest.raises(ValueError, match="chance"):
        to_review(store, bound(), 20, floor=0.0)


def test_estimates_from_reviewed_labels_are_right(store):
    """Labels given in three batches, borderline first: rates of all 4,000 decisions, counted, lie in the intervals, and
    the labels counted alike would be far off.
    """
    scores = traffic(4000, seed=7)
    harmful = {f"fge_{n}": each["harm"] + 0.2 * (n % 5 - 2) > 1.7 for n, each in enumerate(scores)}
    in_store(store, scores)
    policy = bound()
    for _ in range(3):
        Labels(store).give(
            GivenLabel(each.record.decision.event_id, Label.HARMFUL if harmful[each.record.decision.event_id] else
                       Label.BENIGN, "ada", "review", each.chance)
            for each in to_review(store, policy, 150)
        )  # fmt: skip
    found = recent(store, 4000)
    judged = judge(found, Rules.of(policy))
    stopped = judged.severities > 0
    truth = np.array([harmful[f"fge_{n}"] for n in range(4000)])[::-1]
    said = estimates(found, stopped, judged.counted)
    for name, true in (
        ("prevalence", truth.mean()),
        ("recall", stopped[truth].mean()),
        ("precision", truth[stopped].mean()),
        ("fpr", stopped[~truth].mean()),
    ):
        interval = getattr(said, name).known
        assert interval.low <= true <= interval.high, name
    labelled = found.labels != None  # noqa: E711 - of each element
    assert labelled.sum() == 450
    assert truth[labelled].mean() > 3 * said.prevalence.known.value


def test_random_numbers_are_uniform_and_unrelated():
    """Also for keys in a row; two purposes draw independently."""
    keys = np.arange(50_000) * 2048
    first, second = drawn(keys, "a"), drawn(keys, "b")
    assert np.histogram(first, 20, (0, 1))[0] == pytest.approx(np.full(20, 2500), abs=250)
    assert abs(np.corrcoef(first, second)[0, 1]) < 0.02
    assert abs(np.corrcoef(first[1:], first[:-1])[0, 1]) < 0.02
