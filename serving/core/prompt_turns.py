"""A request's turns: its prompt's token ids, read by the template that its probes were calibrated with.

It touches, of `vllm/v1/request.py`: `Request` (`prompt_token_ids`, `num_prompt_tokens`).
"""

from vllm.v1.request import Request

from probes.template import Ending, Template, Turn, whole


def prompt_turns(request: Request, template: Template | None) -> tuple[tuple[Turn, ...], Ending]:
    """Return the turns of the request's prompt, and how it ends.

    A prompt without token ids (embeddings) has the form of none that was calibrated.
    """
    token_ids = request.prompt_token_ids
    if token_ids is None:
        return (whole(request.num_prompt_tokens)._replace(is_open=True),), Ending.OPEN
    if template is None:
        return (whole(request.num_prompt_tokens),), Ending.TEMPLATE
    return template.read(token_ids)
