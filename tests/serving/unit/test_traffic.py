"""The made-up traffic of the console's demo."""

from collections import Counter
from pathlib import Path

import pytest

from guard.policy_file import parse_policies
from serving.demo.operated import _in_shadow
from serving.demo.subjects import lab
from serving.demo.traffic import MINUTES, Callers, hour

LAB = Path(__file__).parents[3] / "examples" / "lab"


@pytest.fixture(scope="module")
def callers():
    return Callers()


@pytest.fixture(scope="module")
def sent(callers):
    return list(hour(lab(LAB), callers))


def test_an_hour_has_every_minute_in_order_and_is_the_same_each_time(sent, callers):
    """Whoever starts the demo again sees the same hour."""
    minutes = [each.minute for each in sent]
    assert minutes == sorted(minutes)
    assert set(minutes) == set(range(MINUTES))
    assert sent == list(hour(lab(LAB), callers))
    assert sent != list(hour(lab(LAB), callers, seed=1))


def test_one_tenant_attacks_towards_the_end(sent, callers):
    """Harmful requests are rare, until one tenant sends many: its share of them then is above all others' together."""
    harmful = Counter((each.token, each.minute >= 48) for each in sent if each.is_harmful)
    before = sum(count for (_, late), count in harmful.items() if not late)
    assert before / sum(each.minute < 48 for each in sent) < 0.06
    attacker = harmful[callers.tenants["shop"], True]
    assert attacker > sum(count for (token, late), count in harmful.items() if late) / 2


def test_the_policy_is_in_shadow_mode_and_knows_the_tenants(callers):
    """Nobody is stopped, each tenant's token is known, and enforcement is a variant away."""
    file = parse_policies(_in_shadow(lab(LAB).policy.read_text(), callers))
    assert file.policy.mode.value == "shadow"
    assert file.variants["enforcing"].mode.value == "enforce"
    assert [tenant.name for tenant in file.settings.tenants] == list(callers.tenants)
