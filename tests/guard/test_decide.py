"""Decisions follow the policy exactly, and no ask of a client ever loosens one."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from guard.decide import Watched, bind, score_columns
from guard.policy import Policy
from guard.threshold import allowed_exceedances, certify
from guard.verdict import Action, Mode, Unscored, Verdict
from probes.errors import PolicyError

PROBES = ("harm", "refusal")
NONE = np.zeros((0, 2), dtype=np.float32)
ABOVE_0 = {"harm": {"above": 0}}


def judged(policy, *scores, **asked):
    """The verdict on one prompt's scores under `policy`, whose thresholds need no benign scores."""
    return bind(policy, PROBES, NONE, steering=["refusal"]).judge(scores, **asked)


@pytest.mark.parametrize("order", [("flag", "steer", "block"), ("block", "flag", "steer"), ("steer", "block", "flag")])
def test_the_most_severe_rule_wins_wherever_it_stands(policy, order):
    """Order of the file decides nothing between actions."""
    rules = policy(*((action, action, ABOVE_0) for action in order))
    verdict = judged(rules, 1, 0)
    assert (verdict.decision, verdict.action, verdict.rule) == (Action.BLOCK, Action.BLOCK, "block")


def test_among_equals_the_first_wins(policy):
    """Of two rules that block, the one that stands first is named."""
    rules = policy(("a", "flag", ABOVE_0), ("b", "block", {"refusal": {"above": 5}}), ("c", "block", ABOVE_0))
    assert judged(rules, 1, 0).rule == "c"
    assert judged(rules, 1, 6).rule == "b"


@pytest.mark.parametrize(
    ("score", "fires"), [(2.0, False), (math.nextafter(2.0, 3), True), (2.5, True), (3.0, False), (3.5, False)]
)
def test_both_ends_of_a_band_are_open(policy, score, fires):
    """A score equal to a threshold is on the quiet side of it."""
    rules = policy(("r", "flag", {"harm": {"above": 2, "below": 3}}))
    assert (judged(rules, score, 0).decision is Action.FLAG) is fires


def test_all_conditions_of_a_rule_must_hold(policy):
    """A rule is a conjunction; the policy is a disjunction of its rules."""
    rules = policy(("r", "block", {"harm": {"above": 1}, "refusal": {"below": 0}}))
    assert judged(rules, 2, -1).decision is Action.BLOCK
    assert judged(rules, 2, 1).decision is Action.ALLOW
    assert judged(rules, 0, -1).decision is Action.ALLOW


def test_allowed_prompts_have_their_scores_on_record(policy):
    """A verdict says what was seen, by whom it was judged, and that nothing fired."""
    verdict = judged(policy(("r", "block", ABOVE_0)), -1, 0.5)
    assert (verdict.decision, verdict.action, verdict.rule, verdict.unscored) == (
        Action.ALLOW,
        Action.ALLOW,
        None,
        None,
    )
    assert verdict.scores == {"harm": -1.0, "refusal": 0.5}
    assert verdict.policy == "test@1"
    assert 0 <= verdict.decision_seconds < 1


def test_every_verdict_has_its_own_event(policy):
    """Event ids do not repeat and are fit for a header."""
    bound = bind(policy(("r", "block", ABOVE_0)), PROBES, NONE)
    events = {bound.judge([0, 0]).event_id for _ in range(500)}
    assert len(events) == 500
    assert all(event.startswith("fge_") and event.isascii() and event.isprintable() for event in events)


@pytest.mark.parametrize("scores", [(math.nan, 0), (0, math.inf), (-math.inf, 0), (math.inf, math.inf)])
@pytest.mark.parametrize("combine", [{}, {"gap": {"harm": 1, "refusal": -1}}, {"nil": {"harm": 0}}])
def test_scores_that_are_not_finite_are_no_scores(policy, scores, combine):
    """NaN compares false with everything, which would read as harmless; with or without combinations it is unscored."""
    verdict = judged(policy(("r", "block", ABOVE_0), combine=combine), *scores)
    assert verdict.unscored is Unscored.NOT_FINITE
    assert verdict.decision is Action.BLOCK
    assert verdict.scores == {}
    assert verdict.rule is None


def test_a_combination_that_overflows_is_no_score(policy):
    """Weights that carry finite scores beyond the largest number give an unscored prompt, not an exception."""
    rules = policy(("r", "block", {"huge": {"above": 0}}), combine={"huge": {"harm": 1e308, "refusal": 1e308}})
    assert judged(rules, 1.0, 1.0).unscored is Unscored.NOT_FINITE
    assert judged(rules, 9.0, -9.0).unscored is Unscored.NOT_FINITE


@pytest.mark.parametrize("reason", Unscored)
@pytest.mark.parametrize("choice", ["block", "flag", "allow"])
def test_unscored_prompts_get_what_the_policy_says(policy, reason, choice):
    """Each reason, under each choice, in enforce and in shadow mode."""
    rules = policy(("r", "flag", ABOVE_0), on_unscored=choice)
    bound = bind(rules, PROBES, NONE)
    verdict = bound.judge(reason)
    assert (verdict.decision.value, verdict.action.value, verdict.unscored) == (choice, choice, reason)
    shadow = bound.judge(reason, shadow=True)
    assert (shadow.decision.value, shadow.action) == (choice, Action.ALLOW)


def test_shadow_decides_and_does_not_act(policy):
    """In shadow mode, and for a caller who was granted it, the decision is on record and the action is allow."""
    enforce, shadow = (policy(("r", "block", ABOVE_0), mode=mode) for mode in ("enforce", "shadow"))
    for verdict in (judged(shadow, 1, 0), judged(enforce, 1, 0, shadow=True)):
        assert (verdict.decision, verdict.action, verdict.mode) == (Action.BLOCK, Action.ALLOW, Mode.SHADOW)
        assert verdict.rule == "r"
    assert judged(enforce, 1, 0).mode is Mode.ENFORCE


@pytest.mark.parametrize("action", ["flag", "steer"])
def test_tighten_makes_a_warning_a_block(policy, action):
    """What the policy flags or steers, a client may have blocked; what it allows stays allowed."""
    rules = policy(("r", action, ABOVE_0))
    assert judged(rules, 1, 0, tighten=True).decision is Action.BLOCK
    assert judged(rules, -1, 0, tighten=True).decision is Action.ALLOW


def test_tighten_reaches_unscored_prompts(policy):
    """A client who asks for blocks gets one where the operator would have flagged a missing score."""
    bound = bind(policy(("r", "flag", ABOVE_0), on_unscored="flag"), PROBES, NONE)
    assert bound.judge(Unscored.MISSING, tighten=True).decision is Action.BLOCK


conditions = st.fixed_dictionaries({}, optional={name: st.floats(-5, 5) for name in ("above", "below")}).filter(
    lambda band: band and band.get("above", -9) < band.get("below", 9)
)
rules = st.lists(
    st.tuples(
        st.sampled_from(["flag", "steer", "block"]),
        st.dictionaries(st.sampled_from([*PROBES, "sum"]), conditions, min_size=1),
    ),
    min_size=1,
    max_size=5,
)
any_scores = st.one_of(
    st.tuples(*[st.floats(-8, 8) | st.sampled_from([math.nan, math.inf, -math.inf])] * 2), st.sampled_from(Unscored)
)


@settings(max_examples=300)
@given(
    rules=rules,
    mode=st.sampled_from(Mode),
    on_unscored=st.sampled_from(["block", "flag", "allow"]),
    scores=any_scores,
)
def test_no_ask_loosens(rules, mode, on_unscored, scores):
    """For any policy and any scores, finite or not, `tighten` acts at least as severely; and shadow only ever
    allows.
    """
    policy = Policy.model_validate(
        {
            "name": "any",
            "version": "1",
            "mode": mode,
            "on_unscored": on_unscored,
            "combine": {"sum": {"harm": 1, "refusal": 1}},
            "rules": [{"name": f"r{i}", "action": action, "when": when} for i, (action, when) in enumerate(rules)],
            "steering": {},
        }
    )
    bound = bind(policy, PROBES, NONE, steering=["refusal"])
    plain, tight = bound.judge(scores), bound.judge(scores, tighten=True)
    assert tight.action.severity >= plain.action.severity
    assert tight.decision.severity >= plain.decision.severity
    assert (tight.rule, tight.scores, tight.unscored) == (plain.rule, plain.scores, plain.unscored)
    assert bound.judge(scores, tighten=True, shadow=True).action is Action.ALLOW
    assert plain.action is (plain.decision if mode is Mode.ENFORCE else Action.ALLOW)
    if plain.unscored is None:
        assert plain.decision is naive_decision(policy, plain.scores)


def naive_decision(policy, scores):
    """The policy's rule, read aloud: the most severe action of all rules whose every condition holds."""
    fired = [
        rule.action
        for rule in policy.rules
        if all(
            (band.above is None or scores[name] > band.above) and (band.below is None or scores[name] < band.below)
            for name, band in rule.when.items()
        )
    ]
    return max(fired, key=lambda action: action.severity, default=Action.ALLOW)


def test_a_wrong_number_of_scores_is_never_judged(policy):
    """Scores of another set of probes are refused, not zipped to the shorter."""
    with pytest.raises(ValueError, match="zip"):
        judged(policy(("r", "block", ABOVE_0)), 1.0)


def test_combinations_are_weighted_sums(policy):
    """A combination is judged and recorded like a probe."""
    rules = policy(("r", "block", {"gap": {"above": 2}}), combine={"gap": {"harm": 1, "refusal": -0.5}})
    verdict = judged(rules, 2.0, -1.0)
    assert verdict.scores == {"harm": 2.0, "refusal": -1.0, "gap": 2.5}
    assert verdict.decision is Action.BLOCK
    assert judged(rules, 2.0, 0.0).decision is Action.ALLOW


def test_target_rates_become_order_statistics(policy, benign):
    """At 1 % of 1,000 benign scores 0..999, four may lie above: the threshold is 995, and the sixth-highest prompt
    passes.
    """
    bound = bind(policy(("r", "block", {"harm": {"above": {"target_fpr": 0.01}}})), PROBES, benign)
    assert bound.thresholds == {("r", "harm"): 995.0}
    decisions = [bound.judge(row).decision for row in benign]
    assert decisions.count(Action.BLOCK) == 4 == allowed_exceedances(1000, 0.01)


def test_thresholds_in_force(policy, benign):
    """Every upper threshold is listed by rule and score, and a rule that has only a lower end has none."""
    bound = bind(
        policy(
            ("a", "flag", {"harm": {"above": 2}, "refusal": {"below": 1}}), ("b", "flag", {"refusal": {"below": 0}})
        ),
        PROBES,
        benign,
    )
    assert bound.thresholds == {("a", "harm"): 2.0}


def test_combinations_are_certified_on_joint_scores(policy, benign):
    """The columns are opposite, so their sum is 999 for every prompt: the joint threshold is 999, not a sum of
    tails.
    """
    rules = policy(
        ("r", "block", {"both": {"above": {"target_fpr": 0.01}}}), combine={"both": {"harm": 1, "refusal": 1}}
    )
    bound = bind(rules, PROBES, benign)
    assert bound.thresholds == {("r", "both"): 999.0}
    assert {bound.judge(row).decision for row in benign} == {Action.ALLOW}


@settings(max_examples=50)
@given(
    weights=st.tuples(st.floats(-3, 3), st.floats(-3, 3)),
    distinct=st.integers(1, 40),
    seed=st.integers(0, 100),
)
def test_a_certified_combination_keeps_its_promise_on_ties(weights, distinct, seed):
    """However the benign scores tie, no more of them fire than the certificate allows, rounding included."""
    rng = np.random.default_rng(seed)
    benign = rng.normal(size=(distinct, 2)).astype(np.float32)[rng.integers(distinct, size=400)]
    policy = Policy.model_validate(
        {
            "name": "a",
            "version": "1",
            "combine": {"sum": dict(zip(PROBES, weights, strict=True))},
            "rules": [{"name": "r", "action": "block", "when": {"sum": {"above": {"target_fpr": 0.05}}}}],
        }
    )
    bound = bind(policy, PROBES, benign)
    fired = sum(bound.judge(row).decision is Action.BLOCK for row in benign)
    assert fired <= allowed_exceedances(400, 0.05)


@pytest.mark.parametrize(
    ("rule", "keys", "field", "words"),
    [
        ({"harmm": {"above": 1}}, {}, "rules.r.when.harmm", "harm, refusal"),
        ({"sum": {"above": 1}}, {"combine": {"sum": {"harmm": 1}}}, "combine.sum", "harm, refusal"),
        ({"harm": {"above": 1}}, {"combine": {"harm": {"refusal": 1}}}, "combine.harm", "another name"),
        ({"a": {"above": 1}}, {"combine": {"a": {"harm": 1}, "b": {"a": 1}}}, "combine.b", "harm, refusal"),
        ({"harm": {"above": 1}}, {"steering": {"vector": "mood"}}, "steering.vector", "refusal"),
        ({"harm": {"above": 1}}, {"artifact": "a" * 64}, "artifact", "update its digest"),
        ({"harm": {"above": {"target_fpr": 0.001}}}, {}, "rules.r.when.harm.above.target_fpr", "at least 2995"),
        ({"harm": {"above": {"target_fpr": 0.01}, "below": 5}}, {}, "rules.r.when.harm", "raise 'below'"),
    ],
)
def test_policies_that_do_not_fit_the_artifact(policy, benign, rule, keys, field, words):
    """Unknown names list the known ones; too few benign prompts say how many are needed; another artifact is
    refused.
    """
    with pytest.raises(PolicyError) as caught:
        bind(policy(("r", "block", rule), **keys), PROBES, benign, steering=["refusal"], digest="b" * 64)
    assert caught.value.field == field
    assert words in caught.value.remedy


UNUSUAL = {"novelty": {"above": 0}}
SEES = ("harm", "novelty", "surprise")
COMBINE = {"odd": {"novelty": 1, "surprise": 2}, "odder": {"novelty": 1, "harm": 0}, "both": {"novelty": 1, "harm": 1}}


def bound_to_novelty(policy, action, when):
    """A policy of one rule, on an artifact two of whose probes only say that a prompt is unusual."""
    rules = policy(("r", action, when), combine=COMBINE)
    escalating = ("novelty", "surprise")
    return bind(rules, SEES, np.zeros((0, 3), np.float32), escalating=escalating, steering=["refusal"])


@pytest.mark.parametrize(
    "when", [UNUSUAL, UNUSUAL | {"surprise": {"above": 1}}, {"odd": {"above": 0}}, UNUSUAL | {"odder": {"above": 0}}]
)
def test_what_is_unusual_never_blocks_alone(policy, when):
    """Nor several such scores together, nor combined, nor beside a detector of weight 0; it may flag or steer."""
    with pytest.raises(PolicyError, match="unusual and not that it is harmful") as caught:
        bound_to_novelty(policy, "block", when)
    assert caught.value.field == "rules.r.when"
    assert "'flag' or 'steer'" in caught.value.remedy
    for action in ("flag", "steer"):
        assert bound_to_novelty(policy, action, when).judge([0, 9, 9]).decision is Action(action)


@pytest.mark.parametrize("when", [UNUSUAL | ABOVE_0, {"both": {"above": 0}}, UNUSUAL | {"both": {"above": 0}}])
def test_what_is_unusual_may_block_together_with_a_detector(policy, when):
    """The detector may stand beside it or in its combination."""
    assert bound_to_novelty(policy, "block", when).judge([1, 9, 0]).decision is Action.BLOCK


def test_a_combination_of_nothing_is_no_escalation(policy):
    """Weights that are all 0 are the operator's business, as before."""
    rules = policy(("r", "block", {"sum": {"above": 1}}), combine={"sum": {"harm": 0}})
    assert bind(rules, PROBES, NONE).judge([1, 1]).decision is Action.ALLOW


def test_the_named_artifact_is_accepted(policy, benign):
    """A policy that pins its artifact binds to that artifact."""
    pinned = policy(("r", "block", ABOVE_0), artifact="a" * 64)
    assert bind(pinned, PROBES, benign, digest="a" * 64).policy is pinned


PROMISED_BAND = (
    ("upper", "block", {"harm": {"above": {"target_fpr": 0.01}}}),
    ("middle", "steer", {"harm": {"above": {"target_fpr": 0.05}, "below": {"target_fpr": 0.01}}}),
)


def test_promises_at_both_ends_tile_the_scores(policy, benign):
    """The middle band reaches up to the block's threshold and includes it: a prompt that ties with it is steered."""
    bound = bind(policy(*PROMISED_BAND), PROBES, benign, steering=["refusal"])
    assert bound.thresholds == {("upper", "harm"): 995.0, ("middle", "harm"): 961.0}
    decided = {score: bound.judge([score, 0.0]).decision for score in (961.0, 962.0, 995.0, 996.0)}
    assert list(decided.values()) == [Action.ALLOW, Action.STEER, Action.STEER, Action.BLOCK]


@settings(max_examples=50)
@given(distinct=st.integers(2, 60), seed=st.integers(0, 100))
def test_bands_leave_no_gap_on_ties(distinct, seed):
    """However the benign scores tie: whatever is above the lower promise is steered or blocked."""
    rng = np.random.default_rng(seed)
    benign = rng.normal(size=(distinct, 2)).astype(np.float32)[rng.integers(distinct, size=600)]
    rules = [{"name": name, "action": action, "when": when} for name, action, when in PROMISED_BAND]
    policy = Policy.model_validate({"name": "a", "version": "1", "rules": rules, "steering": {}})
    ends = [certify(benign[:, 0], target).value for target in (0.05, 0.01)]
    if ends[0] == ends[1]:
        with pytest.raises(PolicyError, match="no score is above"):
            bind(policy, PROBES, benign, steering=["refusal"])
        return
    bound = bind(policy, PROBES, benign, steering=["refusal"])
    lowest = bound.thresholds["middle", "harm"]
    assert all((bound.judge(row).decision is not Action.ALLOW) == (row[0] > lowest) for row in benign)


@pytest.mark.parametrize(("above", "below"), [(0.01, 0.05), (0.01, 0.01)])
def test_a_band_of_promises_upside_down_is_refused(policy, above, below):
    """The rarer promise is the higher threshold."""
    band = {"harm": {"above": {"target_fpr": above}, "below": {"target_fpr": below}}}
    with pytest.raises(ValueError, match="swap the rates"):
        policy(("r", "flag", band))


def test_too_few_benign_prompts_for_the_upper_end(policy, benign):
    """The error names the end that cannot be certified."""
    band = {"harm": {"above": {"target_fpr": 0.01}, "below": {"target_fpr": 0.001}}}
    with pytest.raises(PolicyError) as caught:
        bind(policy(("r", "flag", band)), PROBES, benign)
    assert caught.value.field == "rules.r.when.harm.below.target_fpr"


def test_rules_that_never_decide_are_named(policy, benign):
    """A flag above a block's threshold, a second block within the first; not one that another condition tells apart."""
    rules = policy(
        ("flag-high", "flag", {"harm": {"above": {"target_fpr": 0.01}}}),
        ("block-low", "block", {"harm": {"above": {"target_fpr": 0.05}}}),
        ("block-within", "block", {"harm": {"above": 990}, "refusal": {"below": 0}}),
        ("flag-low", "flag", {"harm": {"above": 900}}),
        ("other", "flag", {"refusal": {"above": 999}}),
    )
    assert bind(rules, PROBES, benign).idle_rules == {"flag-high": "block-low", "block-within": "block-low"}


@settings(max_examples=100)
@given(rules=rules, seed=st.integers(0, 1000))
def test_many_prompts_are_decided_as_one_by_one(rules, seed):
    """Over any policy: severities are those of `judge`, and a rule that never decides is never named by it."""
    policy = Policy.model_validate(
        {
            "name": "any",
            "version": "1",
            "combine": {"sum": {"harm": 1, "refusal": 1}},
            "rules": [{"name": f"r{i}", "action": action, "when": when} for i, (action, when) in enumerate(rules)],
            "steering": {},
        }
    )
    bound = bind(policy, PROBES, NONE, steering=["refusal"])
    scores = np.round(np.random.default_rng(seed).normal(0, 4, size=(40, 2))).astype(np.float32)
    columns = score_columns(policy, PROBES, scores)
    verdicts = [bound.judge(row) for row in scores]
    assert bound.severities(columns).tolist() == [verdict.decision.severity for verdict in verdicts]
    fired = bound.firing(columns)
    assert all(verdict.rule is None or fired[verdict.rule][row] for row, verdict in enumerate(verdicts))
    assert not bound.idle_rules.keys() & {verdict.rule for verdict in verdicts}


def test_an_artifacts_combination_is_at_hand_and_the_policys_own_goes_first(policy):
    """A rule may name what calibration recommends; a policy that defines the name itself is taken at its word."""
    rules = policy(("r", "block", {"combined": {"above": 1}}))
    recommended = {"combined": {"harm": 0.5, "refusal": 0.5}}
    with pytest.raises(PolicyError, match="combined"):
        judged(rules, 3, 0)
    assert judged(rules.with_combinations(recommended), 3, 0).decision is Action.BLOCK
    assert judged(rules.with_combinations(recommended), 1, 0).decision is Action.ALLOW
    own = rules.model_copy(update={"combine": {"combined": {"refusal": 1.0}}})
    assert judged(own.with_combinations(recommended), 3, 0).decision is Action.ALLOW


@pytest.mark.parametrize("section", ["rules", "answer_rules"])
def test_a_verdict_names_the_category_of_its_rule(section):
    """It travels with the verdict, so that records and, if the policy says so, clients can have it; no rule, no
    category.
    """
    rule = {"name": "r", "action": "block", "category": "weapons", "when": {"harm": {"above": 1}}}
    other = {"name": "other", "action": "flag", "when": {"harm": {"above": 100}}}
    settings = {"name": "p", "version": "1", "rules": [other], section: [rule]}
    watched = Watched(["harm"], np.zeros((1, 1), dtype=np.float32)) if section == "answer_rules" else None
    bound = bind(Policy.model_validate(settings), ["harm"], np.zeros((0, 1), dtype=np.float32), watched=watched)

    def judge(score):
        return bound.judge([score]) if watched is None else bound.answers.judge(np.array([score]))

    assert Verdict.from_wire(judge(2.0).to_wire()).category == "weapons"
    assert judge(0.0).category is None


@pytest.mark.parametrize(("tighten", "expected"), [(True, Action.BLOCK), (False, Action.FLAG)])
def test_tighten_reaches_answers_that_cannot_be_read(tighten, expected):
    """What the policy flags because a token has no score is a block for the client that asked for one."""
    rule = {"name": "a", "action": "flag", "when": {"harm": {"above": 1}}}
    settings = {
        "name": "p",
        "version": "1",
        "rules": [rule | {"name": "r"}],
        "answer_rules": [rule],
        "on_unscored": "flag",
    }
    bound = bind(
        Policy.model_validate(settings),
        ["harm"],
        np.zeros((0, 1), dtype=np.float32),
        watched=Watched(["harm"], np.zeros((1, 1), dtype=np.float32)),
    )
    assert bound.answers.judge(Unscored.NOT_FINITE, tighten=tighten).decision is expected
