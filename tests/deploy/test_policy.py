"""The promise: the shipped policy is valid, fits what calibration writes, observes first, and rolls the pods."""

import os
import shutil

import numpy as np
import pytest

from guard.decide import bind
from guard.policy_file import load_policy, parse_policy
from guard.verdict import Action, Mode
from tests.deploy.layouts import KUSTOMIZE, render

POLICY = KUSTOMIZE / "base" / "policy.yaml"
PROBES = ("stack", "harmfulness", "refusal")
BENIGN = np.random.default_rng(0).normal(size=(1000, len(PROBES))).astype(np.float32)


def test_the_map_holds_the_policy_and_the_pod_mounts_it_read_only(by_kind, pod, container):
    """What the pod reads is the file in the repository, from a map that the pod cannot write."""
    policy_map = by_kind["ConfigMap"]
    assert policy_map["data"] == {"policy.yaml": POLICY.read_text()}
    assert parse_policy(policy_map["data"]["policy.yaml"]) == load_policy(POLICY)
    volume = next(volume for volume in pod["spec"]["volumes"] if volume["name"] == "policy")
    assert volume["configMap"]["name"] == policy_map["metadata"]["name"]
    assert next(mount for mount in container["volumeMounts"] if mount["name"] == "policy")["readOnly"] is True


def test_another_policy_is_another_map(tmp_path):
    """A changed policy changes the map's name and the pod template with it, so Kubernetes rolls the pods."""
    base = tmp_path / "base"
    shutil.copytree(KUSTOMIZE / "base", base)
    names = []
    for text in (POLICY.read_text(), POLICY.read_text().replace('version: "1"', 'version: "2"')):
        (base / "policy.yaml").write_text(text)
        rendered = {item["kind"]: item for item in render(base)}
        volumes = rendered["Deployment"]["spec"]["template"]["spec"]["volumes"]
        assert [v["configMap"]["name"] for v in volumes if "configMap" in v] == [
            rendered["ConfigMap"]["metadata"]["name"]
        ]
        names.append(rendered["ConfigMap"]["metadata"]["name"])
    assert names[0] != names[1]


def test_an_overlay_of_your_own_replaces_policy_and_image(tmp_path, layout):
    """The overlay that the documentation shows swaps the policy and the registry, and leaves the shipped files
    alone.
    """
    (tmp_path / "policy.yaml").write_text(POLICY.read_text().replace("mode: shadow", "mode: enforce"))
    (tmp_path / "kustomization.yaml").write_text(
        f"""
        resources: [{os.path.relpath(KUSTOMIZE / layout, tmp_path.resolve())}]
        namespace: guarded
        images: [{{name: foreguard, newName: registry.example.com/team/foreguard, newTag: "7"}}]
        configMapGenerator: [{{name: foreguard-policy, behavior: replace, files: [policy.yaml]}}]
        """
    )
    rendered = {item["kind"]: item for item in render(tmp_path)}
    (container,) = rendered["Deployment"]["spec"]["template"]["spec"]["containers"]
    assert container["image"] == "registry.example.com/team/foreguard:7"
    assert parse_policy(rendered["ConfigMap"]["data"]["policy.yaml"]).mode is Mode.ENFORCE
    assert {item["metadata"]["namespace"] for item in rendered.values()} == {"guarded"}


def test_it_observes_until_told_otherwise():
    """The shipped policy records what it would do and does nothing."""
    assert load_policy(POLICY).mode is Mode.SHADOW


@pytest.mark.parametrize(
    ("scores", "decision"),
    [
        ((9.0, 9.0, 9.0), Action.BLOCK),
        ((9.0, 0.0, 0.0), Action.BLOCK),
        ((0.0, 9.0, 0.0), Action.FLAG),
        ((0.0, 0.0, 9.0), Action.FLAG),
        ((0.0, 0.0, 0.0), Action.ALLOW),
    ],
)
def test_it_decides_on_the_probes_that_calibration_writes(scores, decision):
    """Bound to an artifact with calibration's probes it decides as its rules say; the one word `enforce` makes it
    act.
    """
    watching = bind(load_policy(POLICY), PROBES, BENIGN).judge(scores)
    assert (watching.decision, watching.action) == (decision, Action.ALLOW)
    enforcing = parse_policy(POLICY.read_text().replace("mode: shadow", "mode: enforce"))
    acting = bind(enforcing, PROBES, BENIGN).judge(scores)
    assert (acting.decision, acting.action) == (decision, decision)
