"""What vLLM resolved, whoever said so, is held against the settings under which the guard was tried."""

from types import SimpleNamespace

import pytest
from vllm.engine.arg_utils import EngineArgs

from probes.errors import ServingError
from serving.guarded_settings import _ABSENT, SETTINGS, _at, require_guarded_config
from tests.serving.lab import MODEL

UNGUARDED = {
    "model_config.runner_type": "pooling",
    "model_config.convert_type": "embed",
    "speculative_config": SimpleNamespace(method="suffix"),
    "parallel_config.pipeline_parallel_size": 2,  # on a CPU
    "compilation_config.pass_config.enable_sp": True,
    "compilation_config.pass_config.fuse_gemm_comms": True,
    "parallel_config.enable_hc_sp": True,
    "kv_transfer_config": SimpleNamespace(kv_connector="OffloadingConnector", kv_connector_module_path=None),
    "kv_transfer_config.kv_connector_module_path": "some.module",
    "load_config.load_format": "dummy",
    "cache_config.prefix_caching_hash_algo": "xxhash",
    "parallel_config.decode_context_parallel_size": 2,
    "parallel_config.prefill_context_parallel_size": 2,
    "parallel_config.enable_dbo": True,
    "parallel_config.ubatch_size": 2,
    "cache_config.kv_sharing_fast_prefill": True,
    "kv_events_config": SimpleNamespace(enable_kv_cache_events=True),
    "ec_transfer_config": SimpleNamespace(),
    "diffusion_config": SimpleNamespace(),
}
"""As a plugin, a platform or a later version might set them, past the command line."""
GUARDED = {
    "speculative_config": SimpleNamespace(method="ngram"),
    "kv_transfer_config": SimpleNamespace(kv_connector="ExampleConnector", kv_connector_module_path=None),
    "kv_events_config": SimpleNamespace(enable_kv_cache_events=False),
}


@pytest.fixture(scope="module")
def resolved():
    """What vLLM makes of a command line that has the model alone."""
    return EngineArgs(str(MODEL), max_model_len=256, gpu_memory_utilization=0.1).create_engine_config()


class Changed:
    """A configuration with one value of its own."""

    def __init__(self, config, path, value):
        name, _, rest = path.partition(".")
        self._config = config
        if not rest:
            setattr(self, name, value)
            return
        owner = getattr(config, name) or SimpleNamespace(kv_connector="ExampleConnector")
        setattr(self, name, Changed(owner, rest, value))

    def __getattr__(self, name):
        return getattr(self._config, name)


def test_a_server_as_it_comes_is_guarded(resolved):
    """Nothing is refused of what vLLM chooses by itself, and each setting is found, but for two of earlier versions."""
    require_guarded_config(resolved)
    absent = {each.path for each in SETTINGS if _at(resolved, each.path) is _ABSENT}
    assert absent == {f"compilation_config.pass_config.{name}" for name in ("enable_sp", "fuse_gemm_comms")}
    assert not any(each.in_every_version for each in SETTINGS if each.path in absent)


@pytest.mark.parametrize("path", GUARDED)
def test_values_that_were_tried_are_guarded(resolved, path):
    """Of parts that vLLM has only where somebody asks for them."""
    require_guarded_config(Changed(resolved, path, GUARDED[path]))


@pytest.mark.parametrize("path", UNGUARDED)
def test_a_value_that_is_not_guarded_is_refused(resolved, path):
    """The error names the setting, its value and the remedy."""
    with pytest.raises(ServingError) as caught:
        require_guarded_config(Changed(resolved, path, UNGUARDED[path]))
    assert caught.value.field.startswith(f"vllm.{path}")
    assert caught.value.problem.startswith("is ")
    assert caught.value.remedy


def test_every_setting_is_tried_here():
    """A new row needs a value that it refuses."""
    tried = {each.path for each in SETTINGS for path in UNGUARDED if each.path.startswith(path)}
    assert tried == {each.path for each in SETTINGS}


ALWAYS_THERE = {"model_config", "parallel_config", "load_config", "cache_config"}


class Renamed:
    """A configuration without one of its settings."""

    def __init__(self, config, path):
        self._config, self._name, self._rest = config, *path.partition(".")[::2]

    def __getattr__(self, name):
        if name == self._name and not self._rest:
            raise AttributeError(name)
        found = getattr(self._config, name)
        return Renamed(found, self._rest) if name == self._name else found


@pytest.mark.parametrize(
    "path", [each.path for each in SETTINGS if each.in_every_version and each.path.partition(".")[0] in ALWAYS_THERE]
)
def test_a_setting_that_was_renamed_is_not_taken_for_unset(resolved, path):
    """A version of vLLM in which the guard cannot find a setting is refused, and not believed to be guarded."""
    with pytest.raises(ServingError, match="no such setting") as caught:
        require_guarded_config(Renamed(resolved, path))
    assert caught.value.field == f"vllm.{path}"
