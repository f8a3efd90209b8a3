"""Whether a policy fits the server that is to guard by it. Asked when the server starts, and of each later policy.

It touches, of vLLM's configuration: `speculative_config`, `scheduler_config` (`async_scheduling`).
"""

from collections.abc import Collection, Sequence
from typing import Any

from guard.policy import Policy
from guard.verdict import Action
from probes.artifact import Artifact
from probes.errors import PolicyError, ServingError


def require_templates(policy: Policy, artifacts: Sequence[Artifact]) -> None:
    """Raise `PolicyError` where the policy asks of the chat template what an artifact does not know.

    Without the template a prompt's form may change its verdict. Without the tokenizer's special tokens none can be
    refused.
    """
    templates = [artifact.manifest.template for artifact in artifacts]
    if policy.off_template is not Action.ALLOW and not all(templates):
        raise PolicyError(
            "the artifact does not know the model's chat template, so that a prompt's form may change its verdict",
            field="off_template",
            remedy="calibrate again, or set off_template to allow: then each prompt is judged as one turn",
        )
    if policy.special_tokens == "refuse" and not all(template and template.spellings for template in templates):
        raise PolicyError(
            "the artifact does not know the tokenizer's special tokens, so that none can be refused",
            field="special_tokens",
            remedy="calibrate again, or set special_tokens to judge",
        )


def require_guarded_adapters(policy: Policy, served: Collection[str], guarded: Collection[str]) -> None:
    """Raise `PolicyError` where the name of a `served` adapter in a request would lead around the guard, or the policy
    pins one that is not `guarded`: that has no artifact.
    """
    if (bare := sorted(set(served) - set(guarded))) and policy.on_unscored is not Action.BLOCK:
        raise PolicyError(
            f"lets pass what has no score, and {', '.join(bare)} has no artifact: whoever names it is not guarded",
            field="on_unscored",
            remedy="give each adapter its artifact (--adapter NAME=FOLDER), or set on_unscored to block",
        )
    if unknown := sorted(set(policy.adapters) - set(guarded)):
        raise PolicyError(
            f"no artifact was given for {', '.join(unknown)}",
            field="adapters",
            remedy="name it with --adapter NAME=FOLDER, or take it out of the policy",
        )


def require_readable_answers(policy: Policy, vllm_config: Any) -> None:
    """Raise `ServingError` where the policy has rules on answers, and answers cannot be read as vLLM is set up."""
    # There a step is laid out before it is known which drafts of the last one were accepted, so that the host does not
    # know which tokens its rows are.
    if policy.answer_rules and vllm_config.speculative_config and vllm_config.scheduler_config.async_scheduling:
        raise ServingError(
            "answers cannot be watched under asynchronous scheduling while tokens are drafted",
            field="answer_rules",
            remedy="add `-- --no-async-scheduling`, or remove --speculative-config or the policy's answer_rules",
        )
