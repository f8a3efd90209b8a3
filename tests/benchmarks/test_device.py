"""The measurement on a device, as far as it needs none: its work, its order, its table, and engines of a tiny shape."""

import subprocess
import sys

import pytest

from benchmarks.gpu import report
from benchmarks.gpu.cells import CELLS, OUTPUT_TOKENS, Cell, fitting, measure
from benchmarks.gpu.shape import SHAPES
from benchmarks.records import Records
from guard.verdict import Action

ABOUT = {"device": "a device", "driver": "1", "vLLM": "0.26.0"}


class Planted:
    """An engine that takes a certain time, and remembers what it was asked."""

    def __init__(self, seconds):
        self.seconds = seconds
        self.asked = []

    def run(self, prompts, max_tokens):
        assert max_tokens == OUTPUT_TOKENS
        self.asked.append(prompts)
        return {"first_token": [self.seconds] * len(prompts), "per_token": [self.seconds / 10] * len(prompts)}


@pytest.fixture
def engines():
    return {"guarded": Planted(1.25), "unguarded": Planted(1.0)}


@pytest.fixture
def records(tmp_path):
    return Records(tmp_path / "pairs.jsonl", ABOUT)


def test_cells_are_those_that_the_cache_holds():
    """Every cell is held or named; a cell counts its prompts and its answers."""
    held, left_out = fitting(8 * (512 + OUTPUT_TOKENS))
    assert Cell(8, 512) in held
    assert Cell(32, 512) in left_out
    assert sorted(held + left_out, key=CELLS.index) == list(CELLS)


def test_both_engines_get_the_same_work(engines, records):
    """Prompts of a cell's number and length, the same for both, and never the same twice."""
    measure(engines, [Cell(2, 128)], records, pairs=3, vocabulary=1000, seconds=1e9)
    guarded, unguarded = (engines[name].asked for name in ("guarded", "unguarded"))
    assert guarded == unguarded
    assert {(len(batch), len(prompt)) for batch in guarded for prompt in batch} == {(2, 128)}
    assert len({tuple(prompt) for batch in guarded for prompt in batch}) == 2 * 4  # with those that warm up


def test_a_run_goes_on_where_it_stopped(engines, records, tmp_path):
    """Time that is over ends it before the next pair; a further run takes what is missing."""
    cells, said = [Cell(1, 128), Cell(8, 128)], []
    measure(engines, cells, records, pairs=2, vocabulary=1000, seconds=0, say=said.append)
    assert said
    assert not records.measures
    measure(engines, cells, records, pairs=1, vocabulary=1000, seconds=1e9)
    again = Records(tmp_path / "pairs.jsonl", ABOUT)
    measure(engines, cells, again, pairs=2, vocabulary=1000, seconds=1e9)
    assert [len(again.pairs(cell.name)) for cell in cells] == [2, 2]


def test_a_planted_ratio_is_in_the_table(engines, records, tmp_path):
    """With the device, the number of pairs, and what the cache did not hold."""
    measure(engines, [Cell(8, 128)], records, pairs=3, vocabulary=1000, seconds=1e9)
    document = tmp_path / "benchmarks.md"
    document.write_text(f"before\n{report.BEGIN}\nold\n{report.END}\nafter\n")
    report.write(records, [Cell(128, 8192)], document)
    text = document.read_text()
    assert "device a device; driver 1; vLLM 0.26.0." in text
    assert "| 8 x 128 | time to first token | 1.250 | 1.250 to 1.250 | 3 | 1000.00 ms |" in text
    assert "| 8 x 128 | time per token | 1.250 | 1.250 to 1.250 | 3 | 100.00 ms |" in text
    assert "Too large for the KV cache: 128 x 8192." in text
    assert "old" not in text


def test_the_shape_is_that_of_a_model_of_eight_billion(tmp_path):
    """As many parameters as Llama 3's, by the configuration that is written."""
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(SHAPES["8b"].write(tmp_path))
    width, kv = config.hidden_size, config.num_key_value_heads * (config.hidden_size // config.num_attention_heads)
    block = 2 * width * width + 2 * width * kv + 3 * width * config.intermediate_size
    assert 8.0e9 < config.num_hidden_layers * block + 2 * width * config.vocab_size < 8.1e9


def test_the_guard_of_a_shape_never_acts(tmp_path):
    """Its artifact loads, its policy binds, and no score that a probe could give is flagged."""
    config = SHAPES["tiny"].guard(tmp_path)
    policy = config.bind_policy(config.load_artifact())
    assert policy.judge([100.0] * len(policy.probes)).action is Action.ALLOW


@pytest.mark.engine
@pytest.mark.long
def test_real_engines_of_a_tiny_shape(tmp_path):
    """The whole measurement, on whatever there is: both engines, two loads, and the table in its document."""
    document = tmp_path / "benchmarks.md"
    document.write_text(f"{report.BEGIN}\n{report.END}\n")
    small = ["--shape", "tiny", "--pairs", "1", "--longest", "128", "--at-once", "8"]
    files = ["--work", str(tmp_path / "work"), "--document", str(document)]
    command = [sys.executable, "-m", "benchmarks.gpu", *small, *files, "--", "--enforce-eager"]
    subprocess.run(command, check=True)
    rows = [line for line in document.read_text().splitlines() if line.startswith(("| 1 x 128", "| 8 x 128"))]
    assert len(rows) == 4
