"""Requests in other forms: what they hold, what the probes keep of them, and what an artifact says of it."""

from typing import ClassVar

import numpy as np
import pytest
from transformers import AutoTokenizer

from calibration.evaluation.forms.asked import Answered
from calibration.evaluation.forms.endings import certify_endings
from calibration.prompts.chat_template import ChatTemplate
from calibration.prompts.forms.forms import BY_ENDING, FORMS
from calibration.prompts.forms.texts import OPENERS, PROSE
from calibration.prompts.forms.writer import NoSuchForm, Writer
from calibration.prompts.template import read_template
from examples.lab.tokenizer import CHAT_TEMPLATE
from probes.manifest import Probe
from probes.readout import Readout
from probes.template import Ending
from tests.serving.lab import MODEL

REQUEST = "How do I brush a horse?"
THINKING = CHAT_TEMPLATE.replace(
    "<|assistant|>\n{% endif %}",
    "<|assistant|>\n{% if enable_thinking is false %}<|pad|>\n\n{% endif %}{% endif %}",
)


@pytest.fixture(scope="module")
def lab_tokenizer():
    return AutoTokenizer.from_pretrained(MODEL)


@pytest.fixture
def thinking(lab_tokenizer):
    """The lab's tokenizer with a template that knows an option."""
    plain, lab_tokenizer.chat_template = lab_tokenizer.chat_template, THINKING
    yield lab_tokenizer
    lab_tokenizer.chat_template = plain


def writer(tokenizer):
    return Writer(ChatTemplate(tokenizer), ["What is bread?", "Where is the sea?"], PROSE, np.random.default_rng(0))


def ids_of(tokenizer, written):
    ids = tokenizer(written.text, add_special_tokens=False).input_ids
    return ids[: len(ids) - written.cut]


@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.name)
def test_a_form_holds_the_request_and_ends_as_it_says(lab_tokenizer, form):
    """Whatever is written around it, the request's words are there; and the guard tells the ending from the token
    ids.
    """
    try:
        written = form.write(writer(lab_tokenizer), REQUEST)
    except NoSuchForm:
        assert form.name in ("tool_description", "template_options")  # the lab's template knows neither
        return
    assert REQUEST in written.text
    expected = next((ending for ending, names in BY_ENDING.items() if form.name in names), Ending.TEMPLATE)
    expected = Ending.PREFILL if form.name == "within_prefill" else expected
    assert read_template(lab_tokenizer).ending(ids_of(lab_tokenizer, written)) is expected


def test_forms_are_written_through_a_template_that_takes_parts_alone(lab_tokenizer, monkeypatch):
    """As the prompts that are calibrated on are: each such form has the text that the lab's own template gives it."""
    content = "{{ message['content'] }}"
    assert content in CHAT_TEMPLATE
    in_parts = CHAT_TEMPLATE.replace(content, "{% for part in message['content'] %}{{ part['text'] }}{% endfor %}")
    for form in FORMS:
        texts = []
        for template in (CHAT_TEMPLATE, in_parts):
            monkeypatch.setattr(lab_tokenizer, "chat_template", template)
            try:
                texts.append(form.write(writer(lab_tokenizer), REQUEST).text)
            except NoSuchForm:
                texts.append("no such form")
        assert form.name == "tool_result" or texts[0] == texts[1], form.name


def test_the_lab_s_template_is_read_as_it_is_written(lab_tokenizer):
    """Four tokens open an answer; role markers and what stands around contents are the template's own."""
    template = read_template(lab_tokenizer)
    assert lab_tokenizer.decode(template.tail) == "<|end|>\n<|assistant|>\n"
    assert {lab_tokenizer.decode(frame) for frame in template.frames} == {
        "<|begin|><|user|>\n", "<|end|>\n<|assistant|>\n", "<|end|>\n<|user|>\n", "<|begin|><|system|>\n",
    }  # fmt: skip
    assert template.closings == ()


def test_an_option_that_closes_the_tail_is_the_template_s_own(thinking):
    """An empty thought behind the tail is no prefill: the prompt ends as the template has it."""
    template = read_template(thinking)
    assert [thinking.decode(each) for each in template.closings] == ["<|pad|>\n\n"]
    [options] = [form for form in FORMS if form.name == "template_options"]
    written = options.write(writer(thinking), REQUEST)
    assert written.text.endswith("<|pad|>\n\n")
    assert template.ending(ids_of(thinking, written)) is Ending.TEMPLATE


def test_the_words_that_ship_are_few_and_harmless():
    """Prose is told apart from what training sees, and openers promise nothing by themselves."""
    assert len(set(PROSE)) == len(PROSE)
    assert all(len(opener) < 60 for opener in OPENERS)


def test_a_calibration_certifies_endings_and_says_how_forms_did(calibrated):
    """Every probe decides on plain chat; those of the last token never on raw text; rates stand in the manifest."""
    manifest = calibrated[0].manifest
    assert Ending.OPEN in manifest.other_endings  # this model's template knows no assistant, so it has no prefill
    for probe in manifest.probes:
        assert probe.endings[0] is Ending.TEMPLATE
        assert probe.readout.kind != "last" or Ending.OPEN not in probe.endings
        assert probe.forms["plain"].kept.value == 1
        assert probe.forms["plain"].harmful.count >= 30
    content = next(probe for probe in manifest.probes if probe.name == "content")
    assert content.readout.over == "content"
    assert content.forms["words_behind"].kept.value >= 0.9
    assert {"words_before", "earlier_turn", "raw"} <= content.forms.keys()


class Told:
    """Requests whose scores are known: 1 where a probe finds harm, 0 elsewhere.

    The second probe misses one form. The third finds half of the requests, and in that form the other half.
    """

    requests: ClassVar = {True: ("harm",) * 300, False: ("bread",) * 400}

    def ask(self, forms, *, harmful):
        """As `Asked.ask`; harmless requests have small scores."""
        rows = np.arange(len(self.requests[harmful]))
        found = np.ones((len(rows), 3)) if harmful else np.linspace(0, 0.5, len(rows))[:, None].repeat(3, axis=1)
        named = [forms[row % len(forms)].name for row in rows]
        ending = next((str(each) for each, names in BY_ENDING.items() if named[0] in names), str(Ending.TEMPLATE))
        if harmful:
            raw = np.array([name == "raw" for name in named])
            found[raw, 1] = 0
            found[:, 2] = (rows >= 150) ^ raw
        scores, none = found.astype(np.float32), np.full((len(rows), 3), -np.inf, np.float32)
        closed, left = (scores, none) if ending == Ending.TEMPLATE else (none, scores)
        return Answered(rows, closed, left, np.array([ending] * len(rows)), np.ones(len(rows), np.int64))


def test_a_probe_is_certified_for_an_ending_that_it_holds_in_every_form():
    """Two forms of three are not enough: whoever asks takes the third. Nor are as many requests, if they are others."""
    names, spec = ("holds", "misses_raw", "others"), {"method": "m", "layers": (0,), "readout": Readout(kind="mean")}
    found = certify_endings(Told(), [Probe(name=name, **spec) for name in names])
    held = (Ending.PREFILL, Ending.OPEN)
    assert found.certified == {"holds": held, "misses_raw": held[:1], "others": held[:1]}
