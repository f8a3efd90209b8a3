"""Every prompt belongs to exactly one stratum, named in words."""

import pytest
from tiny import write_prompts

from calibration.cli import Stratum
from calibration.prompts.prompt_file import load_prompts
from calibration.prompts.template import encode_prompts
from calibration.tuning.labelled import KINDS as RECORDED_KINDS
from calibration.tuning.strata import KINDS, script_of, strata_of
from probes.errors import CalibrationError

TURN = {"role": "user", "content": "bread"}


@pytest.fixture
def prompts(tokenizer, tmp_path):
    """A short request, a long one, and a conversation."""
    lines = [
        {"prompt": "bread", "label": "harmless", "source": "bakery", "lang": "EN"},
        {"prompt": "garden " * 60, "label": "harmless", "lang": " "},
        {"messages": [TURN, {"role": "assistant", "content": "song"}, TURN], "label": "harmless"},
    ]
    return encode_prompts(tokenizer, load_prompts(write_prompts(tmp_path / "p.jsonl", lines)), 2048)


@pytest.mark.parametrize(
    ("kinds", "expected"),
    [
        ([], ["all", "all", "all"]),
        (["length"], ["up to 32 tokens", "up to 128 tokens", "up to 32 tokens"]),
        (["language"], ["en", "no lang, latin script", "no lang, latin script"]),
        (["turns"], ["one turn", "one turn", "several turns"]),
        (["source", "turns"], ["bakery, one turn", "no source, one turn", "no source, several turns"]),
    ],
)
def test_strata(prompts, kinds, expected):
    """By any of the kinds, or several together."""
    assert strata_of(prompts, kinds).tolist() == expected


def test_the_command_offers_what_there_is():
    """One list of kinds of prompts and of recorded decisions, in places that cannot disagree."""
    assert {kind.value for kind in Stratum} == {*KINDS, *RECORDED_KINDS}


def test_a_kind_that_prompts_do_not_have_is_named(prompts):
    """The remedy says where there is one."""
    with pytest.raises(CalibrationError, match="no tenant") as caught:
        strata_of(prompts, ["tenant"])
    assert "--from-store" in caught.value.remedy


@pytest.mark.parametrize(
    ("text", "script"),
    [
        ("How do I bake bread?", "latin script"),
        ("Où est le café ?", "latin script"),
        ("Как испечь хлеб для email?", "cyrillic script"),
        ("如何烤面包 (how)?", "han script"),
        ("パンを焼く", "kana script"),
        ("كيف أخبز الخبز", "arabic script"),
        ("पाव रोटी", "devanagari script"),
        ("\uff22\uff52\uff45\uff41\uff44", "latin script"),
        ("12 + 3 = ?", "no letters"),
        ("", "no letters"),
    ],
)
def test_scripts(text, script):
    """The script of most letters; both kana count as one. Full-width letters are their own script's."""
    assert script_of(text) == script
