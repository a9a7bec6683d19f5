"""Every connection that the mesh makes is allowed by the network policies, and what it does not make is refused."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml

KUBERNETES = Path(__file__).parents[2] / "deploy/kubernetes"
NAMESPACE = "mesh"
#: The ports that policies name.
NAMED = {"public": 8000, "private": 8001, "redis": 6379}

Json = dict[str, Any]


@dataclass(frozen=True)
class Peer:
    """A pod, or a host outside the cluster."""

    labels: dict[str, str] = field(default_factory=dict)
    namespace: str = NAMESPACE
    address: str = ""


def pod(name: str, **labels: str) -> Peer:
    return Peer({"app.kubernetes.io/name": name, "app.kubernetes.io/part-of": "mesh", **labels})


REPLICA, REDIS, BACKUP = pod("mesh"), pod("redis"), pod("backup")
OPERATOR = Peer({"mesh-operator": "true"})
STRANGER = Peer({"run": "shell"})
INGRESS = Peer({"app": "ingress"}, "ingress")
PROMETHEUS = Peer({"app": "prometheus"}, "monitoring")
DNS = Peer({"k8s-app": "kube-dns"}, "kube-system")
KEDA = Peer({"app": "keda-operator"}, "keda")
POSTGRESQL = Peer({"app.kubernetes.io/name": "postgresql"}, "databases")
SENTINEL = Peer({"app": "sentinel"}, "redis")
PROVIDER = Peer(address="198.51.100.7", namespace="")
METADATA = Peer(address="169.254.169.254", namespace="")

#: (from, to, port, component that it needs): what the mesh does.
MADE = [
    ("replica asks Redis", REPLICA, REDIS, 6379, ""),
    ("replica restores grades from another", REPLICA, REPLICA, 8001, ""),
    ("replica asks for names", REPLICA, DNS, 53, ""),
    ("client", INGRESS, REPLICA, 8000, ""),
    ("Prometheus scrapes", PROMETHEUS, REPLICA, 8001, ""),
    ("operator sets grades", OPERATOR, REPLICA, 8001, ""),
    ("operator asks for names", OPERATOR, DNS, 53, ""),
    ("backup copies", BACKUP, REDIS, 6379, "backup"),
    ("backup asks for names", BACKUP, DNS, 53, "backup"),
    ("KEDA looks at the streams", KEDA, REDIS, 6379, "keda"),
    ("replica sends a message", REPLICA, PROVIDER, 443, "messages"),
    ("replica stores a movement", REPLICA, POSTGRESQL, 5432, "movements"),
    ("replica asks a sentinel", REPLICA, SENTINEL, 26379, "sentinel"),
    ("replica asks the master", REPLICA, SENTINEL, 6379, "sentinel"),
]
#: What nobody has a reason for, with every component in force.
REFUSED = [
    ("a stranger asks Redis", STRANGER, REDIS, 6379),
    ("a stranger calls out", STRANGER, PROVIDER, 443),
    ("an operator asks Redis", OPERATOR, REDIS, 6379),
    ("the ingress asks Redis", INGRESS, REDIS, 6379),
    ("a stranger reaches the private port", STRANGER, REPLICA, 8001),
    ("the ingress reaches the private port", INGRESS, REPLICA, 8001),
    ("Redis calls out", REDIS, PROVIDER, 443),
    ("Redis calls a replica", REDIS, REPLICA, 8000),
    ("a replica calls out without TLS", REPLICA, PROVIDER, 80),
    ("a replica asks the node for credentials", REPLICA, METADATA, 443),
    ("a replica reaches another's public port", REPLICA, REPLICA, 8000),
    ("the backup reaches a replica", BACKUP, REPLICA, 8001),
    ("the backup calls out", BACKUP, PROVIDER, 443),
]


def policies(*components: str) -> Iterator[Json]:
    """Yield the policies of the base and of these components."""
    for path in (
        KUBERNETES / "network.yaml",
        *(KUBERNETES / "components" / name / "network.yaml" for name in components),
    ):
        yield from yaml.safe_load_all(path.read_text())


def selects(selector: Json, labels: dict[str, str]) -> bool:
    """Whether a label selector selects these labels; an empty one selects all."""
    assert selector.keys() <= {"matchLabels", "matchExpressions"}
    if not selector.get("matchLabels", {}).items() <= labels.items():
        return False
    expressions = selector.get("matchExpressions", ())
    assert all(each["operator"] == "In" for each in expressions)
    return all(labels.get(each["key"]) in each["values"] for each in expressions)


def meets(rule: Json, peer: Peer) -> bool:
    """Whether one entry of `from` or `to` means this peer."""
    if "ipBlock" in rule:
        block, address = rule["ipBlock"], peer.address
        inside = bool(address) and ipaddress.ip_address(address) in ipaddress.ip_network(block["cidr"])
        return inside and not any(
            ipaddress.ip_address(address) in ipaddress.ip_network(each) for each in block["except"]
        )
    if peer.address:
        return False
    namespace = rule.get("namespaceSelector")
    there = (
        peer.namespace == NAMESPACE
        if namespace is None
        else selects(namespace, {"kubernetes.io/metadata.name": peer.namespace})
    )
    return there and selects(rule.get("podSelector", {}), peer.labels)


def lets(policies: list[Json], direction: str, one: Peer, other: Peer, port: int) -> bool:
    """Whether the policies of `one` let a connection in this direction pass; without a policy everything passes."""
    ours = [
        policy["spec"]
        for policy in policies
        if one.namespace == NAMESPACE
        and not one.address
        and selects(policy["spec"]["podSelector"], one.labels)
        and direction in policy["spec"]["policyTypes"]
    ]
    key, side = ("ingress", "from") if direction == "Ingress" else ("egress", "to")
    passes = [
        rule
        for policy in ours
        for rule in policy.get(key, ())
        if (side not in rule or any(meets(each, other) for each in rule[side]))
        and ("ports" not in rule or port in [NAMED.get(each["port"], each["port"]) for each in rule["ports"]])
    ]
    return not ours or bool(passes)


def allowed(policies: list[Json], source: Peer, target: Peer, port: int) -> bool:
    return lets(policies, "Egress", source, target, port) and lets(policies, "Ingress", target, source, port)


@pytest.mark.parametrize(
    ("source", "target", "port", "component"), [row[1:] for row in MADE], ids=[row[0] for row in MADE]
)
def test_a_connection_that_the_mesh_makes_is_allowed(source: Peer, target: Peer, port: int, component: str) -> None:
    """A connection is allowed with the component that it belongs to, and refused without it."""
    assert allowed(list(policies(*filter(None, [component]))), source, target, port)
    if component not in {"", "backup"}:  # the base knows the backup's pods
        assert not allowed(list(policies()), source, target, port)


@pytest.mark.parametrize(("source", "target", "port"), [row[1:] for row in REFUSED], ids=[row[0] for row in REFUSED])
def test_a_connection_that_it_does_not_make_is_refused(source: Peer, target: Peer, port: int) -> None:
    """A connection that the mesh never makes is refused, also with all components in force."""
    everything = list(policies("backup", "keda", "messages", "movements", "sentinel"))
    assert not allowed(everything, source, target, port)
