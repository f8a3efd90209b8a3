"""The journal hands each decision to every sink, and a sink that fails holds nobody up."""

from guard.journal import Decision, Journal
from guard.policy import Policy
from guard.verdict import Action, Mode, Verdict


class Keeping:
    """A sink that keeps what it gets, and may fail."""

    def __init__(self, *, fails=False):
        self.fails, self.decisions, self.given_up = fails, [], 0

    def record(self, decision):
        if self.fails:
            raise OSError("the disk is full")
        self.decisions.append(decision)

    def give_up(self):
        if self.fails:
            raise OSError("the disk is full")
        self.given_up += 1


RULE = {"name": "r", "action": "flag", "when": {"harm": {"above": 0}}}
POLICY = Policy.model_validate({"name": "p", "version": "1", "rules": [RULE]})


def decision(**about):
    verdict = Verdict(Action.FLAG, Action.FLAG, Mode.ENFORCE, {"harm": 1.0}, "p@1", "event")
    return Decision(verdict, POLICY, **about)


def test_every_sink_has_every_decision_once_and_in_order():
    """Prompts, answers, and prompts that were given up."""
    sinks = [Keeping(), Keeping()]
    journal, made = Journal(*sinks), [decision(request_id="a"), decision(judged="answer", num_tokens=3)]
    for each in made:
        journal.record(each)
    journal.give_up()
    assert [sink.decisions for sink in sinks] == [made, made]
    assert [sink.given_up for sink in sinks] == [1, 1]


def test_a_sink_that_fails_costs_its_own_copy_alone():
    """The others have the decision, and each one that was dropped is counted."""
    dropped, whole = [], Keeping()
    journal = Journal(Keeping(fails=True), whole, on_drop=lambda: dropped.append(1))
    journal.record(decision())
    journal.give_up()
    assert (len(whole.decisions), whole.given_up, len(dropped)) == (1, 1, 2)


def test_a_counter_that_fails_too_is_no_reason_to_answer_nobody():
    """What counts the drops may stand on the same full disk."""
    whole = Keeping()
    Journal(Keeping(fails=True), whole, on_drop=lambda: 1 / 0).record(decision())
    assert len(whole.decisions) == 1
