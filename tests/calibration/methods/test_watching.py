"""Answers are read as they are served, what is usual is measured where answers are many, and refusals judge no
watch.
"""

from dataclasses import replace

import numpy as np
import pytest
import torch
from tiny import HIDDEN, make_model, make_prompts, write_prompts

from calibration.fitting.fitted import FittedProbe
from calibration.fitting.metrics import certified_thresholds, recall_at
from calibration.methods.watches.along import answer_scores, tokens_to_crossing
from calibration.methods.watches.answering import Answers, answer_prompts
from calibration.methods.watches.sides import LabelledAnswers
from calibration.methods.watches.usual import neighbourhoods, usual_levels
from calibration.methods.watches.watch_study import groups_by_length
from calibration.methods.watches.watches import READOUTS, _bank_of, _specs, _watch
from calibration.model.chat_model import ChatModel
from calibration.model.generation import generate
from calibration.prompts.prompt_file import load_prompts
from calibration.prompts.template import encode_prompts
from probes.answer_reading import WatchBank
from probes.artifact import BENIGN_ANSWERS, HARMFUL_ANSWERS
from probes.errors import CalibrationError
from probes.manifest import Probe, Watch
from probes.readout import Readout

LONGEST = 64


@pytest.fixture
def talkative(tokenizer):
    """A random model whose answers differ, and end at different lengths."""
    model = make_model(len(tokenizer), seed=3)
    with torch.no_grad():
        model.lm_head.weight[tokenizer.eos_token_id] *= 2
    return ChatModel.wrap(model, tokenizer)


@pytest.fixture
def prompts(tokenizer, tmp_path):
    """Ninety prompts: more than one batch."""
    return encode_prompts(tokenizer, load_prompts(write_prompts(tmp_path / "p.jsonl", make_prompts(90, 4))), 128)


@pytest.fixture
def probes():
    """Two random probes of the stream."""
    generator = torch.Generator().manual_seed(2)
    specs = Probe(name="one", method="m", layers=(0, 1)), Probe(name="two", method="m", layers=(2,))
    return [FittedProbe(spec, torch.randn(len(spec.layers), 1, HIDDEN, generator=generator)) for spec in specs]


def test_token_scores_are_of_the_tokens_that_the_model_reads_of_its_answer(talkative, prompts, probes, tmp_path):
    """Row t is the probes' reading of the hidden state at answer token t, one answer at a time; the last is never
    read.
    """
    found = answer_prompts(talkative, _bank_of(probes), prompts, 12, tmp_path / "answers", "answering")
    assert list(found.tokens) == generate(talkative, prompts, 12)
    assert len(set(found.lengths.tolist())) > 2
    for row in range(0, 90, 7):
        ids, answer = prompts.token_ids[row], found.tokens[row]
        states = talkative.model(input_ids=torch.tensor([ids + answer]), output_hidden_states=True).hidden_states
        own = [state[0, len(ids) : len(ids) + len(answer) - 1] for state in states]
        one = own[1] @ probes[0].weight[0, 0] + own[2] @ probes[0].weight[1, 0]
        np.testing.assert_allclose(found.scores[row][:, 0], one.numpy(), atol=1e-3)
        assert found.scores[row].shape == (len(answer) - 1, 2)


def test_what_was_answered_is_not_answered_again(talkative, prompts, probes, tmp_path, monkeypatch):
    """Stopped after a batch, the same call goes on behind it, and ends as one that was never stopped."""
    bank, original, passes = _bank_of(probes), ChatModel.last_logits, []

    def counting(self, batch):
        if len(passes) == stop:
            raise KeyboardInterrupt
        passes.append(batch)
        return original(self, batch)

    monkeypatch.setattr(ChatModel, "last_logits", counting)
    stop = 1
    with pytest.raises(KeyboardInterrupt):
        answer_prompts(talkative, bank, prompts, 12, tmp_path / "stopped", "answering")
    passes, stop = [], -1
    resumed = answer_prompts(talkative, bank, prompts, 12, tmp_path / "stopped", "answering")
    after = len(passes)
    whole = answer_prompts(talkative, bank, prompts, 12, tmp_path / "whole", "answering")
    assert after == len(passes) - after - 1
    assert resumed.tokens == whole.tokens
    assert all(np.array_equal(one, other) for one, other in zip(resumed.scores, whole.scores, strict=True))


def test_a_score_that_is_not_a_number_names_the_prompt(talkative, prompts, probes, tmp_path):
    """A probe that overflows along an answer is reported, and nothing of its batch is kept."""
    bank = _bank_of([replace(probes[0], weight=probes[0].weight * float("inf"))])
    with pytest.raises(CalibrationError, match=r"prompt p\.jsonl:\d+: a score along its answer"):
        answer_prompts(talkative, bank, prompts, 12, tmp_path / "answers", "answering")
    assert not list((tmp_path / "answers").iterdir())


def test_late_tokens_are_taken_to_be_like_the_last_that_many_answers_reach():
    """Four tokens alone, then ever more together; where fewer than fifty arrive, those about the last that fifty
    reach.
    """
    counts = np.array([100.0] * 20 + [60.0] * 10 + [10.0] * 10 + [0.0] * 10)
    near = neighbourhoods(counts)
    assert [(each.start, each.stop) for each in near[:6]] == [(0, 1), (1, 2), (2, 3), (3, 4), (4, 6), (4, 7)]
    assert all(each.start <= token < each.stop for token, each in enumerate(near[:30]))
    assert {(each.start, each.stop) for each in near[29:]} == {(24, 36)}
    few = neighbourhoods(np.array([30.0, 30.0, 4.0]))
    assert [(each.start, each.stop) for each in few] == [(0, 1), (1, 2), (1, 2)]


def chatter(rng, count, *, shift=0.0, since=0):
    """Answers' token scores `[T, 1]`: 2 to 64 tokens, wild at first and calm later, of answers that differ as a
    whole.
    """
    found = []
    for length in rng.integers(2, LONGEST, count):
        token = np.arange(length)
        scatter = np.where(token < 4, 4.0, 1.0)
        own = rng.normal(0, 0.3) + scatter * rng.normal(size=length) - 0.02 * token
        found.append((own + shift * (token >= since)).astype(np.float32)[:, None])
    return found


def measured(answers, watch):
    """The watch, with what is usual along these answers."""
    centre, spread = usual_levels(WatchBank.unmeasured([watch]), answers, LONGEST)
    named = {"centre": centre[:, 0], "spread": spread[:, 0]}
    return WatchBank.of([watch], {f"watch.{watch.name}.{key}": torch.from_numpy(each) for key, each in named.items()})


def watch_of(readout):
    return Watch(name=f"p_{readout.kind}", probe="p", readout=readout, max_tokens=LONGEST)


@pytest.mark.parametrize("readout", READOUTS, ids=lambda readout: readout.kind)
def test_the_promise_holds_on_new_harmless_answers_at_every_length(readout):
    """Fitted on 300 and certified for 1 % on 600 others, it is broken by at most one draw in twenty, and by no
    length.
    """
    rng, broken, groups = np.random.default_rng(1), 0, []
    for _ in range(40):
        bank = measured(chatter(rng, 300), watch_of(readout))
        (threshold,) = certified_thresholds(answer_scores(bank, chatter(rng, 600))[:, 0])
        new = chatter(rng, 1500)
        above = answer_scores(bank, new)[:, 0] > threshold.value
        broken += above.mean() > 0.01 + 2 * np.sqrt(0.01 * 0.99 / 1500)
        groups.append([above[rows].mean() for rows in groups_by_length(np.array(list(map(len, new)))).values()])
    assert broken <= 2
    assert np.mean(groups) < 0.01
    assert max(np.mean(groups, axis=0)) < 0.012


@pytest.mark.parametrize("readout", READOUTS, ids=lambda readout: readout.kind)
def test_being_measured_token_by_token_finds_what_begins_late(readout):
    """Harm from the 20th token on: next to the levels' own early scatter it drowns, next to that of its token it does
    not.
    """
    rng, watch = np.random.default_rng(2), watch_of(readout)
    harmless, harmful = chatter(rng, 2000), [each for each in chatter(rng, 600, shift=2.0, since=20) if len(each) > 40]
    recalls = [
        recall_at(answer_scores(bank, harmful)[:, 0], answer_scores(bank, harmless)[:, 0], 0.01)
        for bank in (measured(chatter(rng, 400), watch), WatchBank.unmeasured([watch]))
    ]
    assert recalls[0] > recalls[1] + 0.3
    assert recalls[0] > 0.8


@pytest.mark.parametrize("readout", READOUTS, ids=lambda readout: readout.kind)
def test_tokens_that_few_answers_reach_are_as_usual_as_those_that_many_do(readout):
    """One long strange answer among two hundred short ones, and beyond it none: the end is judged by the crowd."""
    rng = np.random.default_rng(4)
    answers = [rng.normal(5, 1, (20, 1)).astype(np.float32) for _ in range(200)]
    strange = np.concatenate([answers[0], np.full((20, 1), 40, dtype=np.float32)])
    bank = measured([*answers, strange], watch_of(readout))
    assert bank.centre[40:, 0] == pytest.approx(5, abs=1)
    assert bank.spread[40:, 0] == pytest.approx(bank.spread[19, 0], rel=0.5)


def test_levels_that_never_differ_still_have_a_spread():
    """Where all answers begin alike, the first that does not is unusual by a number, not by infinity."""
    rng = np.random.default_rng(3)
    answers = [np.concatenate([[[1.0]], each]).astype(np.float32) for each in chatter(rng, 100)]
    bank = measured(answers, watch_of(Readout(kind="swim", window=4)))
    tokens = np.concatenate(answers)
    assert bank.spread[0] == pytest.approx(0.1 * tokens.std(), rel=1e-3)
    alike = measured([np.ones((3, 1), dtype=np.float32)] * 20, watch_of(READOUTS[0]))
    assert (alike.spread > 0).all()


def test_the_crossing_is_at_the_first_token_whose_score_is_above():
    """Counted in tokens that were read; 0 for an answer that never gets there, or of which nothing is read."""
    watches = [watch_of(Readout(kind="swim", window=1))]
    answers = [np.array(own, dtype=np.float32).reshape(-1, 1) for own in ([1, 3, 5, 2], [4], [1, 3], [])]
    assert tokens_to_crossing(WatchBank.unmeasured(watches), answers, np.array([3.0])).tolist() == [[3], [1], [0], [0]]


def planted_sides(prompts, rng, *, shift, refused=0):
    """A split's answers as two probes score them: only the second reads anything. Some harmful prompts are refused."""
    harmful, tokens, scores = prompts.harmful, [], []
    for row, label in enumerate(harmful):
        is_refused = label and refused > harmful[:row].sum()
        signal, noise = chatter(rng, 1, shift=shift * (label and not is_refused)) + chatter(rng, 1)
        length = min(len(signal), len(noise))
        tokens.append(((7 if is_refused else 8),) * (length + 1))
        scores.append(np.concatenate([noise[:length], signal[:length]], axis=1))
    return LabelledAnswers.of(Answers(prompts, tuple(tokens), tuple(scores)), frozenset({(7,)}))


@pytest.fixture
def splits(tokenizer, tmp_path):
    """Prompts of three splits."""
    sizes = {"train": 200, "validation": 900, "test": 500}
    files = {
        split: load_prompts(write_prompts(tmp_path / f"{split}.jsonl", make_prompts(count, seed)))
        for seed, (split, count) in enumerate(sizes.items())
    }
    return {split: encode_prompts(tokenizer, file, 128) for split, file in files.items()}


def test_watches_that_tell_answers_apart_are_kept_and_certified(splits, probes):
    """The probe that reads nothing is left out, by name; refusals are counted, and in no number of the watches."""
    rng = np.random.default_rng(5)
    sides = {split: planted_sides(prompts, rng, shift=3.0, refused=40) for split, prompts in splits.items()}
    found = _watch(_bank_of(probes), _specs(probes, LONGEST), sides)
    assert [watch.name for watch in found.watches] == ["two_ema", "two_swim"]
    assert "one_ema (0." in found.notes[0]
    assert found.tensors[BENIGN_ANSWERS].shape == (450, 2)
    assert found.tensors[HARMFUL_ANSWERS].shape == (410, 2)
    assert {name for watch in found.watches for name in watch.shapes} < set(found.tensors)
    for watch in found.watches:
        assert [(each.split, each.num_harmful) for each in watch.evaluation] == [("validation", 410), ("test", 210)]
        assert watch.evaluation[1].auroc > 0.8
    (study,) = found.studies
    tables = {table.name: table.rows for table in study.tables}
    assert ("test", "harmful", 250, 40, 0, 210, 0.16) in tables["answered"]
    for row in tables["recall"]:
        assert row[2] > 0.5
        assert row[5] < 0.03
    assert len(tables["by length"]) == 8
    assert all(1 < row[3] < LONGEST for row in tables["tokens until crossing"])


def test_where_none_is_worth_keeping_a_note_says_so(splits, probes):
    """Nothing to tell apart: no watch, no tensors, and the reason."""
    rng = np.random.default_rng(6)
    sides = {split: planted_sides(prompts, rng, shift=0.0) for split, prompts in splits.items()}
    found = _watch(_bank_of(probes), _specs(probes, LONGEST), sides)
    assert (found.watches, found.tensors) == ((), {})
    assert found.notes[0].startswith("no watch: all were left out")
    assert found.not_asked["watched_answers"].startswith("all were left out, as their AUROC")


def test_a_model_that_refuses_everything_keeps_its_watches_and_states_no_recall(splits, probes):
    """Chosen by nothing, certified all the same, with no recall and no harmful answer in the artifact."""
    rng = np.random.default_rng(7)
    sides = {split: planted_sides(prompts, rng, shift=1.5, refused=1000) for split, prompts in splits.items()}
    found = _watch(_bank_of(probes), _specs(probes, LONGEST), sides)
    assert len(found.watches) == 4
    assert "chosen by nothing" in found.notes[0]
    assert found.tensors[HARMFUL_ANSWERS].shape == (0, 4)
    assert found.watches[0].evaluation == ()
    assert "No recall can be stated" in found.studies[0].finding


def test_where_nothing_harmless_is_read_the_finding_says_so(splits, probes):
    """All harmless test prompts are answered with one token: no threshold meets them, and their table is not just
    missing.
    """
    rng = np.random.default_rng(8)
    sides = {split: planted_sides(prompts, rng, shift=1.5) for split, prompts in splits.items()}
    sides["test"] = replace(sides["test"], harmless=sides["test"].harmless.subset(np.arange(0)))
    (study,) = _watch(_bank_of(probes), _specs(probes, LONGEST), sides).studies
    assert "Nothing is measured on harmless answers" in study.finding
    assert "recall" not in {table.name for table in study.tables}


def test_answers_of_one_token_are_counted_and_have_no_score(prompts):
    """Of them nothing is read: they are on neither side."""
    tokens = tuple((9,) if row % 9 == 0 else (9, 8) for row in range(90))
    scores = tuple(np.zeros((len(own) - 1, 2), dtype=np.float32) for own in tokens)
    sides = LabelledAnswers.of(Answers(prompts, tokens, scores), frozenset())
    assert sum(count.unread for count in sides.counts.values()) == 10
    assert len(sides.harmless.tokens) + len(sides.harmful.tokens) == 80


def test_groups_by_length_are_of_about_equal_size_and_named_by_their_lengths():
    """Every answer is in one group; lengths that are the same stay together."""
    groups = groups_by_length(np.array([5] * 10 + [6, 7, 8, 9] * 5))
    assert {name: len(rows) for name, rows in groups.items()} == {
        "5 to 5": 10,
        "6 to 7": 10,
        "8 to 8": 5,
        "9 to 9": 5,
    }
