"""What `kubectl kustomize` makes of the base and of each overlay."""

import shutil
import subprocess
from functools import cache
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
KUSTOMIZE = ROOT / "deploy" / "kustomize"
LAYOUTS = ("base", "overlays/cpu", "overlays/nvidia")


def render(folder):
    """Return the resources that `folder` renders to. Skips the test where there is no kubectl."""
    kubectl = shutil.which("kubectl")
    if kubectl is None:
        pytest.skip("kubectl is not on PATH; it renders the manifests (any version from 1.27, no cluster needed)")
    done = subprocess.run([kubectl, "kustomize", str(folder)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return list(yaml.safe_load_all(done.stdout))


@cache
def _shipped(layout):
    return render(KUSTOMIZE / layout)


def resources(layout):
    """Return a shipped layout's resources by kind: each has one of a kind."""
    rendered = _shipped(layout)
    assert len({item["kind"] for item in rendered}) == len(rendered)
    return {item["kind"]: item for item in rendered}


def claims():
    """Return the volume claims, which are applied apart from the layouts."""
    return list(yaml.safe_load_all((KUSTOMIZE / "claims.yaml").read_text()))


def loader():
    """Return the pod that fills the claims."""
    return yaml.safe_load((KUSTOMIZE / "loader.yaml").read_text())


def monitor():
    """Return what tells the Prometheus Operator to scrape, which is applied apart from the layouts likewise."""
    return yaml.safe_load((KUSTOMIZE / "podmonitor.yaml").read_text())
