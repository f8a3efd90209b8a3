"""The KV cache and the scores beside it fit into the memory that vLLM found, by vLLM's own way of laying a cache
out.
"""

from math import prod

import pytest
import torch
from vllm.engine.arg_utils import EngineArgs
from vllm.v1.core.kv_cache_utils import get_kv_cache_configs
from vllm.v1.kv_cache_interface import FullAttentionSpec, MambaSpec, MLAAttentionSpec, SlidingWindowSpec

from serving.worker.kv_slots import KVSlots, room_for_cache, scoring_group
from tests.serving.lab import MODEL

AVAILABLE = 1 << 23
SHAPE = {"block_size": 16, "num_kv_heads": 2, "head_size": 32, "dtype": torch.bfloat16}


def full(**other):
    return FullAttentionSpec(**SHAPE | other)


def window():
    return SlidingWindowSpec(**SHAPE, sliding_window=64)


def state():
    return MambaSpec(
        block_size=256,
        shapes=((8, 16), (4,)),
        dtypes=(torch.float32, torch.float32),
        page_size_padded=full().page_size_bytes,
    )


MODELS = {
    "one kind": [full()] * 6,
    "other sizes": [full(), full(head_size=64), full(num_kv_heads=4)],
    "latent attention": [MLAAttentionSpec(**SHAPE | {"num_kv_heads": 1})] * 4,
    "windows, 2 to 10": [full()] * 2 + [window()] * 10,
    "windows, 3 to 3": [full()] * 3 + [window()] * 3,
    "windows, 3 to 2": [full()] * 3 + [window()] * 2,
    "windows, 2 to 3": [full()] * 2 + [window()] * 3,
    "states, 2 to 6": [full()] * 2 + [state()] * 6,
}


@pytest.fixture(scope="module")
def laid_out():
    """Vllm's own configuration of a cache for layers with these specs in so much memory."""
    config = EngineArgs(str(MODEL), max_model_len=256).create_engine_config()
    if hasattr(config.cache_config, "kv_cache_layout"):  # an engine resolves it before it measures
        config.cache_config.kv_cache_layout = "LBNHC"

    def laid_out(specs, available):
        layers = {f"model.layers.{number}.self_attn.attn": spec for number, spec in enumerate(specs)}
        (found,) = get_kv_cache_configs(config, [layers], [available])
        return found

    return laid_out


@pytest.mark.parametrize("channels", [1, 64, 500])
@pytest.mark.parametrize("name", MODELS)
def test_cache_and_scores_fit_together_and_leave_little(laid_out, name, channels):
    """For models of one kind of layer and of several; without room left for the scores they would not."""
    specs = MODELS[name]

    def taken(available):
        cache = laid_out(specs, available)
        slots = KVSlots(cache, torch.zeros(4, channels))
        assert cache.kv_cache_groups[scoring_group(cache)].kv_cache_spec.block_size == 16
        return max(tensor.size for tensor in cache.kv_cache_tensors) + prod(slots._rows.shape) * 4

    room = room_for_cache(AVAILABLE, specs, channels)
    assert 0.99 * AVAILABLE < taken(room) <= AVAILABLE < taken(AVAILABLE)


def test_a_cache_without_whole_contexts_is_left_alone():
    """Its model is refused, with a remedy, when the scores are to be allocated."""
    assert room_for_cache(AVAILABLE, [window()], 3) == AVAILABLE


@pytest.mark.parametrize("available", [0, 100])
def test_no_memory_is_no_room(available):
    """And not less than none."""
    assert room_for_cache(available, [full()], 64) == 0
