"""Who appears in the scenarios: prompts of every kind, and what the guard must say of each."""

from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import pytest

from guard.decide import BoundPolicy
from probes.artifact import Artifact
from serving.config import GuardConfig
from tests.serving.lab import Reference, of
from tests.serving.planted import naive_scores
from tests.serving.world import BENIGN, LONG, clearly_harmful, policy_text, steered_prompt

TOLERANCE = 0.15
"""Of scores of size 10, in bfloat16: what roundings in another order move them by (docs/decisions.md)."""


def near(scores: dict[str, float]) -> Any:
    """Return what served scores are compared with: these, within `TOLERANCE`, or the same share of larger ones."""
    return pytest.approx(scores, abs=TOLERANCE, rel=TOLERANCE / 10)


@dataclass
class Cast:
    """Prompts by name, as token ids, and their scores by a plain forward pass of each alone."""

    reference: Reference
    artifact: Artifact
    guard: GuardConfig
    scores: dict[tuple[int, ...], dict[str, float]] = field(default_factory=dict)

    @classmethod
    def of(cls, reference: Reference, artifact: Artifact, artifact_folder: Path, folder: Path) -> "Cast":
        policy = folder / "policy.yaml"
        policy.write_text(policy_text(reference, artifact, constrained="steer"))
        digest = artifact.manifest.digest
        return cls(reference, artifact, GuardConfig(artifact=artifact_folder, artifact_digest=digest, policy=policy))

    @cached_property
    def prompts(self) -> dict[str, list[int]]:
        """Eight benign prompts, four long ones, several turns, four to be blocked and one to be steered."""
        named = {f"benign{i}": messages for i, messages in enumerate(BENIGN[:8])}
        named |= {f"long{i}": messages for i, messages in enumerate(LONG[:4])}
        named |= {f"turns{i}": messages for i, messages in enumerate(of("test", "multi_turn_harmful", 2))}
        named |= {f"harmful{i}": m for i, m in enumerate(clearly_harmful(self.reference, self.artifact, 4))}
        named["steered"] = steered_prompt(self.reference, self.artifact)
        return {name: self.reference.token_ids(messages) for name, messages in named.items()}

    @cached_property
    def policy(self) -> BoundPolicy:
        return self.guard.bind_policy(self.artifact)

    def expected(self, prompt: list[int]) -> dict[str, float]:
        """Return what the prompt's probes read in a plain pass of it alone, computed without the project's
        arithmetic.
        """
        key = tuple(prompt)
        if key not in self.scores:
            self.scores[key] = naive_scores(self.artifact, self.reference.read(prompt))
        return self.scores[key]

    def action(self, prompt: list[int]) -> str:
        """Return what the policy does about those scores."""
        return self.policy.judge(list(self.expected(prompt).values())).action.value
