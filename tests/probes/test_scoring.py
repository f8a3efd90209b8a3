"""A bank of probes scores as each probe alone would."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from probes.artifact import Artifact
from probes.errors import ArtifactError
from probes.fingerprint import Fingerprint
from probes.manifest import Manifest, Probe
from probes.readout import Readout
from probes.scoring import ProbeBank

HIDDEN, LAYERS = 6, 5
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
    st.builds(Readout, kind=st.sampled_from(["mean", "max", "ema", "swim"]), window=st.integers(1, 5)),
)
layer_sets = st.sets(st.integers(0, LAYERS - 1), min_size=1).map(lambda layers: tuple(sorted(layers)))


@st.composite
def artifacts(draw):
    """Artifacts of one to five probes, each on any blocks, with any readout."""
    probes = tuple(
        Probe(name=f"p{i}", method="planted", layers=layers, readout=readout, bias=bias)
        for i, (layers, readout, bias) in enumerate(
            draw(st.lists(st.tuples(layer_sets, readouts, st.floats(-3, 3)), min_size=1, max_size=5))
        )
    )
    generator = torch.Generator().manual_seed(draw(st.integers(0, 1000)))
    tensors = {f"probe.{p.name}.weight": torch.randn(len(p.layers), HIDDEN, generator=generator) for p in probes}
    return Artifact(Manifest(name="a", created="", fingerprint=PRINT, probes=probes), tensors)


def naive_tokens(artifact, hidden):
    """Each probe's token scores `[T, K]`, one dot product at a time, in float64."""
    num_tokens = len(next(iter(hidden.values())))
    result = np.zeros((num_tokens, len(artifact.manifest.probes)))
    for column, probe in enumerate(artifact.manifest.probes):
        weight = artifact.tensors[f"probe.{probe.name}.weight"].double()
        for token in range(num_tokens):
            dots = [float(hidden[layer][token].double() @ weight[row]) for row, layer in enumerate(probe.layers)]
            result[token, column] = sum(dots) + probe.bias
    return result


@settings(max_examples=60)
@given(artifact=artifacts(), num_tokens=st.integers(1, 9), seed=st.integers(0, 1000))
def test_a_bank_equals_its_probes_one_by_one(artifact, num_tokens, seed):
    """Stacking K probes over several blocks changes no score beyond float32 rounding."""
    generator = torch.Generator().manual_seed(seed)
    hidden = {layer: torch.randn(num_tokens, HIDDEN, generator=generator) for layer in range(LAYERS)}
    bank = ProbeBank.from_artifact(artifact)
    scores = bank.token_scores(hidden)
    assert scores.dtype == np.float32
    np.testing.assert_allclose(scores, naive_tokens(artifact, hidden), atol=1e-4)


@settings(max_examples=60)
@given(artifact=artifacts(), num_tokens=st.integers(1, 9), seed=st.integers(0, 1000))
def test_request_scores_are_each_readout_of_its_own_column(artifact, num_tokens, seed):
    """Fetching only the needed positions gives the same as reducing all tokens; short prompts and `last` mix freely."""
    generator = torch.Generator().manual_seed(seed)
    hidden = {layer: torch.randn(num_tokens, HIDDEN, generator=generator) for layer in range(LAYERS)}
    bank = ProbeBank.from_artifact(artifact)
    scores, positions = bank.token_scores(hidden), bank.positions(num_tokens)
    found = bank.request_scores(scores[positions], positions, num_tokens)
    for column, probe in enumerate(artifact.manifest.probes):
        wanted = scores[list(probe.readout.positions(num_tokens)), column]
        assert found[column] == np.float32(probe.readout.reduce(wanted))


def test_only_last_readouts_fetch_few_positions(make):
    """Two `last` probes on one token fetch it once; one pooled probe beside them fetches everything."""
    probes = [Probe(name=f"p{o}", method="m", layers=(0,), readout=Readout(offset=o)) for o in (0, 3)]
    bank = ProbeBank.from_artifact(make(probes=(*probes, probes[0].model_copy(update={"name": "twin"}))))
    assert bank.positions(10).tolist() == [6, 9]
    assert bank.positions(2).tolist() == [0, 1]
    pooled = Probe(name="pool", method="m", layers=(0,), readout=Readout(kind="max"))
    assert ProbeBank.from_artifact(make(probes=(*probes, pooled))).positions(4).tolist() == [0, 1, 2, 3]


def test_zero_columns_where_a_probe_does_not_read(make):
    """Block 0 is read by the second probe only, so the first probe's column there is zero."""
    bank = ProbeBank.from_artifact(make())
    assert sorted(bank.matrices) == [0, 1, 2]
    assert not bank.matrices[0][:, 0].any()
    assert bank.matrices[0][:, 1].any()


def test_half_precision_is_scored_in_single(make):
    """Products of bfloat16 activations are summed in float32."""
    bank = ProbeBank.from_artifact(make())
    hidden = {layer: torch.randn(3, 6, generator=torch.Generator().manual_seed(layer)).bfloat16() for layer in range(4)}
    exact = bank.token_scores({layer: stream.float() for layer, stream in hidden.items()})
    np.testing.assert_array_equal(bank.token_scores(hidden), exact)


def test_sites_that_cannot_be_served_are_refused(make):
    """The error names the probe and its site, and what to do."""
    probe = Probe(name="neurons", method="m", layers=(0,), site="mlp_neurons")
    with pytest.raises(ArtifactError, match="resid_post") as caught:
        ProbeBank.from_artifact(make(probes=(probe,)))
    assert caught.value.field == "probes.neurons.site"


def test_an_artifact_without_probes_cannot_score(make):
    """No probes is an error with a remedy, not a score of zero."""
    bank = ProbeBank.from_artifact(make(probes=()))
    with pytest.raises(ArtifactError, match="no probes"):
        bank.token_scores({0: torch.zeros(1, 6)})
