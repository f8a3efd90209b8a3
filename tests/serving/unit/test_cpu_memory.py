"""The KV cache that a CPU server takes where nobody says how large: one that fits."""

from argparse import Namespace

import pytest
from vllm.engine.arg_utils import EngineArgs

from probes.errors import ServingError
from serving.launch import cpu_memory
from serving.launch.cpu_memory import SPACE, choose_kv_cache, free_memory

GIB = 1 << 30


@pytest.fixture(autouse=True)
def nothing_said(monkeypatch):
    monkeypatch.delenv(SPACE, raising=False)


@pytest.fixture
def limited(tmp_path, monkeypatch):
    """Return a function that puts this process into a control group of so many bytes, of which some are used.

    The machine around it has more, whatever else runs on it now.
    """
    monkeypatch.setattr(cpu_memory, "_CGROUP", tmp_path)
    monkeypatch.setattr(cpu_memory.psutil, "virtual_memory", lambda: Namespace(available=64 * GIB))

    def limited(most: int | str, used: int) -> None:
        (tmp_path / "memory.max").write_text(f"{most}\n")
        (tmp_path / "memory.current").write_text(f"{used}\n")

    return limited


def arguments(**said) -> Namespace:
    names = ("kv_cache_memory_bytes", "gpu_memory_utilization", "data_parallel_size_local", "data_parallel_size",
             "tensor_parallel_size")  # fmt: skip
    return Namespace(**{name: getattr(EngineArgs, name) for name in names} | said)


@pytest.fixture
def weights(tmp_path):
    """A model folder whose weights take half a gibibyte; the file is sparse."""
    folder = tmp_path / "model"
    folder.mkdir()
    with (folder / "model.safetensors").open("wb") as file:
        file.truncate(GIB // 2)
    return folder


def test_half_of_what_the_weights_leave_free(limited, weights):
    """Of 3 GiB free, half a one for the weights and half a one for the worker, the cache takes 1; the words say so."""
    limited(4 * GIB, GIB)
    args = arguments()
    said = choose_kv_cache(args, weights)
    assert args.kv_cache_memory_bytes == GIB
    assert said.startswith("KV cache: 1.0 GiB, half of the memory")
    assert "--kv-cache-memory-bytes" in said


def test_workers_share_it(limited, weights):
    """Two replicas of two workers each hold the weights twice, and each worker's cache is a fourth of the half."""
    limited(11 * GIB, 0)
    args = arguments(tensor_parallel_size=2, data_parallel_size=2)
    assert "a worker" in choose_kv_cache(args, weights)
    assert args.kv_cache_memory_bytes == (11 * GIB - GIB - 2 * GIB) // 8


@pytest.mark.parametrize("said", [{"kv_cache_memory_bytes": 123}, {"gpu_memory_utilization": 0.3}])
def test_what_was_said_stands(said, weights):
    """A size or a share that the operator gives is left as it is."""
    args = arguments(**said)
    assert choose_kv_cache(args, weights) is None
    assert vars(args) == vars(arguments(**said))


def test_vllm_s_own_variable_stands(monkeypatch, weights):
    """`VLLM_CPU_KVCACHE_SPACE` is read by vLLM itself."""
    monkeypatch.setenv(SPACE, "2")
    args = arguments()
    assert choose_kv_cache(args, weights) is None
    assert args.kv_cache_memory_bytes is None


def test_no_room_is_said_before_anything_is_loaded(limited, weights):
    """The error names what is free and what the weights take."""
    limited(GIB, 0)
    with pytest.raises(ServingError, match=r"1\.0 GiB of memory are free, and the weights take 0\.5"):
        choose_kv_cache(arguments(), weights)


def test_a_group_without_a_limit_has_the_machine_s_memory(limited):
    """`max` is no number, and a machine without control groups has no such files."""
    limited("max", GIB)
    assert free_memory() > 0
