"""What measures parity, by itself: integers as the formats have them, errors as logs have them, tables as they are
read.
"""

import pytest
import torch
from compressed_tensors.compressors.pack_quantized.helpers import pack_to_int32

from tests.serving.architectures import table
from tests.serving.architectures.parity import Parity, last_raised
from tests.serving.architectures.quantised import SCHEMES

PARITY = Parity(
    "AForCausalLM", ("FullAttentionSpec", "MambaSpec", "MambaSpec"), (1e-7, 2e-7, 4e-7), (), "no neurons", 9.0
)


@pytest.fixture
def weight():
    """A random matrix."""
    return torch.randn(64, 128, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(("name", "bits", "error"), [("int8-w8a16", 8, 0.01), ("int4-w4a16", 4, 0.12)])
def test_packed_integers_are_as_compressed_tensors_packs_them(weight, name, bits, error):
    """The words are its own, and what they stand for is near the matrix."""
    written, stands_for = SCHEMES[name].write(weight)
    scale = written["weight_scale"].repeat_interleave(weight.shape[1] // written["weight_scale"].shape[1], dim=1)
    integers = (stands_for / scale).round().to(torch.int8)
    assert torch.equal(written["weight_packed"], pack_to_int32(integers, bits))
    assert 0 < (stands_for - weight).norm() / weight.norm() < error


def test_awq_interleaves_columns_and_gptq_packs_rows(weight):
    """Unpacked by hand, at one place each: AWQ's word of columns 0 to 7 holds column 2 second, GPTQ's word of rows row
    1.
    """
    written, stands_for = SCHEMES["awq"].write(weight)
    second = [(int(written[key][0, 0]) >> 4) & 15 for key in ("qweight", "qzeros")]
    assert float((second[0] - second[1]) * written["scales"][0, 2]) == pytest.approx(float(stands_for[2, 0]), rel=1e-6)
    written, stands_for = SCHEMES["gptq"].write(weight)
    second = (int(written["qweight"][0, 0]) >> 4) & 15
    assert float((second - 8) * written["scales"][0, 0]) == pytest.approx(float(stands_for[0, 1]), rel=1e-6)


def test_the_last_thing_raised_is_what_a_log_says():
    """Without the process's prefix, with its further lines, and not the progress bar that came after it."""
    log = "[rank0]: ValueError: first\n(W pid=1) a.b.ModelError: model: no\n(W pid=1)   remedy: yes\nLoading: 0%\n"
    assert last_raised(log) == "a.b.ModelError: model: no remedy: yes"
    assert last_raised("[rank0]: AssertionError\n") == "AssertionError"
    assert last_raised("ValueError: a\nprobes.errors.ArtifactMismatch: b\n") == "probes.errors.ArtifactMismatch: b"
    assert last_raised("killed\n") == "killed"
    assert last_raised("") == "no output"


def test_tables_stand_between_the_markers(tmp_path):
    """Figures, groups and reasons of what was found; a case that vLLM does not run shows its error; the rest stays."""
    document = tmp_path / "c.md"
    document.write_text(f"before {table.BEGIN} old {table.END} after")
    found = {"llama-float32": PARITY, "llama-bfloat16": "ValueError: no", "awq-bfloat16": PARITY}
    table.write(found, "Here.", document)
    text = document.read_text()
    assert text.startswith("before ")
    assert text.endswith(" after")
    assert "old" not in text
    row = "| Llama | AForCausalLM | 2.0e-07 / 4.0e-07 | none | — | — | FullAttentionSpec, 2 × MambaSpec | no neurons;"
    assert f"{row} bfloat16: `ValueError: no` |" in text
    assert "| AWQ | bfloat16 | 2.0e-07 / 4.0e-07 | none |" in text
    document.write_text("no markers")
    with pytest.raises(ValueError, match="lacks the markers"):
        table.write(found, "Here.", document)
