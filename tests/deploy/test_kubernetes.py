"""The Kubernetes manifests, checked strictly and without a cluster."""

from __future__ import annotations

import copy
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from mesh import MeshSettings, keys

DEPLOY = Path(__file__).parents[2] / "deploy"
FOLDERS = (DEPLOY / "kubernetes", DEPLOY / "redis")
COMPONENTS = sorted((DEPLOY / "kubernetes/components").iterdir())
KUBERNETES = "1.33"

Manifest = dict[str, Any]


def kustomization(folder: Path) -> Manifest:
    return yaml.safe_load((folder / "kustomization.yaml").read_text())


def manifests(folders: Iterable[Path] = FOLDERS) -> Iterator[Manifest]:
    for folder in folders:
        for path in sorted(folder.glob("*.yaml")):
            if path.name != "kustomization.yaml":
                yield from yaml.safe_load_all(path.read_text())


def name_of(manifest: Manifest) -> str:
    return f"{manifest['kind']}-{manifest['metadata']['name']}"


def one(kind: str, name: str) -> Manifest:
    (found,) = [each for each in manifests() if name_of(each) == f"{kind}-{name}"]
    return found


def pod_of(manifest: Manifest) -> Manifest:
    return manifest["spec"]["template"]["spec"]


#: Prefixes of API versions that the Prometheus operator and KEDA bring.
BROUGHT = ("monitoring.", "keda.")


def of_kubernetes() -> list[Manifest]:
    """Return the manifests that Kubernetes itself knows; a patch, which has no labels, is none."""
    found = [*manifests(), *manifests(COMPONENTS)]
    return [each for each in found if "labels" in each["metadata"] and not each["apiVersion"].startswith(BROUGHT)]


@pytest.mark.parametrize("manifest", of_kubernetes(), ids=name_of)
def test_every_manifest_is_valid(manifest: Manifest) -> None:
    """In strict mode a field that Kubernetes does not know is an error."""
    kubernetes_validate.validate(manifest, KUBERNETES, strict=True)


def broken_type(deployment: Manifest) -> None:
    deployment["spec"]["replicas"] = "four"


def unknown_field(deployment: Manifest) -> None:
    pod_of(deployment)["containers"][0]["readynessProbe"] = {}


def missing_field(deployment: Manifest) -> None:
    del deployment["spec"]["selector"]


@pytest.mark.parametrize("breaking", [broken_type, unknown_field, missing_field])
def test_a_broken_manifest_does_not_pass(breaking: Any) -> None:
    """The validation can fail."""
    deployment = copy.deepcopy(one("Deployment", "mesh"))
    breaking(deployment)
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(deployment, KUBERNETES, strict=True)


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_kustomize_names_every_manifest_that_is_there(folder: Path) -> None:
    """Every file is applied, and every name has a file."""
    named = {name for name in kustomization(folder)["resources"] if not name.startswith("..")}
    assert named == {path.name for path in folder.glob("*.yaml")} - {"kustomization.yaml"}


def test_kustomize_finds_what_it_refers_to() -> None:
    """The files of generated config maps, the base, and the deployment whose number of replicas it sets."""
    for folder in FOLDERS:
        for generator in kustomization(folder).get("configMapGenerator", []):
            assert [name for name in generator["files"] if not (folder / name).is_file()] == []
    top = kustomization(FOLDERS[0])
    assert (FOLDERS[0] / "../redis/kustomization.yaml").is_file()
    assert [one("Deployment", each["name"])["kind"] for each in top["replicas"]] == ["Deployment"]
    assert all(1 <= each["count"] <= 16 for each in top["replicas"])


@pytest.mark.parametrize(("kind", "name"), [("Deployment", "mesh"), ("StatefulSet", "redis")])
def test_pods_are_hardened(kind: str, name: str) -> None:
    """Every pod meets the strictest pod security profile, which the namespace demands."""
    pod = pod_of(one(kind, name))
    assert pod["automountServiceAccountToken"] is False
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    for container in pod["containers"]:
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
        assert container["resources"]["limits"]["memory"]


def test_a_rollout_never_needs_a_seventeenth_database() -> None:
    """A seventeenth replica would wait for a database for ever."""
    rolling = one("Deployment", "mesh")["spec"]["strategy"]["rollingUpdate"]
    assert rolling == {"maxSurge": 0, "maxUnavailable": 1}


def test_stopping_leaves_time_for_the_drain_and_the_longest_request() -> None:
    """The kubelet may kill only after DRAIN_MS and the longest `Prefer: wait` (60 s)."""
    pod = pod_of(one("Deployment", "mesh"))
    environment = {each["name"]: each.get("value") for each in pod["containers"][0]["env"]}
    assert pod["terminationGracePeriodSeconds"] > int(environment["DRAIN_MS"]) / 1000 + 60


def test_the_private_port_is_in_a_service_of_its_own() -> None:
    """The public one leads to the public port alone; an Ingress that leads to it gives nobody the private one."""
    for name, port in (("mesh", "public"), ("mesh-private", "private")):
        assert [each["targetPort"] for each in one("Service", name)["spec"]["ports"]] == [port]
        assert one("Service", name)["spec"].get("type", "ClusterIP") == "ClusterIP"


def environment_of(deployment: Manifest) -> dict[str, str]:
    return {each["name"]: each.get("value") for each in pod_of(deployment)["containers"][0]["env"]}


def test_what_is_wanted_is_stated_once() -> None:
    """REPLICAS, which the alert MeshReplicasMissing compares with, is the count that kustomize sets."""
    (replicas,) = kustomization(FOLDERS[0])["replicas"]
    assert environment_of(one("Deployment", "mesh"))["REPLICAS"] == str(replicas["count"])


def test_a_lost_node_costs_seconds() -> None:
    """Pods leave a lost node within seconds, not five minutes, and are spread over zones and nodes."""
    pod = pod_of(one("Deployment", "mesh"))
    assert {each["key"].rpartition("/")[2]: each["tolerationSeconds"] for each in pod["tolerations"]} == {
        "not-ready": 10,
        "unreachable": 10,
    }
    spread = [each["topologyKey"] for each in pod["topologySpreadConstraints"]]
    assert spread == ["topology.kubernetes.io/zone", "kubernetes.io/hostname"]


def test_temporary_files_have_bounds() -> None:
    """A full disk of a node would evict the pods of others."""
    found = pod_of(one("Deployment", "mesh"))["volumes"]
    assert all(volume["emptyDir"]["sizeLimit"] for volume in found if "emptyDir" in volume)


def test_services_that_cannot_work_as_shipped_are_off() -> None:
    """Messages need providers and movements a PostgreSQL; their components bring both the setting and the policy."""
    services = environment_of(one("Deployment", "mesh"))["SERVICES"].split(",")
    assert not {"messages", "movements"} & set(services)
    for name in ("messages", "movements"):
        (patch,) = [
            each for each in manifests([DEPLOY / "kubernetes/components" / name]) if each["kind"] == "Deployment"
        ]
        assert environment_of(patch)["SERVICES"].split(",") == [*services, name]


def test_prometheus_finds_the_pods_under_the_job_that_the_alerts_ask_for() -> None:
    """Prometheus finds the pods with its operator and without."""
    monitor = next(
        one for one in manifests([DEPLOY / "kubernetes/components/monitoring"]) if one["kind"] == "PodMonitor"
    )
    labels = one("Deployment", "mesh")["spec"]["template"]["metadata"]["labels"]
    assert labels[monitor["spec"]["jobLabel"]] == "mesh"
    assert monitor["spec"]["selector"]["matchLabels"].items() <= labels.items()
    ports = {port["name"] for port in pod_of(one("Deployment", "mesh"))["containers"][0]["ports"]}
    assert {each["port"] for each in monitor["spec"]["podMetricsEndpoints"]} <= ports
    config = yaml.safe_load((DEPLOY / "prometheus/kubernetes.yml").read_text())
    assert [job["job_name"] for job in config["scrape_configs"]] == ["mesh"]


def test_keda_keeps_within_the_sixteen_databases() -> None:
    """It watches the streams of all classes, with the consumer group that there is."""
    found = [each for each in manifests([DEPLOY / "kubernetes/components/keda"]) if each["kind"] == "ScaledObject"]
    spec = found[0]["spec"]
    assert spec["maxReplicaCount"] == 16 and spec["scaleTargetRef"] == {"name": "mesh"}
    watched = {each["metadata"]["stream"] for each in spec["triggers"]}
    assert watched == {f"{keys.REQUESTS}{cls}" for cls in MeshSettings().classes}
    assert {each["metadata"]["consumerGroup"] for each in spec["triggers"]} == {keys.GROUP}


def test_a_hot_spare_blocks_no_rollout_and_no_drain_of_a_node() -> None:
    """It is never ready, so one more pod may be unavailable; and it has no database until one is free."""
    found = {each["kind"]: each["spec"] for each in manifests([DEPLOY / "kubernetes/components/hot-spare"])}
    assert found["Deployment"]["strategy"]["rollingUpdate"]["maxUnavailable"] == 2
    assert found["PodDisruptionBudget"]["maxUnavailable"] == 2
    (replicas,) = kustomization(FOLDERS[0])["replicas"]
    env = {each["name"]: each["value"] for each in found["Deployment"]["template"]["spec"]["containers"][0]["env"]}
    assert env["MESH_DATABASES"] == env["REPLICAS"] == str(replicas["count"] - 1)


#: Each component alone, and those that go together: KEDA excludes the spare, and Sentinel what asks the one Redis.
TOGETHER = [(), *((each.name,) for each in COMPONENTS), ("monitoring", "messages", "movements", "hot-spare", "backup")]


@pytest.mark.skipif(shutil.which("kubectl") is None, reason="no kubectl here")
@pytest.mark.parametrize("names", TOGETHER, ids=lambda names: "+".join(names) or "base")
def test_kustomize_builds_it_with_every_component(tmp_path: Path, names: tuple[str, ...]) -> None:
    """The manifests of `kubectl apply -k` are valid, and each pod stays within the strictest security profile."""
    shutil.copytree(DEPLOY, tmp_path / "deploy")
    top = tmp_path / "deploy/kubernetes"
    subprocess.run([DEPLOY / "generate-secrets", top / "secrets"], check=True, capture_output=True)
    with (top / "kustomization.yaml").open("a") as file:
        file.write("".join(["components:\n", *(f"  - components/{name}\n" for name in names)]) if names else "")
    done = subprocess.run(["kubectl", "kustomize", str(top)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    built = list(yaml.safe_load_all(done.stdout))
    for each in built:
        assert each["kind"] in {"Namespace"} or each["metadata"]["namespace"] == "mesh"
        if not each["apiVersion"].startswith(BROUGHT):
            kubernetes_validate.validate(each, KUBERNETES, strict=True)
    (deployment,) = [each for each in built if each["kind"] == "Deployment"]
    assert "REDIS_HOST" in environment_of(deployment), "a patch adds to the list of variables"
    assert ("StatefulSet" in {each["kind"] for each in built}) is ("sentinel" not in names)


def test_liveness_never_depends_on_redis() -> None:
    """Liveness asks /health, which does not depend on Redis: an outage of Redis must not restart pods."""
    container = pod_of(one("Deployment", "mesh"))["containers"][0]
    assert container["livenessProbe"]["httpGet"]["path"] == "/health"
    assert container["readinessProbe"]["httpGet"]["path"] == "/readyz"


def test_no_service_is_taken_for_a_setting() -> None:
    """A service named redis with an address of its own would set REDIS_PORT=tcp://10.0.0.1:6379."""
    assert pod_of(one("Deployment", "mesh"))["enableServiceLinks"] is False


def test_selectors_meet_their_pods() -> None:
    """A service, budget or policy that selects no pod would do nothing, silently."""
    labels = {
        name: one(kind, name)["spec"]["template"]["metadata"]["labels"]
        for kind, name in (("Deployment", "mesh"), ("StatefulSet", "redis"))
    }
    for kind, name in (("Service", "mesh"), ("Service", "redis")):
        assert one(kind, name)["spec"]["selector"].items() <= labels[name].items()
    for kind, name in (("NetworkPolicy", "mesh"), ("NetworkPolicy", "redis")):
        assert one(kind, name)["spec"]["podSelector"]["matchLabels"].items() <= labels[name].items()
    assert one("PodDisruptionBudget", "mesh")["spec"]["selector"]["matchLabels"].items() <= labels["mesh"].items()


def test_kubernetes_demands_secrets_of_its_own() -> None:
    """None is shipped: without these files `kubectl apply` fails, and `generate-secrets` writes just these."""
    (generator,) = kustomization(FOLDERS[0])["secretGenerator"]
    text = (DEPLOY / "generate-secrets").read_text()
    names = re.search(r"for name in (.*); do", text)
    assert names is not None
    assert generator["files"] == [f"secrets/{name}" for name in names[1].split()]
    assert [manifest for manifest in manifests() if manifest["kind"] == "Secret"] == []
    mounted = [volume["secret"] for each in ("Deployment-mesh", "StatefulSet-redis") for volume in volumes(each)]
    assert {secret["secretName"] for secret in mounted} == {generator["name"]}


def volumes(of: str) -> list[Manifest]:
    """Return the volumes of a pod that are secrets."""
    found = pod_of(one(*of.split("-", 1)))["volumes"]
    return [volume for volume in found if "secret" in volume]


def test_the_chart_and_the_rules_of_the_operator_are_made_of_the_manifests() -> None:
    """`python deploy/chart.py` writes them; nobody edits them."""
    assert subprocess.run([sys.executable, DEPLOY / "chart.py", "--check"], check=False).returncode == 0


#: Values that switch every part of the chart on in one of them.
VALUES = (
    (),
    ("hotSpare=true", "monitoring=true", "backup=true", "services={values,messages,movements}", "env.LOG_LEVEL=debug"),
    ("keda=true",),
    ("redis.sentinels={a:26379,b:26379}",),
)


@pytest.mark.skipif(shutil.which("helm") is None, reason="no helm here")
@pytest.mark.parametrize("values", VALUES, ids=lambda values: values[0] if values else "default")
def test_the_chart_is_linted_and_renders_valid_manifests(values: tuple[str, ...]) -> None:
    """Helm itself takes it, with every part switched on."""
    chart = str(DEPLOY / "helm/mesh")
    assert subprocess.run(["helm", "lint", "--strict", chart], capture_output=True, check=False).returncode == 0
    chosen = [part for value in values for part in ("--set", value)]
    done = subprocess.run(["helm", "template", "mesh", chart, *chosen], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for each in yaml.safe_load_all(done.stdout):
        if each and not each["apiVersion"].startswith(BROUGHT):
            kubernetes_validate.validate(each, KUBERNETES, strict=True)
