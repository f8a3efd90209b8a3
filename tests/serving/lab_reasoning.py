"""A reasoning parser for the lab model, which knows no marks of thought: `--reasoning-parser-plugin` of this file.

All up to the answer's first colon counts as thought. vLLM's own parser does the work.
"""

from vllm.reasoning import ReasoningParserManager
from vllm.reasoning.deepseek_r1_reasoning_parser import DeepSeekR1ReasoningParser


@ReasoningParserManager.register_module("lab")
class LabReasoningParser(DeepSeekR1ReasoningParser):
    """With marks that are tokens of the lab's."""

    start_token = "<|system|>"  # noqa: S105 - a mark, no secret
    end_token = ":"  # noqa: S105
