"""The promise: the pod runs unprivileged, writes nothing but its caches, and gets traffic only once it is guarded."""

import pytest

from serving.api.readiness import PATH
from serving.settings import METRICS_KEY
from tests.deploy.layouts import claims, loader, monitor, resources

PROBES = ("startupProbe", "readinessProbe", "livenessProbe")


def _mounts(container):
    return {mount["name"]: mount for mount in container["volumeMounts"]}


def _volumes(pod):
    return {volume["name"]: volume for volume in pod["spec"]["volumes"]}


def _env(container):
    return {variable["name"]: variable["value"] for variable in container["env"] if "value" in variable}


def _secrets(container):
    sources = {each["name"]: each["valueFrom"]["secretKeyRef"] for each in container["env"] if "valueFrom" in each}
    return {name: (source["name"], source["key"]) for name, source in sources.items() if source["optional"]}


@pytest.mark.parametrize("probe", PROBES)
def test_probes_ask_for_health_at_the_servers_port(container, probe):
    """Readiness asks whether a prompt was scored lately, the others /health, at the port that the server listens on."""
    port = container["args"][container["args"].index("--port") + 1]
    path = PATH if probe == "readinessProbe" else "/health"
    assert container[probe]["httpGet"] == {"path": path, "port": int(port)}
    assert container[probe]["timeoutSeconds"] >= 2


def test_start_up_may_take_long_and_the_rollout_waits_for_it(by_kind, container):
    """A model has at least ten minutes to load and to pass the self-test before the pod is given up."""
    startup = container["startupProbe"]
    budget = startup["failureThreshold"] * startup["periodSeconds"]
    assert budget >= 600
    assert by_kind["Deployment"]["spec"]["progressDeadlineSeconds"] > budget


def test_traffic_stops_before_the_restart(container):
    """A pod that fails its health checks leaves the service well before it is restarted."""
    unready, restart = (
        container[probe]["failureThreshold"] * container[probe]["periodSeconds"]
        for probe in ("readinessProbe", "livenessProbe")
    )
    assert unready * 2 <= restart


def test_stopping_leaves_time_to_finish_answers(pod, container):
    """The grace period holds the wait for load balancers and then the engine's own shutdown timeout."""
    pause = container["lifecycle"]["preStop"]["sleep"]["seconds"]
    drain = int(container["args"][container["args"].index("--shutdown-timeout") + 1])
    assert pause > 0
    assert drain > 0
    assert pod["spec"]["terminationGracePeriodSeconds"] > pause + drain


def test_nobody_is_root(pod, container):
    """The pod runs under a fixed user and group, neither of them root, and Kubernetes enforces it."""
    context = pod["spec"]["securityContext"] | container["securityContext"]
    assert context["runAsNonRoot"] is True
    assert context["runAsUser"] > 0
    assert context["runAsGroup"] > 0


def test_the_container_is_locked_down(pod, container):
    """No capability, no escalation, no writable root, and the runtime's seccomp profile."""
    own = container["securityContext"]
    assert own["readOnlyRootFilesystem"] is True
    assert own["allowPrivilegeEscalation"] is False
    assert own["privileged"] is False
    assert own["capabilities"] == {"drop": ["ALL"]}
    assert pod["spec"]["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert not {"hostNetwork", "hostPID", "hostIPC"} & set(pod["spec"])


def test_no_token_is_mounted(by_kind, pod):
    """Neither the pod nor its service account asks for a token of the Kubernetes API."""
    assert pod["spec"]["automountServiceAccountToken"] is False
    assert by_kind["ServiceAccount"]["automountServiceAccountToken"] is False
    assert pod["spec"]["serviceAccountName"] == by_kind["ServiceAccount"]["metadata"]["name"]


def test_service_variables_do_not_reach_the_options(by_kind, pod):
    """A service named foreguard would set FOREGUARD_PORT to tcp://…, which `--port` reads: links are off."""
    assert by_kind["Service"]["metadata"]["name"] == "foreguard"
    assert pod["spec"]["enableServiceLinks"] is False


def test_model_and_artifact_are_read_only_claims(pod, container):
    """Model and artifact come from claims that exist by those names, read-only as volume and as mount."""
    named = set()
    for name in ("model", "artifact"):
        claim = _volumes(pod)[name]["persistentVolumeClaim"]
        assert claim["readOnly"] is True
        assert _mounts(container)[name]["readOnly"] is True
        named.add(claim["claimName"])
    assert named == {claim["metadata"]["name"] for claim in claims()}


def test_the_loader_fills_what_the_server_reads(pod, container):
    """The loader mounts the same claims at the same places, as the same user, so the server can read what it wrote."""
    spec = loader()["spec"]
    (own,) = spec["containers"]
    for name, mount in _mounts(own).items():
        assert mount["mountPath"] == _mounts(container)[name]["mountPath"]
        claims_of = [_volumes(owner)[name]["persistentVolumeClaim"]["claimName"] for owner in (loader(), pod)]
        assert len(set(claims_of)) == 1
    assert spec["securityContext"].items() <= pod["spec"]["securityContext"].items()


def test_only_empty_directories_are_writable(pod, container):
    """Every mount that is not read-only is an emptyDir with a size limit; shared memory is one in memory."""
    volumes = _volumes(pod)
    writable = {name for name, mount in _mounts(container).items() if not mount.get("readOnly", False)}
    assert writable == {"cache", "shm"}
    assert all(volumes[name]["emptyDir"]["sizeLimit"] for name in writable)
    assert volumes["shm"]["emptyDir"]["medium"] == "Memory"
    assert _mounts(container)["shm"]["mountPath"] == "/dev/shm"  # noqa: S108


def test_every_path_in_the_environment_is_writable(container):
    """Home, temporary files and every cache lie in the writable volume; none is left at its default."""
    cache = _mounts(container)["cache"]["mountPath"]
    paths = {name: value for name, value in _env(container).items() if value.startswith("/")}
    assert {"HOME", "TMPDIR", "XDG_CACHE_HOME", "VLLM_CACHE_ROOT", "TORCHINDUCTOR_CACHE_DIR"} <= set(paths)
    assert not {name for name, value in paths.items() if value != cache and not value.startswith(f"{cache}/")}
    assert "PROMETHEUS_MULTIPROC_DIR" not in paths


def test_nothing_is_fetched_or_reported(container):
    """The server asks no hub for files and sends no usage statistics."""
    env = _env(container)
    assert {env[name] for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "VLLM_NO_USAGE_STATS")} == {"1"}


def test_prometheus_finds_the_metrics(pod, container):
    """The annotations name /metrics at a port that the container has."""
    annotations = pod["metadata"]["annotations"]
    assert annotations["prometheus.io/scrape"] == "true"
    assert annotations["prometheus.io/path"] == "/metrics"
    assert int(annotations["prometheus.io/port"]) in {port["containerPort"] for port in container["ports"]}


def test_keys_come_from_a_secret(container):
    """No key stands in a manifest, and a pod without the secret starts: it then gives nobody scores."""
    assert _secrets(container) == {
        "VLLM_API_KEY": ("foreguard-keys", "api"),
        METRICS_KEY: ("foreguard-keys", "metrics"),
    }
    assert not {"VLLM_API_KEY", METRICS_KEY} & set(_env(container))


def test_the_pod_monitor_scrapes_with_the_metrics_key(pod, container):
    """It finds the pod and its port, and sends the key that the pod takes."""
    spec = monitor()["spec"]
    (endpoint,) = spec["podMetricsEndpoints"]
    assert spec["selector"]["matchLabels"].items() <= pod["metadata"]["labels"].items()
    assert endpoint["port"] in {port["name"] for port in container["ports"]}
    assert endpoint["path"] == "/metrics"
    name, key = _secrets(container)[METRICS_KEY]
    assert endpoint["authorization"] == {"type": "Bearer", "credentials": {"name": name, "key": key}}


def test_selectors_find_the_pod(by_kind, pod, container):
    """Deployment, service, network policy and disruption budget all select this pod, by a port that it has."""
    labels = pod["metadata"]["labels"].items()
    selectors = [
        by_kind["Deployment"]["spec"]["selector"]["matchLabels"],
        by_kind["Service"]["spec"]["selector"],
        by_kind["NetworkPolicy"]["spec"]["podSelector"]["matchLabels"],
        by_kind["PodDisruptionBudget"]["spec"]["selector"]["matchLabels"],
    ]
    assert all(selector and selector.items() <= labels for selector in selectors)
    assert by_kind["Service"]["spec"]["ports"][0]["targetPort"] in {port["name"] for port in container["ports"]}


def test_the_network_is_closed_but_for_named_clients(by_kind, container):
    """Only named peers may connect, only to the server's port; nothing may leave."""
    spec = by_kind["NetworkPolicy"]["spec"]
    assert set(spec["policyTypes"]) == {"Ingress", "Egress"}
    assert not spec.get("egress")
    ports = {port["containerPort"] for port in container["ports"]}
    for rule in spec["ingress"]:
        assert rule["from"]
        assert all(peer.get("podSelector") or peer.get("namespaceSelector") for peer in rule["from"])
        assert {port["port"] for port in rule["ports"]} == ports


def test_clients_are_selected_by_their_own_label_alone(by_kind):
    """Kustomize adds none of the project's labels to the selector of the clients, which would shut them all out."""
    peers = by_kind["NetworkPolicy"]["spec"]["ingress"][0]["from"]
    assert [peer["podSelector"]["matchLabels"] for peer in peers if "podSelector" in peer] == [
        {"foreguard-client": "true"}
    ]


def test_a_rollout_keeps_the_old_pod_until_the_new_one_is_ready(by_kind):
    """A policy or an artifact that fails the self-test takes nothing down."""
    strategy = by_kind["Deployment"]["spec"]["strategy"]
    assert strategy["type"] == "RollingUpdate"
    assert strategy["rollingUpdate"]["maxUnavailable"] == 0


def test_memory_is_limited_to_what_is_asked_for(container):
    """Memory is requested in full, so a node never takes the pod's memory back under load."""
    asked, most = container["resources"]["requests"], container["resources"]["limits"]
    assert asked["memory"] == most["memory"]
    assert int(asked["cpu"]) >= 1


def test_the_cpu_layout_fits_its_own_limits():
    """The KV cache leaves room in memory, the threads leave a core, and no compiler is needed."""
    (container,) = resources("overlays/cpu")["Deployment"]["spec"]["template"]["spec"]["containers"]
    env, limits = _env(container), container["resources"]["limits"]
    assert int(env["VLLM_CPU_KVCACHE_SPACE"]) <= int(limits["memory"].removesuffix("Gi")) / 2
    assert env["VLLM_CPU_OMP_THREADS_BIND"] == "nobind"
    assert int(env["OMP_NUM_THREADS"]) == int(limits["cpu"]) - 1
    assert "--enforce-eager" in container["args"]


def test_the_nvidia_layout_takes_one_gpu():
    """One GPU a pod, and the taint that clusters put on such nodes is tolerated."""
    spec = resources("overlays/nvidia")["Deployment"]["spec"]["template"]["spec"]
    assert spec["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] == "1"
    assert {"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"} in spec["tolerations"]
