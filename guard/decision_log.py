"""The decision log: one line of JSON for each verdict, by which an operator finds what an event id stands for.

The lines go to the logger `foreguard.decisions`. They hold nothing of the prompt and nothing of the answer.
"""

import json
import logging
import sys

from guard.journal import Decision
from guard.verdict import Action, Beside

LOGGER = "foreguard.decisions"


class DecisionLog:
    """The sink that writes down the verdicts that the policy wants written down."""

    def __init__(self, model: str) -> None:
        """`model` is what the server calls the model itself, where no adapter answers."""
        self._model = model
        self._logger = _logger()

    def record(self, decision: Decision) -> None:
        """Write one line about a verdict on a prompt, or on its answer."""
        verdict, wanted = decision.verdict, decision.policy.decision_log
        notable = verdict.decision is not Action.ALLOW or verdict.unscored is not None
        if wanted.which == "none" or (wanted.which == "notable" and not notable):
            return
        line = {
            "event_id": verdict.event_id,
            "time": decision.at.isoformat(timespec="milliseconds"),
            "request_id": decision.request_id,
            "route": decision.route,
            "model": decision.model or self._model,
            "judged": decision.judged,
            "decision": verdict.decision.value,
            "action": verdict.action.value,
            "mode": verdict.mode.value,
            "rule": verdict.rule,
            "category": verdict.category,
            "unscored": verdict.unscored.value if verdict.unscored else None,
            "constraint": verdict.constraint,
            "policy": verdict.policy,
            "caller": decision.caller,
            "tenant": decision.tenant,
            "prompt_tokens": decision.prompt_tokens,
            "seconds": round(decision.seconds, 4),
            **({"shadow": _beside(verdict.beside)} if verdict.beside else {}),
        }
        self._logger.info(json.dumps(line | ({"scores": verdict.scores} if wanted.scores else {})))

    def give_up(self) -> None:
        """Write nothing: there is no decision."""


def _beside(beside: Beside) -> dict[str, str | None]:
    return {
        "policy": beside.policy,
        "decision": beside.decision.value,
        "rule": beside.rule,
        "category": beside.category,
    }


def _logger() -> logging.Logger:
    """Return the log's logger: as the operator's logging configuration has it, or else on standard output."""
    logger = logging.getLogger(LOGGER)
    if not logger.handlers:
        handler = logging.StreamHandler(sys.stdout)
        handler.setFormatter(logging.Formatter("%(message)s"))
        logger.addHandler(handler)
        logger.setLevel(logging.INFO)
        logger.propagate = False
    return logger
