"""A bank of probes scores as each probe alone would."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from probes.artifact import Artifact
from probes.errors import ArtifactError
from probes.fingerprint import Fingerprint
from probes.head import HEADS
from probes.manifest import EMBEDDINGS, Manifest, Probe
from probes.readout import Readout
from probes.scoring import ProbeBank, Tap
from probes.template import whole

HIDDEN, NEURONS, LAYERS = 6, 10, 5
PRINT = Fingerprint(
    architecture="A",
    num_layers=LAYERS,
    hidden_size=HIDDEN,
    config="",
    weights="",
    tokenizer="",
    chat_template="",
    dtype="float32",
)

readouts = st.one_of(
    st.builds(Readout, kind=st.just("last"), offset=st.integers(0, 12)),
    st.builds(
        Readout,
        kind=st.sampled_from(["mean", "max", "ema", "swim", "softmax", "attention"]),
        window=st.integers(1, 5),
        temperature=st.floats(0.1, 10),
    ),
)
FIRST = {"resid_post": EMBEDDINGS, "mlp_neurons": 0}
layer_sets = {
    site: st.sets(st.integers(first, LAYERS - 1), min_size=1).map(lambda layers: tuple(sorted(layers)))
    for site, first in FIRST.items()
}


@st.composite
def probe_lists(draw):
    """One to five probes, each at any site and blocks, with any readout, channels and head."""
    probes = []
    for index in range(draw(st.integers(1, 5))):
        readout, site = draw(readouts), draw(st.sampled_from(["resid_post", "mlp_neurons"]))
        probes.append(
            Probe(
                name=f"p{index}",
                method="planted",
                site=site,
                width=NEURONS if site == "mlp_neurons" else None,
                layers=draw(layer_sets[site]),
                readout=readout,
                channels=draw(st.integers(1, 3)) * (2 if readout.kind == "attention" else 1),
                head=draw(st.sampled_from(["sum", "mlp", "mahalanobis"])),
                head_reads="request" if readout.kind == "attention" else draw(st.sampled_from(["request", "token"])),
                scale=draw(st.floats(0.1, 4)),
                bias=draw(st.floats(-3, 3)),
            )
        )
    return tuple(probes)


@st.composite
def artifacts(draw):
    """Artifacts of such probes."""
    probes = draw(probe_lists())
    generator = torch.Generator().manual_seed(draw(st.integers(0, 1000)))
    shapes = {name: shape for probe in probes for name, shape in probe.shapes(HIDDEN).items()}
    tensors = {name: torch.randn(*shape, generator=generator) for name, shape in shapes.items()}
    return Artifact(Manifest(name="a", created="", fingerprint=PRINT, probes=probes), tensors)


def activations_of(num_tokens, seed):
    """Random activations at every site of every block, and before the first."""
    generator = torch.Generator().manual_seed(seed)
    widths = {"resid_post": HIDDEN, "mlp_neurons": NEURONS}
    return {
        Tap(site, layer): torch.randn(num_tokens, width, generator=generator)
        for site, width in widths.items()
        for layer in range(FIRST[site], LAYERS)
    }


def naive_tokens(artifact, activations, probe):
    """One probe's token scores `[T, channels]`, one dot product at a time, in float64."""
    weight = artifact.tensors[f"probe.{probe.name}.weight"].double()
    num_tokens = len(next(iter(activations.values())))
    result = np.zeros((num_tokens, probe.channels))
    for token in range(num_tokens):
        for channel in range(probe.channels):
            result[token, channel] = sum(
                float(activations[Tap(probe.site, layer)][token].double() @ weight[row, channel])
                for row, layer in enumerate(probe.layers)
            )
    return result


@settings(max_examples=60)
@given(artifact=artifacts(), num_tokens=st.integers(1, 9), seed=st.integers(0, 1000))
def test_a_bank_equals_its_probes_one_by_one(artifact, num_tokens, seed):
    """Stacking the channels of K probes over several blocks and sites changes no score beyond float32 rounding."""
    activations = activations_of(num_tokens, seed)
    scores = ProbeBank.from_artifact(artifact).token_scores(activations)
    assert scores.dtype == np.float32
    apart = [naive_tokens(artifact, activations, probe) for probe in artifact.manifest.probes]
    np.testing.assert_allclose(scores, np.concatenate(apart, axis=1), atol=1e-4)


@settings(max_examples=60)
@given(artifact=artifacts(), num_tokens=st.integers(1, 9), seed=st.integers(0, 1000))
def test_turn_scores_are_each_probe_s_readout_and_head(artifact, num_tokens, seed):
    """Fetching only the needed positions gives the same as reducing all tokens; short prompts and `last` mix freely."""
    bank = ProbeBank.from_artifact(artifact)
    scores, positions = bank.token_scores(activations_of(num_tokens, seed)), bank.positions(whole(num_tokens))
    found = bank.turn_scores(scores[positions], positions, whole(num_tokens))
    first = 0
    for column, probe in enumerate(artifact.manifest.probes):
        own = scores[list(probe.readout.positions(whole(num_tokens))), first : first + probe.channels]
        prefix = f"probe.{probe.name}."
        head = {key.removeprefix(prefix): t.numpy() for key, t in artifact.tensors.items() if key.startswith(prefix)}
        if probe.head_reads == "token":
            each = [HEADS[probe.head].outputs(token.astype(np.float64), head) for token in own]
            [output] = probe.readout.reduce(np.array(each, dtype=np.float32)[:, None])
        else:
            output = HEADS[probe.head].outputs(probe.readout.reduce(own), head)
        value = probe.scale * output + probe.bias
        assert found[column] == pytest.approx(value, rel=1e-5, abs=1e-4)
        first += probe.channels


@settings(max_examples=60)
@given(artifact=artifacts(), lengths=st.lists(st.integers(1, 9), min_size=1, max_size=5))
def test_requests_scored_together_have_the_scores_that_each_has_alone(artifact, lengths):
    """However many prompts a step finishes, and whatever their lengths."""
    bank = ProbeBank.from_artifact(artifact)
    turns = [whole(length) for length in lengths]
    positions = [bank.positions(turn) for turn in turns]
    own = [bank.token_scores(activations_of(length, seed))[positions[seed]] for seed, length in enumerate(lengths)]
    together = bank.scores_of_all(np.concatenate(own), positions, turns)
    alone = [bank.turn_scores(*each) for each in zip(own, positions, turns, strict=True)]
    np.testing.assert_array_equal(together, np.stack(alone))


@settings(max_examples=60)
@given(artifact=artifacts(), num_tokens=st.integers(1, 9), data=st.data())
def test_a_token_that_was_not_scored_is_never_hidden(artifact, num_tokens, data):
    """Whatever the readout and the head, a probe that needs a token without a score has none; the others keep
    theirs.
    """
    bank = ProbeBank.from_artifact(artifact)
    scores = bank.token_scores(activations_of(num_tokens, 0))
    token = data.draw(st.integers(0, num_tokens - 1))
    index = data.draw(st.integers(0, len(bank.probes) - 1))
    probe, first = bank.probes[index], sum(each.channels for each in bank.probes[:index])
    scores[token, data.draw(st.integers(first, first + probe.channels - 1))] = np.nan
    positions = bank.positions(whole(num_tokens))
    found = bank.turn_scores(scores[positions], positions, whole(num_tokens))
    assert np.isnan(found[index]) == (token in probe.readout.positions(whole(num_tokens)))
    assert np.isfinite(np.delete(found, index)).all()


@settings(max_examples=60)
@given(artifact=artifacts(), num_tokens=st.integers(1, 9), seed=st.integers(0, 1000))
def test_an_infinite_token_becomes_no_plain_number(artifact, num_tokens, seed):
    """Where every product overflowed, no score is finite, and nothing warns."""
    bank = ProbeBank.from_artifact(artifact)
    positions = bank.positions(whole(num_tokens))
    scores = np.full((len(positions), len(bank.plan.starts)), np.inf, dtype=np.float32)
    found = bank.turn_scores(scores, positions, whole(num_tokens))
    assert not np.isfinite(found).any()


def test_only_last_readouts_fetch_few_positions(make):
    """Two `last` probes on one token fetch it once; one pooled probe beside them fetches everything."""
    probes = [Probe(name=f"p{o}", method="m", layers=(0,), readout=Readout(offset=o)) for o in (0, 3)]
    bank = ProbeBank.from_artifact(make(probes=(*probes, probes[0].model_copy(update={"name": "twin"}))))
    assert bank.positions(whole(10)) == [6, 9]
    assert bank.positions(whole(2)) == [0, 1]
    pooled = Probe(name="pool", method="m", layers=(0,), readout=Readout(kind="max"))
    assert ProbeBank.from_artifact(make(probes=(*probes, pooled))).positions(whole(4)) == range(4)


def test_a_tap_has_columns_for_its_own_channels_only(make):
    """Blocks 0 and 2 are read by the second probe, block 1 by the first."""
    bank = ProbeBank.from_artifact(make())
    owners = {tap: reading.channels.tolist() for tap, reading in bank.readings.items()}
    assert owners == {Tap("resid_post", 0): [1], Tap("resid_post", 1): [0], Tap("resid_post", 2): [1]}
    assert {tuple(reading.matrix.shape) for reading in bank.readings.values()} == {(6, 1)}


def test_half_precision_is_scored_in_single(make):
    """Products of bfloat16 activations are summed in float32."""
    bank = ProbeBank.from_artifact(make())
    hidden = {
        tap: torch.randn(3, 6, generator=torch.Generator().manual_seed(tap.layer)).bfloat16() for tap in bank.readings
    }
    exact = bank.token_scores({tap: stream.float() for tap, stream in hidden.items()})
    np.testing.assert_array_equal(bank.token_scores(hidden), exact)


def test_the_last_step_is_scale_and_bias():
    """A probe's score under another scale and bias is an affine map of its score: thresholds move with it."""
    probe = Probe(name="p", method="m", layers=(0,), readout=Readout(kind="ema"), channels=3)
    tensors = {"probe.p.weight": torch.randn(1, 3, HIDDEN, generator=torch.Generator().manual_seed(0))}
    moved = probe.model_copy(update={"scale": 2.5, "bias": -1.0})
    scores = [
        bank.turn_scores(bank.token_scores(activations_of(7, 1)), range(7), whole(7))[0]
        for bank in (ProbeBank.of([probe], tensors), ProbeBank.of([moved], tensors))
    ]
    assert scores[1] == pytest.approx(2.5 * scores[0] - 1.0, rel=1e-6)


def test_an_artifact_without_probes_cannot_score(make):
    """No probes is an error with a remedy, not a score of zero."""
    bank = ProbeBank.from_artifact(make(probes=()))
    with pytest.raises(ArtifactError, match="no probes"):
        bank.token_scores({Tap("resid_post", 0): torch.zeros(1, 6)})


@pytest.mark.parametrize(
    "fields",
    [
        {"site": "mlp_neurons"},
        {"width": 10},
        {"width": 6},
        {"site": "mlp_neurons", "width": 0},
        {"channels": 0},
        {"channels": 3, "readout": Readout(kind="attention")},
        {"channels": 1, "readout": Readout(kind="attention")},
        {"scale": 0.0},
        {"scale": -1.0},
        {"head": "tree"},
        {"head_reads": "sentence"},
        {"channels": 2, "head": "mlp", "head_reads": "token", "readout": Readout(kind="attention")},
    ],
)
def test_probes_that_mean_nothing_are_refused(fields):
    """Neurons without their number, a query without values, a scale that turns scores over."""
    with pytest.raises(ValidationError):
        Probe(name="p", method="m", layers=(0,), **fields)
