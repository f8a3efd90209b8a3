"""Beams: refused where vLLM makes them, so that it does not matter by which route or spelling they were asked for.

vLLM runs each beam's every token as a prompt of its own: the guard would judge the first, and steer no answer to its
end.

It touches, of `vllm/entrypoints/generate/beam_search/online.py`: `BeamSearchOnlineMixin.beam_search`, which it
replaces.
"""

from typing import Any, Never

from vllm.entrypoints.generate.beam_search.online import BeamSearchOnlineMixin

from serving.api.request_options import NO_BEAMS, UnguardedRequest


def refuse_beams() -> None:
    """Make every beam search in this process an error of its client's, which vLLM answers with status 400."""
    BeamSearchOnlineMixin.beam_search = _refused


def _refused(*_: Any, **__: Any) -> Never:
    raise UnguardedRequest(NO_BEAMS)
