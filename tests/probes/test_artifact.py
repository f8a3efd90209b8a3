"""Artifacts come back as they were written, or not at all."""

import hashlib
import json
import os
import shutil
import struct
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from safetensors.torch import load_file, save

from probes.artifact import BENIGN_SCORES, MANIFEST, TENSORS, Artifact
from probes.errors import ArtifactCorrupt, ArtifactError, SchemaTooNew
from probes.manifest import EMBEDDINGS, Evaluation, Manifest, Probe, Rate, SteeringVector
from probes.readout import Readout

PROBE = {"method": "m", "layers": (0,)}


@pytest.fixture
def saved(make, tmp_path):
    """A folder that holds a good artifact."""
    make().save(tmp_path / "artifact")
    return tmp_path / "artifact"


def edit(folder, *path, value):
    """Set one key of the manifest, without sealing it again."""
    content = json.loads((folder / MANIFEST).read_text())
    place = content
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    (folder / MANIFEST).write_text(json.dumps(content))


def reseal(folder, raw=None):
    """Make the manifest's digests true again, as an attacker or another tool would: the digests are no signature."""
    if raw is not None:
        (folder / TENSORS).write_bytes(raw)
    content = json.loads((folder / MANIFEST).read_text())
    content["tensors_sha256"] = hashlib.sha256((folder / TENSORS).read_bytes()).hexdigest()
    content["digest"] = digest_of(content)
    (folder / MANIFEST).write_text(json.dumps(content))


def digest_of(content):
    """The digest of a manifest by the rule of docs/artifact.md, with nothing but the standard library."""
    rest = {key: value for key, value in content.items() if key != "digest"}
    return hashlib.sha256(json.dumps(rest, separators=(",", ":"), ensure_ascii=False).encode()).hexdigest()


def test_round_trip(make, tmp_path):
    """Manifest and tensors come back equal to the bit, and the digest names the content, not the place or the time."""
    artifact = make()
    sealed = artifact.save(tmp_path / "new" / "deep" / "artifact")
    back = Artifact.load(tmp_path / "new" / "deep" / "artifact")
    assert back.manifest == sealed
    assert back.manifest.model_dump(exclude={"digest", "tensors_sha256"}) == artifact.manifest.model_dump(
        exclude={"digest", "tensors_sha256"}
    )
    assert back.tensors.keys() == artifact.tensors.keys()
    assert all(torch.equal(back.tensors[name], artifact.tensors[name]) for name in artifact.tensors)
    assert back.save(tmp_path / "again").digest == sealed.digest


def test_all_that_a_manifest_can_say_round_trips(make, tmp_path):
    """Nested records, floats that need all their digits, and text outside ASCII."""
    rate = Rate(value=1 / 3, low=1e-17, high=1e300, count=7)
    evaluation = Evaluation(
        split="test",
        num_harmful=3,
        num_harmless=4,
        auroc=0.1 + 0.2,
        auroc_low=5e-324,
        auroc_high=1.0,
        tpr_at_fpr={"0.01": rate},
    )
    probe = Probe(name="p", layers=(0, 3), method="Zürich ☃", evaluation=(evaluation,), evidence={"kl": 1e-7})
    sealed = make(probes=(probe,), name="naïve ☃", tools={"torch": "2"}).save(tmp_path / "a")
    assert Artifact.load(tmp_path / "a").manifest == sealed


def test_files_are_plain(saved):
    """Safetensors' own reader and a JSON reader are enough: two files, float32 tensors, and the manifest's digests."""
    assert sorted(path.name for path in saved.iterdir()) == [MANIFEST, TENSORS]
    tensors = load_file(saved / TENSORS)
    assert sorted(tensors) == [
        "probe.harm.weight",
        "probe.refusal.weight",
        "scores.harmful",
        "scores.harmless",
        "steering.refusal.vector",
    ]
    assert {tensor.dtype for tensor in tensors.values()} == {torch.float32}
    content = json.loads((saved / MANIFEST).read_text())
    assert content["tensors_sha256"] == hashlib.sha256((saved / TENSORS).read_bytes()).hexdigest()
    assert content["digest"] == digest_of(content)


def test_digest_can_be_recomputed_from_the_file_alone(make, tmp_path):
    """Any JSON tool can check the digest, also where numbers are tiny: it is over the file's content, not over a
    model.
    """
    make(probes=(Probe(name="p", evidence={"kl": 1e-7, "norm": 1e22}, **PROBE),)).save(tmp_path / "a")
    content = json.loads((tmp_path / "a" / MANIFEST).read_text())
    assert content["digest"] == digest_of(content)


@pytest.mark.parametrize("length", [0, 1, 7, 8, 64, -1])
def test_truncated_tensors(saved, length):
    """A download that stopped early is refused, wherever it stopped."""
    raw = (saved / TENSORS).read_bytes()
    (saved / TENSORS).write_bytes(raw[:length])
    with pytest.raises(ArtifactCorrupt) as caught:
        Artifact.load(saved)
    assert caught.value.field == "tensors_sha256"


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_one_flipped_bit(saved, data):
    """Whichever bit of the tensors is flipped, the artifact is refused."""
    raw = (saved / TENSORS).read_bytes()
    flipped = bytearray(raw)
    flipped[data.draw(st.integers(0, len(raw) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    (saved / TENSORS).write_bytes(flipped)
    try:
        with pytest.raises(ArtifactCorrupt):
            Artifact.load(saved)
    finally:
        (saved / TENSORS).write_bytes(raw)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("name",), "other"),
        (("probes", 0, "bias"), 0.26),
        (("probes", 0, "platt", "slope"), -2.0),
        (("probes", 1, "readout", "kind"), "max"),
        (("steering", 0, "norm"), 3.0),
        (("fingerprint", "weights"), "1" * 64),
        (("digest",), "0" * 64),
    ],
)
def test_edited_manifest(saved, path, value):
    """A manifest changed by hand is refused, whatever was changed."""
    edit(saved, *path, value=value)
    with pytest.raises(ArtifactCorrupt) as caught:
        Artifact.load(saved)
    assert caught.value.field == "digest"


@pytest.mark.parametrize(
    ("path", "value", "field"),
    [
        (("unknown",), 1, "unknown"),
        (("probes", 0, "unknown"), 1, "probes.0.unknown"),
        (("probes", 0, "name"), "Bad Name", "probes.0.name"),
        (("probes", 0, "name"), "../../etc", "probes.0.name"),
        (("probes", 0, "layers"), [], "probes.0.layers"),
        (("probes", 0, "layers"), [2, 1], "probes.0"),
        (("probes", 0, "layers"), [1, 1], "probes.0"),
        (("probes", 0, "layers"), [-2], "probes.0"),
        (("probes", 0, "layers"), [4], "manifest.json"),
        (("probes", 0, "name"), "harm", "manifest.json"),
        (("probes", 0, "bias"), float("nan"), "probes.0.bias"),
        (("probes", 0, "bias"), float("inf"), "probes.0.bias"),
        (("probes", 0, "readout", "alpha"), float("nan"), "probes.0.readout.alpha"),
        (("probes", 0, "site"), "attention", "probes.0.site"),
        (("steering", 0, "operator"), "multiply", "steering.0.operator"),
        (("fingerprint", "hidden_size"), "wide", "fingerprint.hidden_size"),
        (("probes",), None, "probes"),
        (("canary",), {"nobody": 1.0}, "manifest.json"),
        (("canary",), {"harm": float("nan")}, "canary.harm"),
    ],
)
def test_malformed_manifest(saved, path, value, field):
    """The error names the field that is wrong."""
    edit(saved, *path, value=value)
    reseal(saved)
    with pytest.raises(ArtifactCorrupt) as caught:
        Artifact.load(saved)
    assert caught.value.field == field
    assert "calibrate" in caught.value.remedy


def test_embeddings_have_a_stream_and_no_neurons():
    """A probe may read the stream that enters the first block; there is no block, and so no neuron, before it."""
    assert Probe(name="p", method="m", layers=(EMBEDDINGS, 0)).layers == (-1, 0)
    with pytest.raises(ValidationError, match="not below 0"):
        Probe(name="p", method="m", layers=(EMBEDDINGS,), site="mlp_neurons", width=4)


@pytest.mark.parametrize("layers", [(2, 1), (1, 1), (-1,)])
def test_steering_layers_are_as_strict_as_probes(layers):
    """A negative or repeated block would steer another block than the manifest says."""
    with pytest.raises(ValidationError, match="layers"):
        SteeringVector(name="v", method="m", layers=layers, norm=1.0, cos_refusal=0.0)


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "\x00", "[" * 100_000, '{"schema_version": 1}'])
def test_manifest_that_is_no_manifest(saved, text):
    """Not JSON, not an object, or far too deep: all are the same clear error."""
    (saved / MANIFEST).write_text(text)
    with pytest.raises(ArtifactCorrupt):
        Artifact.load(saved)


def test_newer_schema_is_told_apart_from_corruption(saved):
    """A newer artifact, which may have keys that this version does not know, says that an upgrade is the remedy."""
    edit(saved, "brand_new_key", value=[1, 2])
    edit(saved, "schema_version", value=2)
    with pytest.raises(SchemaTooNew, match="newer than 1") as caught:
        Artifact.load(saved)
    assert "upgrade" in caught.value.remedy


@pytest.mark.parametrize("version", [0, -1, 2.0, "2", None])
def test_schema_versions_that_never_were(saved, version):
    """A version is the integer 1 or it is refused, also when both digests are made to fit."""
    edit(saved, "schema_version", value=version)
    reseal(saved)
    with pytest.raises(ArtifactError) as caught:
        Artifact.load(saved)
    assert caught.value.field == "schema_version"


def without(tensors):
    """One tensor too few."""
    del tensors["probe.harm.weight"]


def with_another(tensors):
    """One tensor too many."""
    tensors["probe.extra.weight"] = torch.zeros(1, 1, 6)


ATTACKS = {
    "missing": (without, TENSORS),
    "unexpected": (with_another, TENSORS),
    "wide": (lambda t: t.update({"probe.harm.weight": torch.zeros(2, 1, 7)}), "probe.harm.weight"),
    "transposed": (lambda t: t.update({"probe.harm.weight": torch.zeros(6, 1, 2)}), "probe.harm.weight"),
    "without channels": (lambda t: t.update({"probe.harm.weight": torch.zeros(2, 6)}), "probe.harm.weight"),
    "flat": (lambda t: t.update({"probe.harm.weight": torch.zeros(12)}), "probe.harm.weight"),
    "scalar": (lambda t: t.update({BENIGN_SCORES: torch.tensor(1.0)}), BENIGN_SCORES),
    "columns": (lambda t: t.update({BENIGN_SCORES: torch.zeros(8, 3)}), BENIGN_SCORES),
    "double": (lambda t: t.update({"probe.harm.weight": torch.zeros(2, 1, 6).double()}), "probe.harm.weight"),
    "integer": (lambda t: t.update({BENIGN_SCORES: torch.zeros(8, 2).int()}), BENIGN_SCORES),
    "NaN": (lambda t: t["steering.refusal.vector"].view(-1)[3:4].fill_(torch.nan), "steering.refusal.vector"),
    "infinite": (lambda t: t["scores.harmful"].view(-1)[0:1].fill_(-torch.inf), "scores.harmful"),
}


@pytest.mark.parametrize("attack", ATTACKS)
def test_wrong_tensors_with_right_digests(saved, attack):
    """Digests that fit do not help: shapes, dtypes and values are checked one by one, and the tensor is named."""
    change, field = ATTACKS[attack]
    tensors = load_file(saved / TENSORS)
    change(tensors)
    reseal(saved, save(tensors))
    with pytest.raises(ArtifactCorrupt) as caught:
        Artifact.load(saved)
    assert caught.value.field == field


@pytest.mark.parametrize("attack", ATTACKS)
def test_wrong_tensors_are_not_even_written(make, tmp_path, attack):
    """`save` holds to what `load` demands, and leaves nothing behind when it refuses."""
    change, field = ATTACKS[attack]
    artifact = make()
    change(artifact.tensors)
    with pytest.raises(ArtifactCorrupt) as caught:
        artifact.save(tmp_path / "artifact")
    assert caught.value.field == field
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"\x80\x04K\x01.",
        struct.pack("<Q", 2**63) + b"{}",
        struct.pack("<Q", 5) + b"{{{{{",
        struct.pack("<Q", 100) + json.dumps({"a": {"dtype": "F32", "shape": [4], "data_offsets": [0, 999]}}).encode(),
    ],
    ids=["empty", "pickle", "huge header", "not JSON", "offsets past the end"],
)
def test_tensor_files_that_are_none(saved, raw):
    """Bytes that are not safetensors are an error of ours, never a crash and never unpickled."""
    reseal(saved, raw)
    with pytest.raises(ArtifactCorrupt) as caught:
        Artifact.load(saved)
    assert caught.value.field == TENSORS


@pytest.mark.parametrize("missing", [MANIFEST, TENSORS])
def test_missing_file(saved, missing):
    """The error names the file."""
    (saved / missing).unlink()
    with pytest.raises(ArtifactCorrupt) as caught:
        Artifact.load(saved)
    assert caught.value.field == missing


@pytest.mark.parametrize("kind", ["nothing", "file", "empty folder"])
def test_not_an_artifact_folder(tmp_path, kind):
    """A wrong path says what a right one would be."""
    path = tmp_path / "x"
    if kind == "file":
        path.write_text("hello")
    elif kind == "empty folder":
        path.mkdir()
    with pytest.raises(ArtifactCorrupt, match="cannot read") as caught:
        Artifact.load(path)
    assert "foreguard calibrate" in caught.value.remedy


def test_duplicate_names_and_deep_layers_never_become_a_manifest(fingerprint):
    """Names tell tensors apart, so they must be unique; a layer must exist."""
    content = {"name": "a", "created": "", "fingerprint": fingerprint}
    probe = Probe(name="p", **PROBE)
    vector = SteeringVector(name="v", method="m", layers=(9,), norm=1.0, cos_refusal=0.0)
    with pytest.raises(ValidationError, match="probes: names must be unique"):
        Manifest(probes=(probe, probe), **content)
    with pytest.raises(ValidationError, match="layer 9 does not exist in a model of 4"):
        Manifest(probes=(probe,), steering=(vector,), **content)


def test_tensors_that_share_storage_can_be_saved(make, tmp_path):
    """Weights cut out of one stacked tensor, or one tensor under two names, are written out each in full."""
    artifact = make()
    stack = torch.randn(3, 1, 6)
    artifact.tensors["probe.refusal.weight"] = stack[0:1]
    artifact.tensors["probe.harm.weight"] = stack[0:2]
    artifact.save(tmp_path / "a")
    assert torch.equal(Artifact.load(tmp_path / "a").tensors["probe.harm.weight"], stack[0:2])


HEADS = {
    "attention": Probe(name="p", channels=4, readout=Readout(kind="attention"), **PROBE),
    "mlp": Probe(name="p", channels=5, head="mlp", **PROBE),
    "mahalanobis": Probe(name="p", channels=3, head="mahalanobis", **PROBE),
    "neurons": Probe(name="p", site="mlp_neurons", width=11, **PROBE),
}


@pytest.mark.parametrize("name", HEADS)
def test_every_kind_of_probe_round_trips(make, tmp_path, name):
    """Weights of several channels and another width, and the heads' tensors."""
    artifact = make(probes=(HEADS[name],))
    artifact.save(tmp_path / "a")
    back = Artifact.load(tmp_path / "a")
    assert back.manifest.probes == artifact.manifest.probes
    assert all(torch.equal(back.tensors[name], artifact.tensors[name]) for name in artifact.tensors)


@pytest.mark.parametrize("name", HEADS)
def test_a_probe_s_tensors_fit_its_description(make, tmp_path, name):
    """One channel fewer, and every tensor of that probe is of the wrong shape."""
    artifact = make(probes=(HEADS[name],))
    for tensor_name in HEADS[name].shapes(6):
        tensors = dict(artifact.tensors)
        tensors[tensor_name] = tensors[tensor_name][..., 1:].clone()
        with pytest.raises(ArtifactCorrupt) as caught:
            replace(artifact, tensors=tensors).save(tmp_path / "a")
        assert caught.value.field == tensor_name


def test_replacing_leaves_the_new_artifact_alone(make, tmp_path):
    """After a second save only the new artifact is there, and no staging folder beside it."""
    make(seed=1).save(tmp_path / "artifact")
    second = make(seed=2).save(tmp_path / "artifact")
    assert Artifact.load(tmp_path / "artifact").manifest == second
    assert [path.name for path in tmp_path.iterdir()] == ["artifact"]


def test_a_write_that_fails_keeps_the_old_artifact(make, tmp_path, monkeypatch):
    """A full disk loses nothing, and leaves no half-written folder behind."""
    first = make(seed=1).save(tmp_path / "artifact")

    def full(path, *_args, **_options):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pathlib.Path.write_text", full)
    with pytest.raises(OSError, match="No space"):
        make(seed=2).save(tmp_path / "artifact")
    monkeypatch.undo()
    assert Artifact.load(tmp_path / "artifact").manifest == first
    assert [path.name for path in tmp_path.iterdir()] == ["artifact"]


DIE = """
import os, sys
from pathlib import Path
from probes.artifact import Artifact
source, target, calls = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
replace, rename = os.replace, os.rename
def dying(function):
    def call(*args, **options):
        global calls
        if not calls:
            os._exit(9)
        calls -= 1
        return function(*args, **options)
    return call
os.replace, os.rename = dying(replace), dying(rename)
Artifact.load(source).save(target)
"""


@pytest.mark.parametrize("calls", [0, 1])
def test_a_process_that_dies_while_replacing_leaves_an_artifact(make, tmp_path, calls):
    """Killed at any rename, the folder still holds the old artifact or already the new one, never nothing."""
    old, new = make(seed=1).save(tmp_path / "artifact"), make(seed=2).save(tmp_path / "source")
    command = [sys.executable, "-c", DIE, tmp_path / "source", tmp_path / "artifact", str(calls)]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=60)
    assert done.returncode in (0, 9), done.stderr
    assert Artifact.load(tmp_path / "artifact").manifest in (old, new)


def test_a_reader_beside_a_writer_sees_one_of_the_two(make, tmp_path):
    """A server that starts while an artifact is replaced loads the old one or the new one, whole."""
    folder = tmp_path / "artifact"
    artifacts = [make(seed=seed) for seed in (1, 2)]
    digests = {artifact.save(folder).digest for artifact in artifacts}
    done = threading.Event()

    def write():
        for turn in range(150):
            artifacts[turn % 2].save(folder)
        done.set()

    writer = threading.Thread(target=write)
    writer.start()
    failures = []
    while not done.is_set():
        try:
            assert Artifact.load(folder).manifest.digest in digests
        except ArtifactCorrupt as error:
            failures.append(str(error))
    writer.join()
    assert not failures, f"{len(failures)} loads failed; the first: {failures[0]}"


def test_text_outside_ascii_is_utf8_whatever_the_locale(make, tmp_path):
    """A manifest is UTF-8, also where the process's locale is not."""
    make(name="Prüfung ☃").save(tmp_path / "source")
    code = "import sys; from pathlib import Path; from probes.artifact import Artifact; "
    code += "Artifact.load(Path(sys.argv[1])).save(Path(sys.argv[2]))"
    environment = {**os.environ, "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    command = [sys.executable, "-c", code, tmp_path / "source", tmp_path / "copy"]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=60, env=environment)
    assert done.returncode == 0, done.stderr.splitlines()[-1]
    assert Artifact.load(tmp_path / "copy").manifest.name == "Prüfung ☃"


def test_documented_reader_reads(saved, monkeypatch):
    """The code of docs/artifact.md, run as it stands, checks the digest and finds every tensor."""
    document = (Path(__file__).parents[2] / "docs" / "artifact.md").read_text()
    code = document.split("```python\n")[1].split("```")[0]
    monkeypatch.chdir(saved.parent)
    names: dict[str, object] = {}
    exec(code, names)  # noqa: S102 (our own document)
    assert set(names["tensors"]) == set(Artifact.load(saved).tensors)


def test_documented_bytes_are_the_bytes(make, tmp_path):
    """The example of docs/artifact.md: the header's length, and where the data begins."""
    probe = Probe(name="harm", method="m", layers=(1,))
    make(probes=(probe,), steering=(), benign=3, harmful=2).save(tmp_path / "a")
    raw = (tmp_path / "a" / TENSORS).read_bytes()
    document = (Path(__file__).parents[2] / "docs" / "artifact.md").read_text()
    begin = document.index('{"probe.harm.weight"')
    header = "".join(line.strip() for line in document[begin : document.index("\ne0 ", begin)].splitlines())
    assert struct.unpack("<Q", raw[:8])[0] == 216
    assert raw[8:224].decode() == header
    assert len(raw) == 0xE0 + 24 + 8 + 12


def test_documentation_names_every_key():
    """docs/artifact.md has each key of the manifest, at every depth."""
    document = (Path(__file__).parents[2] / "docs" / "artifact.md").read_text()
    schema = Manifest.model_json_schema()
    keys = set(schema["properties"]).union(*(part.get("properties", {}) for part in schema["$defs"].values()))
    assert {key for key in keys if f"`{key}`" not in document} == set()


def test_attachments_go_along_and_come_back(make, tmp_path):
    """A file that no server reads is kept byte for byte, and the artifact's digest covers it."""
    artifact = replace(make(), attachments={"evidence.json": b"{}\n"})
    sealed = artifact.save(tmp_path / "artifact")
    assert Artifact.load(tmp_path / "artifact").attachments == {"evidence.json": b"{}\n"}
    assert sealed.digest != make().save(tmp_path / "other").digest


@pytest.mark.parametrize("harm", ["changed", "missing"])
def test_an_attachment_that_is_not_the_one_described_is_refused(make, tmp_path, harm):
    """The error names the file."""
    replace(make(), attachments={"evidence.json": b"{}"}).save(tmp_path / "artifact")
    path = tmp_path / "artifact" / "evidence.json"
    path.write_text("{ }") if harm == "changed" else path.unlink()
    with pytest.raises(ArtifactCorrupt, match=r"evidence\.json"):
        Artifact.load(tmp_path / "artifact")


@pytest.mark.parametrize("name", ["../evidence.json", "/etc/passwd", "a/b.json", ".json", "Evidence.json"])
def test_an_attachment_cannot_lie_outside_the_folder(make, name):
    """Names are plain file names, so that a manifest cannot make anyone read elsewhere."""
    with pytest.raises(ValidationError):
        Manifest.model_validate(make().manifest.model_dump() | {"attachments": {name: "0"}})


def fifo(file, _tmp_path):
    file.unlink()
    os.mkfifo(file)


def link(file, target):
    file.unlink()
    file.symlink_to(target)


def link_out(file, tmp_path):
    """The right bytes, and somebody else's file."""
    shutil.copy(file, tmp_path / "copy")
    link(file, tmp_path / "copy")


def huge(file, _tmp_path):
    os.truncate(file, 5 << 30)  # a hole: it takes no space


NO_FILES = {
    "a pipe that nobody writes to": (fifo, "no regular file"),
    "a device without an end": (lambda file, _: link(file, "/dev/zero"), "link out"),
    "a link out of the folder": (link_out, "link out"),
    "a link to itself": (lambda file, _: link(file, file), "cannot read"),
    "a folder": (lambda file, _: (file.unlink(), file.mkdir()), "no regular file|cannot read"),
    "more than fits into memory": (huge, "and may have"),
    "a pipe behind a link": (
        lambda file, _: (os.mkfifo(file.with_name("pipe")), link(file, "pipe")),
        "no regular file",
    ),
}


@pytest.mark.timeout(60)
@pytest.mark.parametrize("name", [MANIFEST, TENSORS, "evidence.json"])
@pytest.mark.parametrize("kind", NO_FILES)
def test_what_is_no_file_of_the_folder_is_refused_unread(make, tmp_path, name, kind):
    """No file of an artifact can make a start hang, take all memory, or come from outside."""
    folder = tmp_path / "artifact"
    replace(make(), attachments={"evidence.json": b"{}"}).save(folder)
    spoil, says = NO_FILES[kind]
    spoil(folder / name, tmp_path)
    with pytest.raises(ArtifactCorrupt, match=says) as caught:
        Artifact.load(folder)
    assert caught.value.field == name


def test_links_within_the_folder_are_followed(saved, tmp_path):
    """As Kubernetes mounts a volume: each file a link to one behind `..data`. The folder may be a link itself."""
    (saved / "..1").mkdir()
    (saved / "..data").symlink_to("..1")
    for name in (MANIFEST, TENSORS):
        (saved / name).rename(saved / "..1" / name)
        (saved / name).symlink_to(f"..data/{name}")
    (tmp_path / "link").symlink_to(saved)
    assert Artifact.load(tmp_path / "link").manifest == Artifact.load(saved).manifest
