"""The Kubernetes manifests, checked strictly and without a cluster."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

DEPLOY = Path(__file__).parents[2] / "deploy"
FOLDERS = (DEPLOY / "kubernetes", DEPLOY / "redis")
KUBERNETES = "1.33"

Manifest = dict[str, Any]


def kustomization(folder: Path) -> Manifest:
    return yaml.safe_load((folder / "kustomization.yaml").read_text())


def manifests() -> Iterator[Manifest]:
    for folder in FOLDERS:
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


@pytest.mark.parametrize("manifest", list(manifests()), ids=name_of)
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


def test_the_private_port_is_in_no_service() -> None:
    """It is reached only at the address of each pod."""
    ports = [port["targetPort"] for port in one("Service", "mesh")["spec"]["ports"]]
    assert ports == ["public"]


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
