"""Ways of running vLLM that are not guarded are refused by name, and what runs guarded is not."""

import json
from argparse import Namespace

import pytest

from probes.errors import ServingError
from serving.guardable import UNGUARDED, require_guardable
from serving.server import _parse
from tests.serving.lab import MODEL

REFUSED = {
    "--worker-cls": ["some.Worker"],
    "--scheduler-cls": ["some.Scheduler"],
    "--grpc": [],
    "--runner": ["pooling"],
    "--convert": ["embed"],
    "--speculative-config": [json.dumps({"method": "suffix", "num_speculative_tokens": 2})],
    "--pipeline-parallel-size": ["2"],
    "--decode-context-parallel-size": ["2"],
    "--prefill-context-parallel-size": ["2"],
    "--enable-elastic-ep": [],
    "--enable-dbo": [],
    "--ubatch-size": ["2"],
    "--kv-sharing-fast-prefill": [],
    "--enable-hc-sp": [],
    "--kv-transfer-config": [json.dumps({"kv_connector": "OffloadingConnector", "kv_role": "kv_both"})],
    "--kv-offloading-size": ["1"],
    "--diffusion-config": [json.dumps({"canvas_length": 8})],
}
GUARDED = [
    [],
    ["--async-scheduling"],
    ["--tensor-parallel-size", "2"],
    ["--data-parallel-size", "2"],
    ["--enable-lora", "--lora-modules", "a=somewhere"],
    ["--speculative-config", json.dumps({"method": "ngram", "num_speculative_tokens": 2})],
    ["--speculative-config", json.dumps({"method": "draft_model", "model": "m", "num_speculative_tokens": 2})],
    ["--kv-transfer-config", json.dumps({"kv_connector": "ExampleConnector", "kv_role": "kv_both"})],
    ["--no-enable-prefix-caching", "--enforce-eager"],
]


@pytest.mark.parametrize("flag", REFUSED)
def test_what_is_not_guarded_is_refused(flag):
    """The error names the flag, the reason and what to do instead."""
    with pytest.raises(ServingError) as caught:
        require_guardable(_parse([str(MODEL), flag, *REFUSED[flag]]))
    assert caught.value.field == flag
    assert caught.value.remedy


@pytest.mark.parametrize("flags", GUARDED)
def test_what_is_guarded_is_not_refused(flags):
    """Nothing that a test shows to be guarded is turned away."""
    require_guardable(_parse([str(MODEL), *flags]))


def test_every_refusal_is_tried_here():
    """But for what the installed vLLM does not know."""
    assert {each.flag for each in UNGUARDED} - set(REFUSED) == {"--compilation-config", "--monokernel"}


@pytest.mark.parametrize(
    ("flag", "args"),
    [
        ("--compilation-config", {"compilation_config": Namespace(pass_config=Namespace(enable_sp=True))}),
        ("--compilation-config", {"compilation_config": Namespace(pass_config=Namespace(fuse_gemm_comms=True))}),
        ("--monokernel", {"monokernel": True}),
    ],
)
def test_what_other_versions_know_is_refused(flag, args):
    """Sequence parallelism by a compiler pass is in versions before 0.32, kernels of whole blocks in those after."""
    parsed = _parse([str(MODEL)])
    with pytest.raises(ServingError) as caught:
        require_guardable(Namespace(**{**vars(parsed), **args}))
    assert caught.value.field == flag
