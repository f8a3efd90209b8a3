"""Attribution adds up, and names what was planted."""

from itertools import permutations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guard.drift.attribution import Group, by_part, by_stratum

NAMES = ["a", "b", "c"]
groups = st.builds(lambda weight, mean: Group(weight, weight * mean), st.floats(0.1, 100), st.floats(-10, 10))
sides = st.fixed_dictionaries(dict.fromkeys(NAMES, groups))


def mean(side):
    """The overall mean."""
    return sum(group.total for group in side.values()) / sum(group.weight for group in side.values())


def shapley(before, after):
    """Each player's mean contribution over all orders: a player for each stratum's mean, and one for the mix."""
    players, value = [*NAMES, "mix"], dict.fromkeys([*NAMES, "mix"], 0.0)

    def at(joined):
        mix = after if "mix" in joined else before
        total = sum(group.weight for group in mix.values())
        sources = {name: after if name in joined else before for name in NAMES}
        return sum(mix[name].weight / total * sources[name][name].total / sources[name][name].weight for name in NAMES)

    orders = list(permutations(players))
    for order in orders:
        for place, player in enumerate(order):
            value[player] += (at(order[: place + 1]) - at(order[:place])) / len(orders)
    return value


@given(sides, sides)
def test_it_is_the_shapley_value(before, after):
    """By brute force over all orders: each stratum's part within, and the mix as a whole."""
    found, wanted = by_stratum(before, after), shapley(before, after)
    for each in found:
        assert each.within == pytest.approx(wanted[each.name], abs=1e-9)
    assert sum(each.mix for each in found) == pytest.approx(wanted["mix"], abs=1e-9)


@given(
    st.dictionaries(st.sampled_from(NAMES), groups, min_size=1),
    st.dictionaries(st.sampled_from(NAMES), groups, min_size=1),
)
def test_contributions_add_up_to_the_shift(before, after):
    """Strata that are new or gone included; shares add up to one, and come largest first."""
    found, shift = by_stratum(before, after), mean(after) - mean(before)
    assert sum(each.total for each in found) == pytest.approx(shift, abs=1e-9)
    if abs(shift) > 1e-6:
        assert sum(each.share for each in found) == pytest.approx(1.0, abs=1e-6)
    sizes = [abs(each.total) for each in found]
    assert sizes == sorted(sizes, reverse=True)


def test_a_tenant_that_scores_higher_moved_it_all():
    """One of four equal tenants rises by 2: the mean rises by 0.5, all of it within that tenant."""
    before = {name: Group(100, 0.0) for name in "abcd"}
    first, *others = by_stratum(before, before | {"c": Group(100, 200.0)})
    assert (first.name, first.within, first.mix, first.share) == ("c", 0.5, 0.0, 1.0)
    assert {each.total for each in others} == {0.0}


def test_a_route_that_grows_is_mix_and_not_within():
    """Nobody scores otherwise, and the higher of two routes doubles its share: mix alone, half of it to each."""
    before, after = {"low": Group(80, 0.0), "high": Group(20, 20.0)}, {"low": Group(60, 0.0), "high": Group(40, 40.0)}
    found = {each.name: each for each in by_stratum(before, after)}
    assert all(each.within == 0 for each in found.values())
    assert sum(each.mix for each in found.values()) == pytest.approx(0.2)
    assert found["high"].mix > found["low"].mix > 0


def test_a_new_stratum_is_mix():
    """It had no mean to change."""
    found = {each.name: each for each in by_stratum({"a": Group(10, 0.0)}, {"a": Group(5, 0.0), "new": Group(5, 15.0)})}
    assert (found["new"].within, found["a"].within) == (0.0, 0.0)
    assert found["new"].mix + found["a"].mix == pytest.approx(1.5)


def test_channels_share_the_shift_of_their_sum():
    """One channel rose by 3, one fell by 1: shares 1.5 and -0.5."""
    found = by_part({"c0": 1.0, "c1": 1.0}, {"c0": 4.0, "c1": 0.0})
    assert [(each.name, each.share) for each in found] == [("c0", 1.5), ("c1", -0.5)]


def test_nothing_moved_is_no_division_by_zero():
    """Equal sides have shares of 0, and an empty side has no contributions."""
    side = {"a": Group(1, 1.0)}
    assert [each.share for each in by_stratum(side, side)] == [0.0]
    assert by_stratum({}, side) == by_stratum(side, {}) == []
