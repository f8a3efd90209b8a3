"""Combinations are chosen by what they catch where neither they nor the choice has been."""

from dataclasses import replace

import numpy as np
import pytest

from calibration.evaluation.unseen.combination import FoldScores, choose_combination, stacking_weights
from calibration.evaluation.unseen.contenders import even_combination
from calibration.registry import methods

NAMES = ["one", "two", "noise"]


def fold(seed, gaps, count=600):
    """Scores of three probes, harmful prompts higher by `gaps`; errors of different probes are independent."""
    rng = np.random.default_rng(seed)
    harmful = np.arange(count) % 2 == 0
    judged, left_out = (rng.standard_normal((count, 3)) + harmful[:, None] * np.array(gaps) for _ in range(2))
    return FoldScores(judged, harmful, left_out, harmful)


def test_two_probes_with_errors_of_their_own_are_averaged_and_noise_is_left_out():
    """Their average beats each, and the third adds nothing."""
    folds = [fold(seed, (2.5, 2.5, 0.0)) for seed in range(6)]
    weights = choose_combination(folds, NAMES, 0.01)
    assert weights.get("noise", 0.0) < 0.1
    assert weights["one"] == pytest.approx(weights["two"], abs=0.1)
    assert sum(weights.values()) == pytest.approx(1)


def test_one_probe_is_enough_where_the_others_know_nothing():
    """Among equals the fewest win."""
    assert choose_combination([fold(seed, (9.0, 0.0, 0.0)) for seed in range(4)], NAMES, 0.01) == {"one": 1.0}


def test_a_probe_that_flags_one_kind_of_honest_traffic_loses_to_one_that_does_not():
    """Both recall all harm; on a harmless family left out the first is sure of harm, and the second is chosen."""
    telling, honest = fold(0, (9.0, 9.0, 0.0)), fold(1, (9.0, 9.0, 0.0))
    shifted = honest.left_out[~honest.harmful] + np.array([9.0, 0.0, 0.0])
    honest = FoldScores(honest.judged, honest.judged_harmful, shifted, np.zeros(len(shifted), dtype=bool))
    weights = choose_combination([telling, honest], NAMES, 0.01)
    assert "one" not in weights
    assert weights["two"] >= 0.5


def test_a_default_stays_unless_another_is_proved_better():
    """What is better by chance in a few families changes nothing; a probe that always is takes its place."""
    nearly = {"one": 0.55, "two": 0.45}
    alike = [fold(seed, (2.5, 2.5, 0.0)) for seed in range(6)]
    assert choose_combination(alike, NAMES, 0.01) != nearly
    assert choose_combination(alike, NAMES, 0.01, nearly) == nearly
    assert choose_combination(alike[:1], NAMES, 0.01, nearly) == nearly
    telling = [fold(seed, (0.0, 0.0, 9.0)) for seed in range(6)]
    assert choose_combination(telling, NAMES, 0.01, nearly) == {"noise": 1.0}


def test_each_kind_of_reading_has_an_even_part():
    """Kinds that were not fitted are passed over, probes of one kind share its part, and one kind is no combination."""
    every = list(methods().values())
    weights = even_combination(every, ["lda", "stack", "joint", "tokens", "multimax"])
    assert weights == pytest.approx({"stack": 1 / 3, "joint": 1 / 3, "tokens": 1 / 6, "multimax": 1 / 6})
    assert even_combination(every, ["stack", "joint", "harmfulness"]) == {"stack": 0.5, "joint": 0.5}
    assert even_combination(every, ["tokens", "attention"]) == {}


def test_no_weight_is_negative():
    """A probe that points the wrong way is left out, not subtracted: it could let a request pass."""
    weights = stacking_weights([fold(3, (3.0, 2.0, -2.0))])
    assert weights[2] == 0
    assert (weights[:2] > 0).all()
    assert weights.sum() == pytest.approx(1)


def test_log_odds_of_probes_can_be_added_whatever_their_scale():
    """A probe in other units has the same say."""
    one = fold(4, (2.0, 2.0, 0.0))
    scale, shift = np.array([1, 50, 1]), np.array([0, 7, 0])
    stretched = replace(one, judged=one.judged * scale + shift, left_out=one.left_out * scale + shift)
    np.testing.assert_allclose(one.in_logits().left_out, stretched.in_logits().left_out, atol=1e-2)
