"""Hidden log-probabilities: what a stopped prompt may not show of the model.

The log-probabilities of a prompt's tokens come with their most likely alternatives. Those of the last position are what
the model would have said. A prompt that is blocked or steered shows none of them, in lists of the lengths that clients
expect. Nor does it show which experts its tokens went to, which a server may return (`--enable-return-routed-experts`).

It touches, of `vllm/outputs.py`: `RequestOutput.prompt_logprobs`, from vLLM 0.31 `prompt_token_id_logprobs`, and
`CompletionOutput.routed_experts`.
"""

import numpy as np
from vllm.logprobs import Logprob
from vllm.outputs import RequestOutput
from vllm.sampling_params import SamplingParams

FLOOR = -9999.0
"""What vLLM writes for minus infinity, which JSON does not have."""


def hide_prompt(output: RequestOutput, params: SamplingParams) -> None:
    """Take every number of the model's about the prompt out of an output.

    An echo has them as numbers, which clients add up: each is then `FLOOR`. Otherwise each is null.
    """
    tokens = output.prompt_token_ids or []
    if output.prompt_logprobs:
        echoed = params.logprobs is not None
        output.prompt_logprobs = [{token: Logprob(FLOOR)} if echoed else None for token in tokens]
    fixed = getattr(output, "prompt_token_id_logprobs", None)  # from vLLM 0.31
    if fixed is not None:
        output.prompt_token_id_logprobs = np.full_like(fixed, FLOOR)
    for completion in output.outputs:
        completion.routed_experts = None
