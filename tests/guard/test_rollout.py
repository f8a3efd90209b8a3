"""Who comes under which policy: the caller's grant, the first override, the canary's share, or the file's own."""

import hashlib

import numpy as np
import pytest
import yaml

from guard.decide import bind
from guard.policy_file import parse_policies
from guard.policy_set import PolicySet
from guard.rollout import Asking, Rollout
from guard.verdict import Mode
from probes.errors import PolicyError

FILE = """
name: production
version: "8"
mode: shadow
rules: [{name: harm, action: block, when: {harm: {above: 2}}}]
variants:
  enforcing: {mode: enforce}
  stricter: {rules: [{name: harm, action: block, when: {harm: {above: 1}}}]}
  clinic: {on_unscored: flag}
shadow: stricter
canary: {variant: enforcing, percent: 5}
tenants:
  - {name: acme, keys_sha256: [KEY]}
  - {name: other}
overrides:
  - {variant: clinic, tenants: [acme], routes: [/v1/messages, /v1/responses]}
  - {variant: stricter, models: [tuned]}
callers:
  - {name: red-team, key_sha256: KEY, may_choose: [clinic]}
""".replace("KEY", hashlib.sha256(b"a token that nobody has").hexdigest())


VARIANTS = ("enforcing", "stricter", "clinic")


def file(changes=None, **settings):
    """The file, with other settings, and without those that are None."""
    made = yaml.safe_load(FILE) | (changes or {}) | settings
    return parse_policies(yaml.safe_dump({key: value for key, value in made.items() if value is not None}), "p.yaml")


def rollout(**settings):
    """The file's policies, bound to one probe."""
    read = file(**settings)

    def bound(policy):
        return PolicySet(bind(policy, ["harm"], np.zeros((0, 1), dtype=np.float32)))

    return Rollout(bound(read.policy), {name: bound(each) for name, each in read.variants.items()}, read.settings)


def chosen(asking, **settings):
    """The label of the policy that a request comes under."""
    return rollout(**settings).choose(asking).policy.label


def test_a_variant_is_the_policy_but_for_what_it_changes():
    """Each has its own label and digest; the rest is the file's."""
    read = file()
    assert read.policy.label == "production@8"
    assert {name: policy.label for name, policy in read.variants.items()} == {
        name: f"production@8+{name}" for name in VARIANTS
    }
    assert read.variants["enforcing"].mode is Mode.ENFORCE
    assert read.variants["enforcing"].rules == read.policy.rules
    assert read.variants["stricter"].mode is Mode.SHADOW
    digests = {read.policy.digest, *(each.digest for each in read.variants.values())}
    assert len(digests) == 4


def test_the_digest_is_of_all_that_the_file_says():
    """A canary that grows is another file, to every process: each policy of it has another digest."""
    one, other = file(), file(canary={"variant": "enforcing", "percent": 6})
    assert one.policy.digest == file().policy.digest
    assert one.policy.digest != other.policy.digest
    assert one.variants["clinic"].digest != other.variants["clinic"].digest


@pytest.mark.parametrize(
    ("asking", "label"),
    [
        (Asking(), "production@8"),
        (Asking("/v1/messages", "served", "acme"), "production@8+clinic"),
        (Asking("/v1/completions", "served", "acme"), "production@8"),
        (Asking("/v1/messages", "served", "other"), "production@8"),
        (Asking("/v1/messages", "tuned", "acme"), "production@8+clinic"),
        (Asking("/v1/completions", "tuned", "acme"), "production@8+stricter"),
        (Asking("/v1/completions", "tuned", "acme", variant="enforcing"), "production@8+enforcing"),
    ],
)
def test_the_first_that_fits_decides(asking, label):
    """A caller's own variant before all overrides, these in their order, each by all of its lists."""
    assert chosen(asking, canary=None) == label


def test_the_canary_has_its_share_and_always_the_same():
    """Of 20,000 callers five in a hundred, within four standard errors; ten in a hundred are those and others."""
    callers = [f"caller {number}" for number in range(20_000)]

    def under(percent, **settings):
        made = rollout(canary={"variant": "enforcing", "percent": percent}, **settings)
        return {caller for caller in callers if made.choose(Asking(caller=caller)).policy.variant == "enforcing"}

    five, ten = under(5), under(10)
    error = (0.05 * 0.95 / len(callers)) ** 0.5
    assert abs(len(five) / len(callers) - 0.05) < 4 * error
    assert five < ten
    assert under(5, version="9") == five
    assert under(100) == set(callers)
    assert under(5, name="another") != five


def test_an_override_goes_before_the_canary():
    """A tenant whose rules are its own stays under them, whatever its place."""
    settings = {"canary": {"variant": "enforcing", "percent": 100}}
    assert chosen(Asking("/v1/messages", "served", "acme", "acme"), **settings) == "production@8+clinic"
    assert chosen(Asking("/v1/messages", "served", "other", "other"), **settings) == "production@8+enforcing"


@pytest.mark.parametrize(
    ("changes", "where", "problem"),
    [
        ({"shadow": "none"}, "p.yaml:", "no variant is named 'none'"),
        ({"canary": {"variant": "none", "percent": 5}}, "p.yaml:", "no variant is named 'none'"),
        ({"canary": {"variant": "enforcing", "percent": 0}}, "canary.percent", "greater than 0"),
        ({"canary": {"variant": "enforcing", "percent": 101}}, "canary.percent", "less than or equal to 100"),
        ({"overrides": [{"variant": "enforcing"}]}, "overrides.0", "needs 'tenants', 'routes' or 'models'"),
        ({"overrides": [{"variant": "enforcing", "tenants": ["x"]}]}, "p.yaml:", "no tenant is named 'x'"),
        ({"variants": {name: {"version": "9"} for name in VARIANTS}}, "p.yaml:", "may not change version"),
        ({"tenants": [{"name": "acme"}, {"name": "acme"}, {"name": "other"}]}, "p.yaml:", "names must be unique"),
        ({"gateway": {"tenant_header": "x-tenant"}}, "gateway.key_header", "required"),
    ],
)
def test_a_rollout_that_names_what_is_not_there_is_refused(changes, where, problem):
    """With the key, and a remedy."""
    with pytest.raises(PolicyError, match=problem) as caught:
        file(changes)
    assert where in caught.value.field


def test_a_fault_in_a_variant_is_named_with_its_line():
    """As one in the policy itself is."""
    text = FILE.replace("{mode: enforce}", "{mode: maybe}")
    with pytest.raises(PolicyError) as caught:
        parse_policies(text, "p.yaml")
    assert caught.value.field == "p.yaml:7: variants.enforcing.mode"


def test_a_caller_may_choose_what_there_is():
    """A grant of a variant that is not there is refused, with its line."""
    with pytest.raises(PolicyError, match="no variant is named") as caught:
        parse_policies(FILE.replace("may_choose: [clinic]", "may_choose: [lenient]"), "p.yaml")
    assert caught.value.field.startswith("p.yaml:")
    assert "callers.0" in caught.value.field
