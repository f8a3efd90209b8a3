"""A policy file is read exactly, or refused with the key, the line and the remedy."""

import contextlib
import hashlib
import os
import pickle
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from guard.policy import DEFAULT_MESSAGE, Policy, TargetFpr
from guard.policy_file import load_policy, parse_policy
from guard.verdict import Action, Mode
from probes.errors import PolicyError

GOOD = """\
name: production            # line 1
version: "7"
mode: shadow
on_unscored: flag
combine:
  jailbreak:
    harm: 1.0
    refusal: -0.5
rules:
  - name: clear-harm        # line 10
    action: block
    category: harm
    when:
      harm:
        above:
          target_fpr: 0.001
          confidence: 0.9
  - name: wrapped           # line 18
    action: steer
    when:
      jailbreak: {above: 3}
      refusal:
        above: -2.5
        below: 0
steering:
  vector: refusal
  strength: 1.5
response:
  style: error
  message: No.
callers:
  - name: red-team          # line 32
    key_sha256: bd838af3457a4b5e2e84d7e3669eaae5871c4e5afe8c12fc180e3e87bce4132e
    may_shadow: true
"""


def refusal(text):
    """The error that `text` is refused with."""
    with pytest.raises(PolicyError) as caught:
        parse_policy(text, "policy.yaml")
    assert caught.value.remedy
    return caught.value


def test_every_key_is_read():
    """What the file says is what the policy holds."""
    policy = parse_policy(GOOD)
    assert (policy.name, policy.version, policy.label) == ("production", "7", "production@7")
    assert policy.mode is Mode.SHADOW
    assert policy.on_unscored is Action.FLAG
    assert policy.combine == {"jailbreak": {"harm": 1.0, "refusal": -0.5}}
    first, second = policy.rules
    assert (first.name, first.action, first.category) == ("clear-harm", Action.BLOCK, "harm")
    assert first.when["harm"].above == TargetFpr(target_fpr=0.001, confidence=0.9)
    assert second.action is Action.STEER
    assert second.when["jailbreak"].above == 3.0
    assert (second.when["refusal"].above, second.when["refusal"].below) == (-2.5, 0.0)
    assert (policy.steering.vector, policy.steering.strength) == ("refusal", 1.5)
    assert (policy.response.style, policy.response.message) == ("error", "No.")
    assert policy.callers[0].may_shadow
    assert not policy.callers[0].sees_scores


def test_what_is_left_out_is_the_careful_choice():
    """Enforce, block what has no score, show no scores, answer with a refusal."""
    policy = parse_policy("name: a\nversion: b\nrules: [{name: r, action: flag, when: {p: {above: 1}}}]")
    assert policy.mode is Mode.ENFORCE
    assert policy.on_unscored is Action.BLOCK
    assert policy.expose_scores is False
    assert (policy.response.style, policy.response.message) == ("refusal", DEFAULT_MESSAGE)
    assert (policy.callers, policy.combine, policy.steering, policy.artifact) == ((), {}, None, None)


def test_policy_round_trips_through_yaml():
    """A policy dumped to YAML reads back equal."""
    policy = parse_policy(GOOD)
    assert parse_policy(yaml.safe_dump(policy.model_dump(mode="json"))) == policy


@pytest.mark.parametrize(
    ("after", "indent", "line"),
    [
        ("mode: shadow", 0, 4),
        ("    harm: 1.0", 4, 8),
        ("    category: harm", 4, 13),
        ("          confidence: 0.9", 10, 18),
        ("        below: 0", 8, 25),
        ("  strength: 1.5", 2, 28),
        ("  message: No.", 2, 31),
        ("    may_shadow: true", 4, 35),
    ],
)
def test_unknown_keys_are_refused_at_every_depth(after, indent, line):
    """A misspelt key would leave its default in force, so it is an error that names the key, its line and the
    remedy.
    """
    error = refusal(GOOD.replace(after, f"{after}\n{' ' * indent}Blok: {{x: 1}}"))
    assert error.field.startswith(f"policy.yaml:{line}: ")
    assert "Blok" in error.field
    if indent != 4 or "harm: 1.0" not in after:  # a combination's keys are probe names: a bad one is no unknown key
        assert "spelling" in error.remedy


@pytest.mark.parametrize(
    ("old", "new", "line", "field", "problem"),
    [
        ('version: "7"', "", 1, "version", "required"),
        ("mode: shadow", "mode: enforced", 3, "mode", "'enforce' or 'shadow'"),
        ("on_unscored: flag", "on_unscored: steer", 4, "on_unscored", "block"),
        ("    refusal: -0.5", "    refusal: much", 8, "combine.jailbreak.refusal", "number"),
        ("    refusal: -0.5", "    refusal: .inf", 8, "combine.jailbreak.refusal", "finite"),
        ("  jailbreak:\n    harm: 1.0\n    refusal: -0.5", "  jailbreak: {}", 6, "combine.jailbreak", "at least"),
        ("name: clear-harm ", "name: clear harm ", 10, "rules.0.name", "pattern"),
        ("action: block", "action: deny", 11, "rules.0.action", "block"),
        ("action: block", "action: allow", 11, "rules.0.action", "block"),
        ("target_fpr: 0.001", "target_fpr: 1", 16, "rules.0.when.harm.above.target_fpr", "less than 1"),
        ("target_fpr: 0.001", "target_fpr: 0", 16, "rules.0.when.harm.above.target_fpr", "greater than 0"),
        ("target_fpr: 0.001", "target_frp: 0.001", 15, "rules.0.when.harm.above.target_fpr", "required"),
        ("confidence: 0.9", "confidence: 0.4", 17, "rules.0.when.harm.above.confidence", "0.5"),
        ("jailbreak: {above: 3}", "jailbreak: {above: high}", 21, "rules.1.when.jailbreak.above", "number"),
        ("jailbreak: {above: 3}", "jailbreak: {above: .nan}", 21, "rules.1.when.jailbreak.above", "finite"),
        ("jailbreak: {above: 3}", "jailbreak: {}", 21, "rules.1.when.jailbreak", "'above', 'below' or both"),
        ("jailbreak: {above: 3}", "jailbreak: {above: 3, below: 3}", 21, "rules.1.when.jailbreak", "no score"),
        ("jailbreak: {above: 3}", "Jail-Break: {above: 3}", 21, "Jail-Break", "pattern"),
        ("        below: 0", "        below: [0]", 24, "rules.1.when.refusal.below", "number"),
        (
            "        below: 0",
            "        below: {target_fpr: 0}",
            24,
            "rules.1.when.refusal.below.target_fpr",
            "greater than 0",
        ),
        ("name: wrapped", "name: clear-harm", 1, "", "rules: names must be unique"),
        ("strength: 1.5", "strength: 0", 27, "steering.strength", "greater than 0"),
        ("strength: 1.5", "strength: 17", 27, "steering.strength", "16"),
        ("strength: 1.5", "constrained: allow", 27, "steering.constrained", "block"),
        ("style: error", "style: silent", 29, "response.style", "refusal"),
        ("message: No.", "message: ''", 30, "response.message", "at least 1"),
        ("key_sha256: bd", "key_sha256: BD", 33, "callers.0.key_sha256", "pattern"),
        ("steering:\n  vector: refusal\n  strength: 1.5\n", "", 1, "", "no 'steering' section"),
    ],
)
def test_wrong_values_name_their_key_and_line(old, new, line, field, problem):
    """Each fault, planted in a good file, is reported at its own line under its own name."""
    assert old in GOOD
    error = refusal(GOOD.replace(old, new, 1))
    assert error.field.startswith(f"policy.yaml:{line}: "), error
    assert field in error.field
    assert problem.lower() in error.problem.lower()


@pytest.mark.parametrize("word", ["", "test", "secret", "password", "EMPTY", "token-abc123"])
def test_a_key_that_anyone_would_try_is_refused(word):
    """By its line and with a way to a better one. The documented example's is a digest of what nobody has."""
    digest = hashlib.sha256(word.encode()).hexdigest()
    error = refusal(GOOD.replace("bd838af3457a4b5e2e84d7e3669eaae5871c4e5afe8c12fc180e3e87bce4132e", digest))
    assert error.field == "policy.yaml:33: callers.0.key_sha256"
    assert repr(word) in error.problem
    assert "foreguard key" in error.remedy


@pytest.mark.parametrize("value", ["yes", "true", '"3"', "[1]", "2026-01-01"])
def test_a_threshold_is_a_number(value):
    """`above: yes` is a slip of the pen, not the threshold 1.0; nor is text a number."""
    error = refusal(GOOD.replace("{above: 3}", f"{{above: {value}}}"))
    assert error.field == "policy.yaml:21: rules.1.when.jailbreak.above"


@pytest.mark.parametrize("version", ["1.0", "7", "2026-01-01"])
def test_versions_that_yaml_takes_for_something_else(version):
    """An unquoted number or date is refused, and the remedy says to quote it."""
    error = refusal(GOOD.replace('version: "7"', f"version: {version}"))
    assert error.field == "policy.yaml:2: version"
    assert "quote" in error.remedy


@pytest.mark.parametrize("name", ["float", "TargetFpr"])
def test_names_of_types_are_ordinary_names(name):
    """A probe or an unknown key may be called as a type is: the error still names it."""
    if name == "float":
        error = refusal(GOOD.replace("jailbreak: {above: 3}", "float: {above: 3, bellow: 4}"))
        assert error.field == "policy.yaml:21: rules.1.when.float.bellow"
    else:
        error = refusal(GOOD + "TargetFpr: 1\n")
        assert error.field == "policy.yaml:35: TargetFpr"


def test_a_union_reports_the_branch_that_was_meant():
    """`above: {target_fpr: 2}` is a bad rate, not "not a number"; a bad number is not "not a mapping"."""
    assert "less than 1" in refusal(GOOD.replace("{above: 3}", "{above: {target_fpr: 2}}")).problem
    error = refusal(GOOD.replace("{above: 3}", "{above: {target_fpr: 0.1, confidnce: 0.9}}"))
    assert error.field == "policy.yaml:21: rules.1.when.jailbreak.above.confidnce"
    assert "number" in refusal(GOOD.replace("{above: 3}", "{above: x}")).problem


def test_lines_inside_flow_and_nested_lists():
    """Lines are those of the file also where lists nest and mappings are written in one line."""
    head = "name: a\nversion: b\nrules:"
    text = head + "\n- name: r\n  action: flag\n  when:\n    p:\n      {\n        above: 1,\n        belo: 2\n      }\n"
    assert refusal(text).field == "policy.yaml:10: rules.0.when.p.belo"
    text = head + " [\n  {name: r, action: flag, when: {p: {above: 1}}},\n  {name: s, action: flag}\n]\n"
    assert refusal(text).field == "policy.yaml:5: rules.1.when"


@pytest.mark.parametrize(
    ("text", "key", "line"),
    [
        ("name: a\nversion: b\nname: c\n", "name", 3),
        (GOOD.replace("        below: 0", "        below: 0\n        above: 9"), "above", 25),
        (GOOD.replace("    may_shadow: true", "    may_shadow: true\n    'name': x"), "name", 35),
        ("rules: [[{a: 1}, {b: 1,\n b: 2}]]", "b", 2),
    ],
)
def test_duplicate_keys_are_refused(text, key, line):
    """YAML would keep the last and say nothing, which could drop a rule's condition."""
    error = refusal(text)
    assert f"{key!r} is given twice" in error.problem
    assert error.field == f"policy.yaml:{line}"


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("name: a\nrules: [\n", 3),
        ("name: a\n\tversion: b\n", 2),
        ("name: a\nversion: 'b\n", 3),
        ("name: a\n---\nname: b\n", 2),
        ("name: *nobody\n", 1),
        ("name: a\nversion: !!python/object/apply:os.getcwd []\n", 2),
        ("name: a\n? [1, 2]\n: x\n", 2),
        ("name: a\n? {b: c}\n: x\n", 2),
        ("name: a\n<<: 5\n", 2),
    ],
)
def test_what_is_no_yaml_or_no_plain_yaml(text, line):
    """Broken syntax, tags, impossible dates and keys that are lists: all are errors of ours, with their line."""
    assert refusal(text).field == f"policy.yaml:{line}"


def test_dates_that_never_were():
    """YAML's reader fails on an impossible date in its own way: it is an error of ours all the same."""
    assert refusal(GOOD.replace('"7"', "2026-13-45")).field.startswith("policy.yaml")


@pytest.mark.parametrize("text", ["", "# nothing\n", "---\n", "[]", "- a\n- b\n", "hello", "42", "null"])
def test_a_file_that_is_no_mapping(text):
    """An empty file, a list or a word is refused, with the way to an example."""
    assert "docs/policy.md" in refusal(text).remedy


@pytest.mark.parametrize("text", ["name: a\x00b", "name: \x07"])
def test_control_characters(text):
    """Characters that YAML forbids are a syntax error."""
    assert "not YAML" in refusal(text).problem


def test_anchors_that_contain_themselves():
    """A list inside itself ends in an error, not in endless recursion."""
    refusal("name: a\nversion: b\nrules: &r [*r]\n")


@pytest.mark.timeout(5)
def test_aliases_do_not_multiply():
    """A few lines of aliases of aliases are read in the time that a few lines take."""
    lines = ["a0: &a0 {k: v}"] + [f"a{i}: &a{i} {{x: *a{i - 1}, y: *a{i - 1}}}" for i in range(1, 40)]
    refusal("\n".join(lines))


@given(text=st.text(alphabet=st.sampled_from("ab:-[]{}&*!?|>'\"# \n\t,0.1~%@`<"), max_size=60))
def test_no_text_gets_past_the_error_tree(text):
    """Whatever the bytes, the answer is a policy or a `PolicyError`."""
    with contextlib.suppress(PolicyError):
        assert isinstance(parse_policy(text), Policy)


def test_files_that_cannot_be_read(tmp_path):
    """Missing, a folder, not text: one error that names the file."""
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00\xd8")
    for path in (tmp_path / "missing.yaml", tmp_path, tmp_path / "binary.yaml"):
        with pytest.raises(PolicyError, match=path.name):
            load_policy(path)


def test_messages_outside_ascii_are_utf8_whatever_the_locale(tmp_path):
    """A policy file is UTF-8, also where the process's locale is not."""
    (tmp_path / "policy.yaml").write_text(GOOD.replace("No.", "Dabei kann ich nicht helfen – tut mir leid."), "utf-8")
    code = "import sys; from pathlib import Path; from guard.policy_file import load_policy; "
    code += "print(ascii(load_policy(Path(sys.argv[1])).response.message))"
    environment = {**os.environ, "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    command = [sys.executable, "-c", code, tmp_path / "policy.yaml"]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=60, env=environment)
    assert done.returncode == 0, done.stderr.splitlines()[-1]
    assert r"helfen \u2013 tut" in done.stdout


def test_the_documented_example_is_a_policy():
    """Every YAML block of docs/policy.md and of the README that is a whole policy loads."""
    root = Path(__file__).parents[2]
    document = (root / "docs" / "policy.md").read_text() + (root / "README.md").read_text()
    blocks = [block.split("```")[0] for block in document.split("```yaml\n")[1:]]
    policies = [parse_policy(block) for block in blocks if block.startswith("name:")]
    assert policies
    assert any(len(policy.rules) > 1 and policy.combine and policy.callers for policy in policies)


def test_a_digest_is_compared_whole():
    """A part of it, another case, or nothing is no caller's."""
    (caller,) = parse_policy(GOOD).callers
    digest = caller.key_sha256
    assert caller.is_known_by(digest)
    for other in (digest[:-1], digest + "0", digest.upper(), "", None, 7, digest.encode(), "é"):
        assert not caller.is_known_by(other)


def test_every_key_is_documented():
    """docs/policy.md names each key of each section in its tables."""
    document = (Path(__file__).parents[2] / "docs" / "policy.md").read_text()
    schema = Policy.model_json_schema()
    keys = set(schema["properties"]).union(*(d.get("properties", {}) for d in schema["$defs"].values()))
    assert {key for key in keys if f"`{key}`" not in document} == set()


def test_a_digest_is_of_what_a_policy_says():
    """Comments, order and written-out defaults change nothing; any value does.

    A copy for an artifact is the same policy.
    """
    text = "name: a\nversion: '1'\nrules: [{name: r, action: flag, when: {harm: {above: 1}}}]\n"
    policy = parse_policy(text)
    assert re.fullmatch("[0-9a-f]{16}", policy.digest)
    same = (
        "# Said.\nversion: '1'\nname: a\nmode: enforce\nrules: [{action: flag, name: r, when: {harm: {above: 1.0}}}]\n"
    )
    assert parse_policy(same).digest == policy.digest
    for line in ("mode: shadow", "on_unscored: flag", "response: {message: No.}", "combine: {c: {harm: 2}}"):
        assert parse_policy(text + line).digest != policy.digest
    assert (
        policy.with_combinations({"combined": {"harm": 1.0}}).digest == policy.of_adapter("x").digest == policy.digest
    )
    assert pickle.loads(pickle.dumps(policy)).digest == policy.digest  # noqa: S301 - our own, of a line before
