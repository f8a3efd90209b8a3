"""A recording that is killed, or that runs out of disk, loses nothing that was finished and ends with the same
bytes.
"""

import errno
import resource
import signal
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest
from safetensors import SafetensorError
from tiny import HIDDEN, LAYERS, make_prompts, write_prompts

from calibration.model.chat_model import ChatModel
from calibration.prompts.prompt_file import load_prompts
from calibration.prompts.template import encode_prompts
from calibration.recording import shards
from calibration.recording.activations import record
from calibration.recording.stage_file import room_for, write_whole
from probes.errors import CalibrationError

WHERE = (0, 2, "content")
SHARD_BYTES = 10 * 4 * LAYERS * HIDDEN * len(WHERE)

_VICTIM = """
import os, signal, sys
from pathlib import Path
model, prompts, folder, moment, count = sys.argv[1:6]
from calibration.recording import shards
from calibration.recording.activations import record
from calibration.model.chat_model import ChatModel
from calibration.prompts.prompt_file import load_prompts
from calibration.prompts.template import encode_prompts

left = int(count)
def die(*_):
    global left
    left -= 1
    if left == 0:
        os.kill(os.getpid(), signal.SIGKILL)

save, replace = shards.save_file, Path.replace
def half(tensors, path):
    save(tensors, path)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    die()
    path.write_bytes(whole)
def before_rename(self, target):
    die()
    return replace(self, target)

shards._SHARD_BYTES = SHARD_BYTES
chat = ChatModel.load(Path(model))
if moment == "reading":
    chat.blocks[1].register_forward_hook(die)
elif moment == "writing":
    shards.save_file = half
else:
    Path.replace = before_rename
encoded = encode_prompts(chat.tokenizer, load_prompts(Path(prompts)), 128)
record(chat, encoded, (0, 2, "content"), Path(folder))
""".replace("SHARD_BYTES = SHARD_BYTES", f"SHARD_BYTES = {SHARD_BYTES}")


@pytest.fixture
def prompts(tmp_path):
    """Sixty prompts."""
    return write_prompts(tmp_path / "p.jsonl", make_prompts(60, 3))


@pytest.fixture
def recorded(planted, prompts, monkeypatch):
    """Returns a function that records the prompts into a folder, and the bytes of its shards."""
    monkeypatch.setattr(shards, "_SHARD_BYTES", SHARD_BYTES)
    chat = ChatModel.load(planted.folder)
    encoded = encode_prompts(chat.tokenizer, load_prompts(prompts), 128)

    def into(folder):
        return [path.read_bytes() for path in record(chat, encoded, WHERE, folder).shards]

    return into


def test_killed_at_any_moment_it_goes_on_and_ends_the_same(planted, prompts, recorded, tmp_path):
    """SIGKILL in a forward pass, with half a shard written, and before its rename: each run goes on from the last."""
    whole, folder, finished = recorded(tmp_path / "whole"), tmp_path / "killed", 0
    for moment, count in (("reading", 3), ("writing", 2), ("renaming", 2)):
        command = [sys.executable, "-c", _VICTIM, planted.folder, prompts, folder, moment, str(count)]
        assert subprocess.run(list(map(str, command)), check=False).returncode == -signal.SIGKILL
        before, finished = finished, len(list(folder.glob("*.safetensors")))
        assert before < finished < len(whole)
    assert recorded(folder) == whole
    assert sorted(path.suffix for path in folder.iterdir()) == [".safetensors"] * len(whole)


@contextmanager
def files_no_larger_than(limit):
    """As a quota or a file system's limit would have it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_without_room_for_a_shard_it_says_so_and_keeps_what_is_finished(recorded, tmp_path):
    """The error names the folder and the remedy; the same call goes on when there is room, and ends the same."""
    whole, folder = recorded(tmp_path / "whole"), tmp_path / "full"
    recorded(folder)
    for path in sorted(folder.iterdir())[2:]:
        path.unlink()
    with files_no_larger_than(1000), pytest.raises(CalibrationError, match="too large") as caught:
        recorded(folder)
    assert caught.value.field == str(folder)
    assert "give the same command again" in caught.value.remedy
    assert [path.name for path in sorted(folder.iterdir())] == ["00000.safetensors", "00001.safetensors"]
    assert recorded(folder) == whole


def test_a_full_device_is_named(tmp_path):
    """The system's own "no space left", from a device that is always full, for text files too."""
    (tmp_path / "report.partial").symlink_to("/dev/full")
    with pytest.raises(CalibrationError, match=r"the disk is full: report\.json"):
        write_whole(tmp_path / "report.json", "x" * 10_000)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("error", [OSError(errno.EACCES, "no"), SafetensorError("I/O error: denied (os error 13)")])
def test_other_failures_stay_what_they_are(error):
    """A missing permission is no full disk."""
    with pytest.raises(type(error)), room_for(Path("x")):
        raise error
