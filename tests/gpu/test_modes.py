"""The table of engines is one that vLLM understands; this much needs no device."""

import pytest
from vllm.config.compilation import CUDAGraphMode
from vllm.engine.arg_utils import EngineArgs
from vllm.utils.argparse_utils import FlexibleArgumentParser

from serving.launch.guardable import require_guardable
from tests.gpu.modes import MODES, graphs_of
from tests.serving.lab import MODEL


@pytest.fixture(scope="module")
def parser():
    return EngineArgs.add_cli_args(FlexibleArgumentParser())


@pytest.mark.parametrize("mode", MODES, ids=str)
def test_a_mode_is_what_its_flags_say(parser, mode):
    """Its own parser makes the CUDA graphs, scheduling and cache of it that the table means; and it is not refused."""
    parsed, defaults = (parser.parse_args(["--model", str(MODEL), *flags]) for flags in (mode.flags, ()))
    args = EngineArgs.from_cli_args(parsed)
    assert args.compilation_config.cudagraph_mode is CUDAGraphMode[graphs_of(mode)]
    assert args.async_scheduling is mode.asynchronous
    assert args.enforce_eager is ("eager" in mode.name)
    assert args.num_gpu_blocks_override == (36 if "starved" in mode.name else 1024)
    require_guardable(parsed, defaults)


def test_every_kind_of_graph_is_there_on_both_runners():
    """Full, piecewise, none, and the default; with either scheduling."""
    kinds = {"FULL", "PIECEWISE", "NONE", "FULL_AND_PIECEWISE"}
    for v2 in (True, False):
        own = [mode for mode in MODES if mode.v2 is v2]
        assert {graphs_of(mode) for mode in own} == kinds
        assert {mode.asynchronous for mode in own} == {True, False}
