"""Every prompt belongs to exactly one stratum, named in words."""

import pytest
from tiny import write_prompts

from calibration.cli import Stratum
from calibration.prompts import load_prompts
from calibration.strata import KINDS, strata_of
from calibration.template import encode_prompts

TURN = {"role": "user", "content": "bread"}


@pytest.fixture
def prompts(tokenizer, tmp_path):
    """A short request, a long one, and a conversation."""
    lines = [
        {"prompt": "bread", "label": "harmless", "source": "bakery"},
        {"prompt": "garden " * 60, "label": "harmless"},
        {"messages": [TURN, {"role": "assistant", "content": "song"}, TURN], "label": "harmless"},
    ]
    return encode_prompts(tokenizer, load_prompts(write_prompts(tmp_path / "p.jsonl", lines)), 2048)


@pytest.mark.parametrize(
    ("kinds", "expected"),
    [
        ([], ["all", "all", "all"]),
        (["length"], ["up to 32 tokens", "up to 128 tokens", "up to 32 tokens"]),
        (["turns"], ["one turn", "one turn", "several turns"]),
        (["source", "turns"], ["bakery, one turn", "no source, one turn", "no source, several turns"]),
    ],
)
def test_strata(prompts, kinds, expected):
    """By any of the kinds, or several together."""
    assert strata_of(prompts, kinds).tolist() == expected


def test_the_command_offers_what_there_is():
    """One list of kinds, in two places that cannot disagree."""
    assert {kind.value for kind in Stratum} == set(KINDS)
