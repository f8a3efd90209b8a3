"""The fault matrix: what a client sees, and what is counted, when a part of the guard fails on its request.

One row a fault, one column a policy's `on_unscored`. Every cell is asked with a harmless and with a harmful prompt,
streamed and whole: where they are to differ, the cell names both.
"""

from dataclasses import dataclass, field, replace

from guard.verdict import Unscored

POLICIES = ("block", "flag", "allow")


@dataclass(frozen=True)
class Outcome:
    """What becomes of one request."""

    status: int
    """Of an answer that is not streamed; a stream's is 200 where it had begun."""
    finish: tuple[str, ...]
    """The finish reasons that it may end with; `error` for an error in place of one."""
    has_tokens: bool
    decision: str | None
    """`x-guardrail-decision`; None where the header is missing."""
    counted: dict[str, str] = field(default_factory=dict)
    """Series that grow by one, as `name: label`."""


ENDED = ("stop", "length")
NORMAL = {
    "harmless": Outcome(200, ENDED, True, "allow", {"foreguard_requests_total": "allow"}),
    "harmful": Outcome(200, ("content_filter",), False, "block", {"foreguard_requests_total": "block"}),
}


def unscored(reason: Unscored, policy: str) -> dict[str, Outcome]:
    """A prompt without a score, as each policy has it: harmful or not, nobody knows."""
    counted = dict.fromkeys(("foreguard_unscored_total", "foreguard_errors_total"), reason.value)
    counted["foreguard_requests_total"] = policy
    if policy == "block":
        return dict.fromkeys(NORMAL, Outcome(200, ("content_filter",), False, "block", counted))
    return dict.fromkeys(NORMAL, Outcome(200, ENDED, True, "unscored", counted))


def unread(policy: str) -> dict[str, Outcome]:
    """A verdict that nobody knows: what the gate let pass is unscored, and what it blocked is blocked all the same."""
    passed = unscored(Unscored.NO_VERDICT, policy)["harmless"]
    return {"harmless": passed, "harmful": replace(passed, finish=("content_filter",), has_tokens=False)}


def failed(counted: dict[str, str]) -> dict[str, Outcome]:
    """No answer, and a clear error."""
    return dict.fromkeys(NORMAL, Outcome(500, ("error",), False, None, counted))


def failed_to_answer() -> dict[str, Outcome]:
    """No answer either, but what was decided is counted."""
    return {kind: Outcome(500, ("error",), False, None, each.counted) for kind, each in NORMAL.items()}


def bypassing(policy: str) -> dict[str, Outcome]:
    """The gate alone: nothing counts, and a blocked request ends with no tokens and no form."""
    # A stream that ends without a token ends without a finish reason in vLLM, too.
    ended = Outcome(200, ("stop", "none"), False, None)
    passed = Outcome(200, ENDED, True, None)
    return {"harmless": ended if policy == "block" else passed, "harmful": ended}


def unrecorded() -> dict[str, Outcome]:
    """What would have become of it, counted as not counted."""
    return {
        kind: Outcome(
            each.status, each.finish, each.has_tokens, each.decision, {"foreguard_errors_total": "unrecorded"}
        )
        for kind, each in NORMAL.items()
    }


def matrix(policy: str) -> dict[str, dict[str, Outcome]]:
    """Return one column: for each fault what becomes of a harmless and of a harmful prompt."""
    reasons = {
        "sensor": Unscored.SENSOR_ERROR,  # keeping the scores raises
        "adapter": Unscored.SENSOR_ERROR,  # the runner adapter raises
        "unlaid": Unscored.SENSOR_ERROR,  # the runner adapter never says how the batch lies
        "reduction": Unscored.SENSOR_ERROR,  # reducing the scores raises
        "silent": Unscored.TAP_SILENT,  # a graph without taps runs
        "nan": Unscored.NOT_FINITE,
        "infinite": Unscored.NOT_FINITE,
        "lost": Unscored.MISSING,  # the scores never arrive
        "late": Unscored.MISSING,  # the scores arrive with the next step's output
        "gibberish": Unscored.POLICY_ERROR,  # what arrives is neither scores nor a reason
        "policy": Unscored.POLICY_ERROR,  # the gate's decision raises
        "ungated": Unscored.NO_VERDICT,  # the gate lets the request through undecided
    }
    return {
        **{fault: unscored(reason, policy) for fault, reason in reasons.items()},
        "bypass": bypassing(policy),  # the request goes past the verdict reader
        "verdict_reader": unread(policy),  # reading the verdict raises
        "responder": failed_to_answer(),  # giving the answer its form raises
        "middleware": failed({}),  # it raises before anything is asked
        "metrics": unrecorded(),  # counting raises
    }


FAULTS = tuple(matrix("block"))
DEATHS = ("engine killed", "worker killed", "tap", "gate")
"""Faults that end the engine, in the middle of an answer: a process is killed, a tap raises inside the forward pass,
the gate raises. Whatever the policy: the stream ends with an error, the server answers nothing more and ends."""
