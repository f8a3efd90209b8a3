"""The command line says what is wrong, where, and what to do, and costs nothing to ask for help."""

import hashlib
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from guard import cli
from guard.cli import main
from guard.policy_file import parse_policy
from probes.artifact import BENIGN_SCORES, HARMFUL_SCORES, Artifact
from probes.errors import PolicyError
from probes.fingerprint import Fingerprint
from probes.manifest import Manifest, Probe

POLICY = """\
name: demo
version: "1"
rules:
  - name: clear-harm
    action: block
    when:
      harm: {above: {target_fpr: 0.05}}
  - name: band
    action: flag
    when:
      harm: {above: -1.5, below: 99}
"""


@pytest.fixture
def run(monkeypatch, capsys):
    """A runner of `foreguard` with arguments: (exit status, stdout, stderr)."""

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["foreguard", *map(str, arguments)])
        monkeypatch.setenv("COLUMNS", "200")
        with pytest.raises(SystemExit) as exit_:
            main()
        return (exit_.value.code or 0, *capsys.readouterr())

    return run


@pytest.fixture
def policy_file(tmp_path):
    """A maker of policy files."""

    def write(text=POLICY):
        path = tmp_path / "policy.yaml"
        path.write_text(text)
        return path

    return write


@pytest.fixture
def artifact(tmp_path) -> Path:
    """An artifact whose 200 benign prompts have the scores 0..199."""
    digests = dict.fromkeys(("config", "weights", "tokenizer", "chat_template"), "")
    fingerprint = Fingerprint(architecture="A", num_layers=1, hidden_size=2, dtype="float32", **digests)
    tensors = {
        "probe.harm.weight": torch.ones(1, 1, 2),
        BENIGN_SCORES: torch.arange(200.0)[:, None],
        HARMFUL_SCORES: torch.ones(3, 1),
    }
    probes = (Probe(name="harm", method="m", layers=(0,)),)
    Artifact(Manifest(name="a", created="", fingerprint=fingerprint, probes=probes), tensors).save(
        tmp_path / "artifact"
    )
    return tmp_path / "artifact"


def test_check_says_what_a_policy_does(run, policy_file):
    """Each rule with its action and conditions; exit status 0."""
    status, out, _ = run("check", policy_file())
    assert status == 0
    assert "demo@1: enforce, unscored prompts: block" in out
    assert "clear-harm" in out
    assert "harm above its 5.000% FPR threshold (confidence 95%)" in out
    assert "harm > -1.5 and harm < 99" in out


def test_check_names_rules_that_never_decide(run, policy_file, artifact):
    """A flag that only fires where a block does is a slip that nothing else would show."""
    swapped = POLICY.replace("above: -1.5, below: 99", "above: {target_fpr: 0.04}, below: {target_fpr: 0.015}")
    status, out, _ = run("check", policy_file(swapped), "--artifact", artifact)
    assert status == 0
    assert "harm not above its 1.500% FPR threshold" in out
    assert "note: rule band never decides: clear-harm fires wherever it would" in out


def test_check_refuses_to_block_by_what_is_only_unusual(run, policy_file, artifact):
    """The role of a probe is in the artifact, and survives its file; the rule and what else to do are on stderr."""
    loaded = Artifact.load(artifact)
    unusual = loaded.manifest.probes[0].model_copy(update={"role": "escalates"})
    replace(loaded, manifest=loaded.manifest.model_copy(update={"probes": (unusual,)})).save(artifact)
    status, _, err = run("check", policy_file(), "--artifact", artifact)
    assert status == 2
    assert "rules.clear-harm.when" in err
    assert "use action 'flag' or 'steer', or add a condition on a probe that detects harm" in err
    status, *_ = run("check", policy_file(POLICY.replace("action: block", "action: flag")), "--artifact", artifact)
    assert status == 0


def test_check_resolves_thresholds_against_an_artifact(run, policy_file, artifact):
    """Of 200 benign scores 0..199, four may exceed the 5 % threshold: it is 195."""
    status, out, _ = run("check", policy_file(), "--artifact", artifact)
    assert status == 0
    assert "= 195.0000" in out


def test_a_fault_is_named_with_line_and_remedy(run, policy_file):
    """Exit status 2, the line on stderr, nothing on stdout, no traceback."""
    status, out, err = run("check", policy_file(POLICY.replace("action: flag", "action: flagg")))
    assert status == 2
    assert out == ""
    assert "policy.yaml:9: rules.1.action" in err
    assert "remedy" in err
    assert "Traceback" not in err


def test_brackets_of_a_message_are_printed(run, policy_file):
    """A pattern such as [a-z] is part of the message, not markup; nor is a closing tag a crash."""
    status, _, err = run("check", policy_file(POLICY.replace("      harm: {above: -1.5", "      Bad: {above: -1.5")))
    assert status == 2
    assert "^[a-z][a-z0-9_]{0,62}$" in err
    status, _, err = run("check", policy_file(POLICY + '"[/red]": 1\n'))
    assert status == 2
    assert "[/red]" in err


def test_too_few_benign_prompts(run, policy_file, artifact):
    """A rate that the artifact cannot certify is refused with the number of prompts that would do."""
    status, _, err = run("check", policy_file(POLICY.replace("0.05", "0.001")), "--artifact", artifact)
    assert status == 2
    assert "at least 2995" in err
    assert "rules.clear-harm.when.harm.above.target_fpr" in err


@pytest.mark.parametrize("arguments", [["missing.yaml"], ["{policy}", "--artifact", "missing"]])
def test_missing_files(run, policy_file, arguments):
    """A wrong path is an error with a remedy, as any other."""
    status, _, err = run("check", *[argument.format(policy=policy_file()) for argument in arguments])
    assert status == 2
    assert "remedy" in err


def test_the_installed_command():
    """`foreguard check` is on the path that the environment's scripts are on, and its status is 2 for a missing
    file.
    """
    command = [Path(sys.executable).parent / "foreguard", "check", "missing.yaml"]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert "missing.yaml" in done.stderr


HELP = """
import sys
from guard.cli import main
sys.argv = ["foreguard", *sys.argv[1:]]
try:
    main()
except SystemExit as exit:
    assert not exit.code, exit.code
heavy = {"torch", "vllm", "transformers", "numpy", "scipy", "sklearn"} & set(sys.modules)
assert not heavy, heavy
"""


@pytest.mark.parametrize("arguments", [["--help"], ["check", "--help"], ["serve", "--help"]], ids=" ".join)
def test_help_is_quick(arguments):
    """Help imports neither torch nor vLLM, and names every command."""
    done = subprocess.run(
        [sys.executable, "-c", HELP, *arguments], check=False, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    if arguments == ["--help"]:
        assert "check" in done.stdout
        assert "serve" in done.stdout


@pytest.fixture
def key(capsys):
    """A maker of (what `foreguard key` prints, as text) for a name."""

    def key(name):
        cli.key(name)
        return capsys.readouterr().out

    return key


def test_a_key_is_new_and_its_entry_is_a_policy_s(key):
    """What is printed can be put under a policy as it is; it knows the bearer of the token, and of no other."""
    printed = [key("red-team") for _ in range(2)]
    tokens = [re.search(r"fgk_[\w-]{43}", each)[0] for each in printed]
    assert tokens[0] != tokens[1]
    policy = parse_policy(POLICY + printed[0])
    (caller,) = policy.callers
    assert (caller.name, caller.may_shadow, caller.sees_scores) == ("red-team", False, False)
    digests = [hashlib.sha256(token.encode()).hexdigest() for token in tokens]
    assert [caller.is_known_by(digest) for digest in digests] == [True, False]


@pytest.mark.parametrize("name", ["", "red team", "a" * 65, "a\nb", "'"])
def test_a_key_s_name_is_a_label(name):
    """As in the policy that it goes into."""
    with pytest.raises(PolicyError, match="letters") as caught:
        cli.key(name)
    assert caught.value.field == "name"


@pytest.mark.parametrize("name", ["on", "1.0", "null", "2026-01-01"])
def test_a_key_s_name_is_text_to_yaml(key, name):
    """YAML takes bare words for something else."""
    assert parse_policy(POLICY + key(name)).callers[0].name == name
