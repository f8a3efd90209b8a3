"""The gate in vLLM's real scheduler, whose workers are played: several steps under way, prompts in chunks."""

import pytest
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.outputs import KVConnectorOutput, ModelRunnerOutput
from vllm.v1.request import RequestStatus

from guard.binding import bind_to
from guard.policy_file import parse_policy
from serving import wire
from serving.core.gate import GuardedScheduler
from tests.serving.faults.plugins import patch_scheduler
from tests.serving.stepped import Stepped

SCORES = {"fine": 0.0, "doubtful": 1.5, "harmful": 5.0, "worse": 9.0}
ACTIONS = {"fine": "allow", "doubtful": "flag", "harmful": "block", "worse": "block"}


@pytest.mark.parametrize(
    ("under_way", "options"),
    [
        (1, {}),
        (2, {"stages": 2}),
        (4, {"stages": 4}),
        (2, {"asynchronous": True}),
        (3, {"stages": 2, "asynchronous": True}),
    ],
)
@pytest.mark.parametrize("chunk", [16, 256])
def test_every_prompt_is_decided_once_and_before_its_first_token(config, under_way, options, chunk):
    """One step at a time, in a pipeline of several stages, or a step ahead: blocked ones have no token, others all."""
    stepped = Stepped(config(), under_way=under_way, max_num_batched_tokens=chunk, max_num_seqs=8, **options)
    stepped.scores = SCORES
    for number, name in enumerate(SCORES):
        stepped.add(name, range(100 * number, 100 * number + 40), max_tokens=5)
    for _ in range(60):
        stepped.step()
    assert not stepped.scheduler.has_unfinished_requests()
    assert {name: verdict["action"] for name, verdict in stepped.verdicts.items()} == ACTIONS
    assert {name: verdict["scores"]["harm"] for name, verdict in stepped.verdicts.items()} == SCORES
    assert {name: len(tokens) for name, tokens in stepped.tokens.items()} == {
        name: 0 if action == "block" else 5 for name, action in ACTIONS.items()
    }
    assert stepped.asked == dict.fromkeys(SCORES, 1)


def test_a_prompt_that_starts_over_is_asked_for_again(config):
    """What is preempted in mid-prefill is decided by the step that finishes it, however many began it."""
    stepped = Stepped(config(), max_num_batched_tokens=16, max_num_seqs=4)
    stepped.scores = SCORES
    stepped.add("harmful", range(40))
    stepped.add("fine", range(50, 90), max_tokens=5)
    for number in range(30):
        stepped.step()
        if number in (1, 3, 7):
            stepped.scheduler.reset_prefix_cache(reset_running_requests=True)
    assert stepped.tokens == {"harmful": [], "fine": [1] * 5}
    assert stepped.verdicts["harmful"]["action"] == "block"


def test_a_request_that_passed_costs_a_look(config, monkeypatch):
    """Once its verdict is told, nothing is done about it at any later token, whoever is blocked beside it."""
    looked_at: list[str] = []
    look = GuardedScheduler._stops

    def noted(gate, case):
        looked_at.append(case.name)
        return look(gate, case)

    monkeypatch.setattr(GuardedScheduler, "_stops", noted)
    stepped = Stepped(config(), max_num_batched_tokens=256, max_num_seqs=8)
    stepped.scores = SCORES
    for number, name in enumerate(SCORES):
        stepped.add(name, range(100 * number, 100 * number + 40), max_tokens=9)
        stepped.step()
    assert looked_at == list(SCORES)
    stepped.step()
    assert looked_at == list(SCORES)
    assert {name: verdict["action"] for name, verdict in stepped.verdicts.items()} == ACTIONS
    assert {name: len(tokens) for name, tokens in stepped.tokens.items()} == {
        "fine": 5,
        "doubtful": 4,
        "harmful": 0,
        "worse": 0,
    }


@pytest.mark.parametrize(("patched_after", "told"), [((), []), (("fine",), ["fine"])])
def test_what_is_not_done_is_not_told(config, monkeypatch, patched_after, told):
    """Where a plugin of somebody else's leads past the gate, no verdict is told that the gate could not act on.

    The API server then finds none: from the start on that ends it, and later the prompt is unscored.
    """
    stepped = Stepped(config(), max_num_batched_tokens=256, max_num_seqs=8)
    stepped.scores = SCORES
    for number, name in enumerate(patched_after):
        stepped.add(name, range(100 * number, 100 * number + 40), max_tokens=5)
        stepped.step()
    monkeypatch.setattr(Scheduler, "update_from_output", Scheduler.update_from_output)
    patch_scheduler()
    for number, name in enumerate(("doubtful", "harmful"), 1):
        stepped.add(name, range(100 * number, 100 * number + 40), max_tokens=5)
        stepped.step()
    assert list(stepped.verdicts) == told
    assert len(stepped.tokens["harmful"]) == 1


@pytest.mark.parametrize("name", ["fine", "harmful"])
def test_what_its_client_left_is_not_decided(config, name):
    """A prompt whose scores arrive after its request is gone has no verdict, and leaves nothing behind."""
    stepped = Stepped(config(), under_way=2, asynchronous=True, max_num_batched_tokens=256, max_num_seqs=8)
    stepped.scores = SCORES
    stepped.add(name, range(40))
    stepped.step()
    stepped.scheduler.finish_requests(name, RequestStatus.FINISHED_ABORTED)
    stepped.step()
    assert stepped.asked == {name: 1}
    assert stepped.verdicts == {}
    gate = stepped.scheduler
    assert not any((len(gate._cases), gate._step.to_tell, gate.requests))


def test_a_prompt_whose_blocks_could_not_be_loaded_is_not_decided_by_them(config):
    """Its scores come with those of a KV connector's failed load: what counts are those of the step that computes
    it.
    """
    stepped = Stepped(config(), max_num_batched_tokens=256, max_num_seqs=8)
    gate = stepped.scheduler
    stepped.add("fine", range(40))
    step = gate.schedule()
    failed = ModelRunnerOutput(["fine"], {"fine": 0}, [[1]])
    failed.kv_connector_output = KVConnectorOutput(invalid_block_ids=set(stepped.blocks("fine")[:1]))
    setattr(failed, wire.SCORES, {"fine": [[9.0]]})
    gate._handle_invalid_blocks = lambda blocks, scheduled: {"fine"}
    gate.update_from_output(step, failed)
    assert gate._cases.get("fine").verdict is None
    assert not gate._step.to_tell


def _named(bound, text=None, **about):
    """What an API process says with a request that comes in under a policy, or with the canary that brings one."""
    return {wire.EXTRA: {wire.POLICY: bound.policy.digest, **about} | ({wire.POLICY_TEXT: text} if text else {})}


def test_a_request_is_decided_by_the_policy_that_it_names(config):
    """Which a canary brought; one that is under way, or names an earlier one, is decided by its own.

    One that names none, or one that nobody brought, goes by the last that was brought.
    """
    made = config()
    first = made.bind_policies(made.load_artifacts()).base.model
    text = made.policy.read_text().replace('version: "1"', 'version: "2"').replace("action: block", "action: flag")
    second = bind_to(made.load_artifact(), parse_policy(text))
    assert first.policy.digest != second.policy.digest
    stepped = Stepped(made, under_way=2, asynchronous=True, max_num_batched_tokens=256, max_num_seqs=8)
    stepped.scores = dict.fromkeys(("early", "canary", "late", "named", "plain", "unknown"), 9.0)
    expected = {
        "early": "block",
        "canary": "flag",
        "late": "flag",
        "named": "block",
        "plain": "flag",
        "unknown": "flag",
    }
    about = {
        "early": _named(first),
        "canary": _named(second, text),
        "late": _named(second),
        "named": _named(first),
        "plain": None,
        "unknown": {wire.EXTRA: {wire.POLICY: "0" * 16}},
    }
    for number, (name, extra) in enumerate(about.items()):
        stepped.add(name, range(100 * number, 100 * number + 40), max_tokens=2, extra_args=extra)
    for _ in range(12):
        stepped.step()
    assert {name: verdict["decision"] for name, verdict in stepped.verdicts.items()} == expected
    digests = {name: verdict["policy_digest"] for name, verdict in stepped.verdicts.items()}
    assert digests == {name: (first if expected[name] == "block" else second).policy.digest for name in expected}


@pytest.mark.parametrize("text", ["name: [", "no mapping"])
def test_a_policy_that_is_none_is_not_taken_in(config, text):
    """Not YAML, or no mapping: the gate goes on by its own, and the canary says so."""
    made = config()
    first = made.bind_policies(made.load_artifacts()).base.model
    stepped = Stepped(made, max_num_batched_tokens=256, max_num_seqs=8)
    stepped.scores = {"canary": 9.0}
    stepped.add("canary", range(40), extra_args={wire.EXTRA: {wire.POLICY: "0" * 16, wire.POLICY_TEXT: text}})
    stepped.step()
    assert stepped.verdicts["canary"]["policy_digest"] == first.policy.digest


def test_only_so_many_policies_are_kept(config):
    """The last ones; the one in force is among them."""
    made = config()
    stepped = Stepped(made, max_num_batched_tokens=256, max_num_seqs=8)
    digests = []
    for number in range(300):
        text = made.policy.read_text().replace('version: "1"', f'version: "{number + 2}"')
        digests.append(parse_policy(text).digest)
        about = {wire.EXTRA: {wire.POLICY: digests[-1], wire.POLICY_TEXT: text}}
        stepped.add(f"canary{number}", range(40), max_tokens=1, extra_args=about)
        stepped.step()
    assert list(stepped.scheduler._policies._known) == digests[-256:]


def test_a_session_keeps_its_policy_to_its_end(config):
    """However many policies come into force between two of its inputs: also when it is none of those that are kept."""
    made = config()
    first = made.bind_policies(made.load_artifacts()).base.model
    stepped = Stepped(made, max_num_batched_tokens=256, max_num_seqs=8)
    found = []
    for turn, score in enumerate((0.0, 9.0)):
        stepped.scores = {"session": score}
        stepped.add("session", range(40 * turn, 40 * turn + 40), max_tokens=3, resumable=True, extra_args=_named(first))
        for _ in range(8):
            stepped.step()
        found.append((stepped.verdicts["session"]["decision"], stepped.verdicts["session"]["policy_digest"]))
        for number in range(300):
            text = made.policy.read_text().replace('version: "1"', f'version: "{number + 2}"')
            about = {wire.EXTRA: {wire.POLICY: parse_policy(text).digest, wire.POLICY_TEXT: text}}
            stepped.add(f"canary{turn}-{number}", range(40), max_tokens=1, extra_args=about)
            stepped.step()
    assert found == [("allow", first.policy.digest), ("block", first.policy.digest)]
