"""Which group of the KV cache scores are kept beside.

It touches, of `vllm/v1/kv_cache_interface.py`: `KVCacheConfig`, `FullAttentionSpec`, `UniformTypeKVCacheSpecs`.
"""

from vllm.v1.kv_cache_interface import FullAttentionSpec, KVCacheConfig, UniformTypeKVCacheSpecs

from probes.errors import ModelError


def scoring_group(kv_cache: KVCacheConfig) -> int:
    """Return the KV-cache group by whose slots scores are kept: the first that holds whole contexts.

    Gate and workers ask this of the same configuration. Raises `ModelError` where there is none.
    """
    for index, group in enumerate(kv_cache.kv_cache_groups):
        spec = group.kv_cache_spec
        own = spec.kv_cache_specs.values() if isinstance(spec, UniformTypeKVCacheSpecs) else [spec]
        if all(isinstance(each, FullAttentionSpec) for each in own):
            return index
    raise ModelError(
        "no layer of the model keeps the whole context in its KV cache, so scores cannot be kept beside it",
        field="model",
        remedy="if all its attention is in sliding windows, add `-- --disable-sliding-window`, with which prompts and "
        "answers end at the window; a model without attention cannot be guarded",
    )
