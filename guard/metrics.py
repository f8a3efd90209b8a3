"""Metrics, as Prometheus sees them. Names and labels are public API: `docs/metrics.md`.

Counted once a prompt, in the process that answers the client, so they add up over several API server processes
(prometheus-client's multiprocess mode). Every label value comes from an enumeration, the artifact or the policy.
"""

import math
from collections.abc import Mapping
from typing import Literal, get_args

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from guard.decide import BoundPolicy
from guard.journal import Decision
from guard.policy_set import PolicySet
from guard.rollout import Rollout
from guard.verdict import Action, Mode, Unscored, Verdict

# Scores are logits; a decision takes microseconds, where the usual buckets start at milliseconds.
SCORE_BUCKETS = (-20, -15, -10, -7.5, -5, -4, -3, -2, -1, -0.5, 0, 0.5, 1, 2, 3, 4, 5, 7.5, 10, 15, 20)
TOKEN_BUCKETS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192)
SECONDS_BUCKETS = (1e-6, 2.5e-6, 5e-6, 1e-5, 2.5e-5, 5e-5, 1e-4, 2.5e-4, 5e-4, 1e-3, 5e-3, 2.5e-2)

PUBLIC: dict[str, bool] = {
    "foreguard_requests": True,
    "foreguard_unscored": True,
    "foreguard_shadow_decisions": False,
    "foreguard_errors": True,
    "foreguard_decision_seconds": True,
    "foreguard_answers": True,
    "foreguard_answers_unscored": True,
    "foreguard_ready": True,
    "foreguard_last_scored_timestamp_seconds": True,
    "foreguard_policy_info": True,
    "foreguard_policy_reloads": True,
    "foreguard_policy_last_reload_successful": True,
    "foreguard_policy_last_reload_success_timestamp_seconds": True,
    "foreguard_store_dropped": True,
    "foreguard_store_written": True,
    "foreguard_store_queued": True,
    "foreguard_store_problem": True,
    # Before and after a request of one's own, each of these tells what a probe made of it, or how far it is from a
    # block.
    "foreguard_score": False,
    "foreguard_threshold": False,
    "foreguard_answer_tokens": False,
    "foreguard_drift_alarm": False,
    "foreguard_drift_evidence": False,
    "foreguard_drift_psi": False,
    "foreguard_drift_rate": False,
    "foreguard_drift_out_of_distribution": False,
    "foreguard_drift_out_of_distribution_alarm": False,
}
"""Whether whoever may ask for metrics may read this one: what answers tell anyway, and what no request moves."""
MODEL_ITSELF = ""
"""The label `adapter` of a prompt to the model without one: Prometheus takes an empty label for none."""

ReloadResult = Literal["applied", "refused"]
UNRECORDED = "unrecorded"
"""Type of error: a prompt that was treated as it must be, and could not be counted."""


def is_public(name: str) -> bool:
    """Return whether a metric, of the guard or of vLLM, tells neither scores nor thresholds.

    One that is not listed does.
    """
    return PUBLIC.get(name, not name.startswith("foreguard_"))


class GuardMetrics:
    """The guard's metrics in one registry."""

    def __init__(self, registry: CollectorRegistry, rollout: Rollout) -> None:
        """`rollout` has the thresholds that are published, and the probes whose scores are."""
        self.requests = Counter(
            "foreguard_requests",
            "Prompts decided, by what was decided and the mode it was decided in.",
            ["action", "mode"],
            registry=registry,
        )
        self.beside = Counter(
            "foreguard_shadow_decisions",
            "Prompts judged by the shadow variant, too, by what was decided and what that would have decided.",
            ["action", "would"],
            registry=registry,
        )
        self.unscored = Counter(
            "foreguard_unscored", "Prompts that have no score, by reason.", ["reason"], registry=registry
        )
        self.score = Histogram(
            "foreguard_score",
            "Raw score of each prompt.",
            ["probe", "adapter"],
            buckets=SCORE_BUCKETS,
            registry=registry,
        )
        self.decision_seconds = Histogram(
            "foreguard_decision_seconds", "Time from scores to verdict.", buckets=SECONDS_BUCKETS, registry=registry
        )
        self.errors = Counter("foreguard_errors", "Faults inside the guard, by type.", ["type"], registry=registry)
        self.answers = Counter(
            "foreguard_answers",
            "Decisions on answers that crossed a threshold while they were generated, by what was decided and the "
            "mode.",
            ["action", "mode"],
            registry=registry,
        )
        self.unscored_answers = Counter(
            "foreguard_answers_unscored",
            "Answers that could not be read to their end, by reason.",
            ["reason"],
            registry=registry,
        )
        self.answer_tokens = Histogram(
            "foreguard_answer_tokens",
            "Tokens that an answer had when it crossed a threshold.",
            buckets=TOKEN_BUCKETS,
            registry=registry,
        )
        self.ready = Gauge(
            "foreguard_ready",
            "Whether a prompt was scored lately: 0 while the engine hangs.",
            registry=registry,
            multiprocess_mode="livemin",
        )
        self.last_scored = Gauge(
            "foreguard_last_scored_timestamp_seconds",
            "Unix time at which a prompt, a client's or the canary, was known to be scored.",
            registry=registry,
            multiprocess_mode="livemin",
        )
        self.threshold = Gauge(
            "foreguard_threshold",
            "Score above which a rule's condition holds; not a number for a rule that is no longer in force.",
            ["rule", "probe", "adapter", "variant"],
            registry=registry,
            multiprocess_mode="mostrecent",
        )
        self.policy_info = Gauge(
            "foreguard_policy_info",
            "1 for the policy in force, 0 for one that was.",
            ["name", "version", "mode", "variant"],
            registry=registry,
            multiprocess_mode="mostrecent",
        )
        self.reloads = Counter(
            "foreguard_policy_reloads",
            "Times that the policy file changed, by what became of it.",
            ["result"],
            registry=registry,
        )
        self.reload_succeeded = Gauge(
            "foreguard_policy_last_reload_successful",
            "Whether what the policy file says is in force: 0 after a change that was refused.",
            registry=registry,
            multiprocess_mode="livemin",
        )
        self.reloaded_at = Gauge(
            "foreguard_policy_last_reload_success_timestamp_seconds",
            "Unix time at which the policy in force was put in force.",
            registry=registry,
            multiprocess_mode="livemin",
        )
        self._published: dict[Gauge, set[tuple[str, ...]]] = {self.threshold: set(), self.policy_info: set()}
        self._scores: dict[tuple[str, str], Histogram] = {}
        self._start_at_zero()
        self.publish(rollout)

    def record(self, decision: Decision) -> None:
        """Count a decision, as a sink of the journal does."""
        if decision.judged == "answer":
            self.observe_answer(decision.verdict, decision.num_tokens)
        else:
            self.observe(decision.verdict, decision.model or MODEL_ITSELF)

    def give_up(self) -> None:
        """Count a prompt whose client left, or whose request failed, before its verdict came: no fault of the guard."""
        self.unscored.labels(Unscored.ABORTED.value).inc()

    def observe(self, verdict: Verdict, adapter: str = MODEL_ITSELF) -> None:
        """Count one verdict on a prompt to the model itself, or to one of its adapters."""
        self.requests.labels(verdict.decision.value, verdict.mode.value).inc()
        if verdict.unscored:
            self.unscored.labels(verdict.unscored.value).inc()
            self.errors.labels(verdict.unscored.value).inc()
        if verdict.beside:
            self.beside.labels(verdict.decision.value, verdict.beside.decision.value).inc()
        for probe, score in verdict.scores.items():
            self._scores[adapter, probe].observe(score)
        self.decision_seconds.observe(verdict.decision_seconds)

    def observe_answer(self, verdict: Verdict, num_tokens: int) -> None:
        """Count one decision on an answer of so many tokens."""
        self.answers.labels(verdict.decision.value, verdict.mode.value).inc()
        if verdict.unscored:
            self.unscored_answers.labels(verdict.unscored.value).inc()
            self.errors.labels(verdict.unscored.value).inc()
        else:
            self.answer_tokens.observe(num_tokens)

    def observe_readiness(self, ready: bool, last_scored: float) -> None:
        """Publish whether a prompt was scored lately, and the Unix time of the last one."""
        self.ready.set(ready)
        self.last_scored.set(last_scored)

    def observe_unrecorded(self) -> None:
        """Count a prompt that could not be counted."""
        self.errors.labels(UNRECORDED).inc()

    def observe_reload(self, result: ReloadResult) -> None:
        """Count a change of the policy file: it is in force, or it was refused and what was in force still is."""
        self.reloads.labels(result).inc()
        self.reload_succeeded.set(result == "applied")

    def publish(self, rollout: Rollout) -> None:
        """Publish the thresholds of policies that come into force, and name them."""
        policies = [each.policy for each in rollout.sets]
        bound = [(adapter, own) for each in rollout.sets for adapter, own in _by_adapter(each)]
        thresholds: dict[tuple[str, ...], float] = {
            (rule, probe, adapter, own.policy.variant): value
            for adapter, own in bound
            for (rule, probe), value in own.thresholds.items()
        }
        named: dict[tuple[str, ...], float] = {
            (each.name, each.version, each.mode.value, each.variant): 1.0 for each in policies
        }
        self._exchange(self.threshold, thresholds, math.nan)
        self._exchange(self.policy_info, named, 0.0)
        self.reload_succeeded.set(1)
        self.reloaded_at.set_to_current_time()
        # Looked up once: there may be many probes, and this is done for every prompt.
        self._scores |= {
            (adapter, probe): self.score.labels(probe, adapter)
            for adapter, own in bound
            for probe in (*own.probes, *own.policy.combine)
        }

    def _exchange(self, gauge: Gauge, values: Mapping[tuple[str, ...], float], gone: float) -> None:
        """Set a gauge to `values`, and to `gone` where it had others: a series cannot be taken out of the files that
        several processes share.
        """
        known = self._published[gauge]
        for labels in known - values.keys():
            gauge.labels(*labels).set(gone)
        for labels, value in values.items():
            gauge.labels(*labels).set(value)
        known.update(values)

    def _start_at_zero(self) -> None:
        # A series that appears only with its first event hides that event from rate().
        for action in Action:
            for would in Action:
                self.beside.labels(action.value, would.value)
            for mode in Mode:
                self.requests.labels(action.value, mode.value)
                self.answers.labels(action.value, mode.value)
        for reason in Unscored:
            self.unscored.labels(reason.value)
            if reason is not Unscored.ABORTED:
                self.unscored_answers.labels(reason.value)
                self.errors.labels(reason.value)
        self.errors.labels(UNRECORDED)
        for result in get_args(ReloadResult):
            self.reloads.labels(result)


def _by_adapter(policies: PolicySet) -> list[tuple[str, BoundPolicy]]:
    return [(MODEL_ITSELF, policies.model), *policies.adapters.items()]
