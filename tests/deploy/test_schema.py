"""The promise: Kubernetes accepts every manifest, field for field, in the oldest and the newest version we name."""

import copy

import kubernetes_validate
import pytest

from tests.deploy.layouts import claims, loader, resources

VERSIONS = ("1.30", "1.37")


@pytest.mark.parametrize("version", VERSIONS)
def test_every_resource_is_valid_strictly(by_kind, version):
    """Every rendered resource matches the published schema of its kind, with no unknown field."""
    for item in by_kind.values():
        assert kubernetes_validate.validate(item, version, strict=True) == version


@pytest.mark.parametrize("version", VERSIONS)
def test_what_is_applied_beside_the_layouts_is_valid_strictly(version):
    """The volume claims and the pod that fills them match the published schemas too."""
    for item in (*claims(), loader()):
        assert kubernetes_validate.validate(item, version, strict=True) == version


def test_a_layout_has_every_kind_once(by_kind):
    """Nothing that the documentation names is missing, and nothing belongs to a namespace of its own."""
    kinds = {"ConfigMap", "Deployment", "NetworkPolicy", "PodDisruptionBudget", "Service", "ServiceAccount"}
    assert set(by_kind) == kinds
    assert not [kind for kind, item in by_kind.items() if "namespace" in item["metadata"]]


def _misspell(deployment):
    container = deployment["spec"]["template"]["spec"]["containers"][0]
    container["livenessProb"] = container.pop("livenessProbe")


def _misplace(deployment):
    deployment["spec"]["template"]["spec"]["readOnlyRootFilesystem"] = True


def _mistype(deployment):
    deployment["spec"]["replicas"] = "two"


def _mistype_deep(deployment):
    deployment["spec"]["template"]["spec"]["containers"][0]["args"] = [8000]


def _leave_out(deployment):
    del deployment["spec"]["selector"]


@pytest.mark.parametrize("fault", [_misspell, _misplace, _mistype, _mistype_deep, _leave_out])
def test_a_planted_fault_is_caught(fault):
    """The validator is no rubber stamp: a misspelt, misplaced, mistyped or missing field fails."""
    deployment = copy.deepcopy(resources("base")["Deployment"])
    fault(deployment)
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(deployment, VERSIONS[0], strict=True)
