"""Whole answers, the choice of the direction, and the plane in which jailbreaks show."""

from dataclasses import replace

import numpy as np
import pytest

from calibration.fitting.fitted import Fitted
from calibration.fitting.study import Skipped
from calibration.methods.directions.refusal_direction import fit_refusal_direction
from calibration.model.openings import opens_as, refusal_openings
from calibration.recording.request_scores import RequestScores
from calibration.studies.causal.answers import answer_study, repeats
from calibration.studies.causal.signature import signature_study


def test_openings_are_as_short_as_tells_refusals_apart():
    """Token 5 alone begins refusals only; 6 begins both kinds, so it takes what follows; 8 is no refusal token."""
    on_harmful = [(5, 1, 2)] * 6 + [(5, 3, 4)] * 2 + [(6, 7, 1)] * 4 + [(8, 1, 1)] * 4
    on_harmless = [(6, 2, 2)] * 8 + [(9, 9, 9)] * 8
    openings = refusal_openings(on_harmful, on_harmless, (5, 6))
    assert openings == {(5,), (6, 7)}
    assert opens_as((5, 9, 9), openings)
    assert not opens_as((6, 2, 2), openings)


def test_repetition_is_seen():
    """Three tokens said twice are a repetition, one token over and over among them."""
    assert repeats((1, 2, 3, 1, 2, 3))
    assert repeats((7, 7, 7, 7))
    assert not repeats((1, 2, 3, 4, 5, 2, 2))
    assert not repeats((1,))


def test_ablation_ends_refusals_and_addition_brings_them(training, found):
    """On the planted model: most harmful prompts refused, none when ablated, harmless ones refused when added."""
    (study,) = answer_study(training, found)
    refused = {row[0]: row[1] for row in study.tables[0].rows}
    assert refused["harmful, untouched"] > 0.6
    assert refused["harmful, direction ablated"] < 0.1
    assert refused["harmless, untouched"] < 0.1
    assert refused["harmless, added at every position"] > 0.9
    assert {row[-1] for row in study.tables[0].rows} == {30}
    with pytest.raises(Skipped, match="no steering vector 'refusal'"):
        answer_study(training, Fitted())


def test_every_candidate_is_on_the_table(training):
    """Three numbers for each block and template position, those too deep to be chosen included; one is chosen."""
    (study,) = fit_refusal_direction(training).studies
    rows = study.tables[0].rows
    assert len(rows) == training.chat.num_layers * training.instruction_offset
    assert all(np.isfinite(row[2:5]).all() for row in rows)
    chosen = [row for row in rows if str(row[-1]).startswith("chosen")]
    assert len(chosen) == 1
    assert chosen[0][2] == min(row[2] for row in rows if row[-1] == "qualifies" or row == chosen[0])
    assert {chart.name for chart in study.charts} == {"bypass", "induce", "kl"}


@pytest.fixture
def placed(training, found):
    """Prompts placed by hand: harmful ones high in harm, half of them refused, harmless ones low in both."""
    harmful = training.prompts.harmful
    refused = harmful & (np.arange(len(harmful)) % 2 == 0)
    columns = {"refusal": np.where(refused, 5.0, -5.0), "harmfulness": np.where(harmful, 5.0, -5.0)}
    scores = np.stack([columns[probe.spec.name] for probe in found.probes], axis=1).astype(np.float32)
    benign = np.random.default_rng(0).normal(size=(400, 2)).astype(np.float32)
    return RequestScores(scores, np.where(refused, 3.0, -3.0)), benign, harmful, refused


def test_the_signature_is_harm_without_refusal(training, found, placed):
    """Complied harmful prompts all lie in its quadrant, refused and harmless ones do not."""
    scored, benign, harmful, refused = placed
    (study,) = signature_study(training.prompts, scored, found, benign)
    rows = {row[0]: row[1:] for row in study.tables[0].rows}
    assert rows["harmful, complied with"][0] == (harmful & ~refused).sum()
    assert str(rows["harmful, complied with"][2]).startswith("100.0%")
    assert str(rows["harmful, refused"][1]).startswith("100.0%")
    assert str(rows["harmless"][4]).startswith("100.0%")
    assert "cosine 1.0" in study.finding or "cosine 0.9" in study.finding


def test_prompts_that_say_jailbreak_are_taken_alone(training, found, placed):
    """Where sources name jailbreaks, only those are counted; too few benign scores give no cuts and no study."""
    scored, benign, *_ = placed
    named = [
        replace(prompt, source="jailbreak:fiction" if row < 10 else "plain")
        for row, prompt in enumerate(training.prompts.prompts)
    ]
    (study,) = signature_study(replace(training.prompts, prompts=tuple(named)), scored, found, benign)
    assert sum(row[1] for row in study.tables[0].rows) == 10
    unknown = replace(scored, refusal=scored.refusal * np.nan)
    for asked, reason in (
        ((scored, found, benign[:50]), "50 harmless validation prompts certify no threshold"),
        ((unknown, found, benign), "starts its answers to harmful prompts as"),
        ((scored, Fitted(), benign), "no probe 'harmfulness' and no probe 'refusal'"),
    ):
        with pytest.raises(Skipped, match=reason):
            signature_study(training.prompts, *asked)
