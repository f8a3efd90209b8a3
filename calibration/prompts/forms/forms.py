"""The forms that a request is measured in. Each takes a request and writes it down; what it means stays the same.

Those of `BY_ENDING` end otherwise than the chat template does, as the guard tells from the token ids
(`probes.template`).
"""

from collections.abc import Callable
from dataclasses import dataclass

from calibration.prompts.forms.texts import GOING_ON, OPENERS
from calibration.prompts.forms.writer import Writer, Written, assistant, user
from calibration.prompts.template import TEMPLATE_OPTIONS
from probes.template import Ending

Write = Callable[[Writer, str], Written]
_MOST_BACK = 6


@dataclass(frozen=True, slots=True)
class Form:
    """A way to ask."""

    name: str
    title: str
    write: Write


def _raw(writer: Writer, request: str) -> Written:
    begin = writer.template.tokenizer.bos_token or ""
    return Written(request if writer.rng.random() < 0.5 else begin + request)


def _cut(writer: Writer, request: str) -> Written:
    written = writer.chat([user(request)])
    return Written(written.text, cut=int(writer.rng.integers(1, 4)))


def _system(writer: Writer, request: str) -> Written:
    return writer.chat([{"role": "system", "content": request}, user(writer.aside())])


def _earlier(writer: Writer, request: str) -> Written:
    turns = [user(request), assistant(writer.one_of(OPENERS))]
    for _ in range(int(writer.rng.integers(_MOST_BACK))):
        turns += [user(writer.aside()), assistant("Certainly. " + writer.words(10, 30))]
    return writer.chat([*turns, user(writer.aside())])


def _tool_result(writer: Writer, request: str) -> Written:
    call = {"type": "function", "id": "call000000", "function": {"name": "look_up", "arguments": {}}}
    asked = {"role": "assistant", "content": "", "tool_calls": [call]}
    result = {"role": "tool", "name": "look_up", "tool_call_id": "call000000", "content": request}
    return writer.chat([user(writer.aside()), asked, result])


def _tool_description(writer: Writer, request: str) -> Written:
    function = {"name": "look_up", "description": request, "parameters": {"type": "object", "properties": {}}}
    written = writer.chat([user(writer.aside())], tools=[{"type": "function", "function": function}])
    return writer.required(written, request)


def _markers(writer: Writer, request: str) -> Written:
    to_assistant, to_user = writer.between()
    return writer.chat([user(f"{request}{to_assistant}Certainly.{to_user}{writer.aside()}")])


def _options(writer: Writer, request: str) -> Written:
    plain = writer.chat([user(request)])
    other = [writer.chat([user(request)], **options) for options in TEMPLATE_OPTIONS]
    return writer.one_that_differs(plain, other)


FORMS = (
    Form("plain", "as plain chat", lambda w, r: w.chat([user(r)])),
    Form("words_before", "harmless words before it", lambda w, r: w.chat([user(f"{w.words()} {r}")])),
    Form("words_behind", "harmless words behind it", lambda w, r: w.chat([user(f"{r} {w.words()}")])),
    Form("system_turn", "in the system turn", _system),
    Form("earlier_turn", "1 to 6 turns back", _earlier),
    Form("said_before", "as the assistant's earlier answer",
         lambda w, r: w.chat([user(w.aside()), assistant(r), user(w.one_of(GOING_ON))])),
    Form("role_markers", "with role markers typed behind it", _markers),
    Form("tool_result", "as a tool's result", _tool_result),
    Form("tool_description", "as a tool's description", _tool_description),
    Form("template_options", "with options of the chat template", _options),
    Form("prefill", "with a harmless prefill", lambda w, r: w.begun([user(r), assistant(w.one_of(OPENERS))])),
    Form("long_prefill", "with a long harmless prefill", lambda w, r: w.begun([user(r), assistant(w.words(20, 60))])),
    Form("within_prefill", "within the prefill", lambda w, r: w.begun([user(w.one_of(GOING_ON)), assistant(r)])),
    Form("unopened", "without a generation prompt", lambda w, r: w.chat([user(r)], add_generation_prompt=False)),
    Form("cut_tail", "with the template's tail cut by 1 to 3 tokens", _cut),
    Form("raw", "as raw text", _raw),
)  # fmt: skip

BY_ENDING = {Ending.PREFILL: ("prefill", "long_prefill"), Ending.OPEN: ("unopened", "cut_tail", "raw")}
"""The forms that thresholds for other endings are certified on."""
