"""Where an answer ends among the tokens that one step sampled for it: several, where drafts were accepted.

It is known before vLLM takes them in, by the rule of its `check_stop` (`vllm/v1/core/sched/utils.py`) on end tokens,
stop tokens and length. It touches, of `Request`: `sampling_params` (`eos_token_id`, `stop_token_ids`), `max_tokens`,
`num_output_tokens`. A repetition that `repetition_detection` ends an answer at is not looked for.
"""

from collections.abc import Sequence

from vllm.v1.request import Request


def kept_of(request: Request, sampled: Sequence[int]) -> int:
    """Return how many of the `sampled` token ids are the answer's, up to and with the one that ends it."""
    params = request.sampling_params
    ends = {params.eos_token_id, *(params.stop_token_ids or ())}
    room = min(len(sampled), request.max_tokens - request.num_output_tokens)
    return next((place for place, token in enumerate(sampled[:room], 1) if token in ends), room)
