"""compose.yaml: what must hold of it, read without an engine; `make containers` runs it for real."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "compose.yaml").read_text()
COMPOSE: dict[str, Any] = yaml.safe_load(TEXT)
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]


def seconds(duration: str) -> int:
    return int(duration.removesuffix("s"))


@pytest.mark.parametrize("name", SERVICES)
def test_every_service_is_hardened(name: str) -> None:
    """Read-only root, no capabilities but the one Caddy's binary carries, no way to gain any, restarted."""
    service = SERVICES[name]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service.get("cap_add", []) == (["NET_BIND_SERVICE"] if name == "caddy" else [])
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert service["restart"] == "unless-stopped"


def test_only_caddy_publishes_ports() -> None:
    """Neither Redis nor the private port can be reached from outside."""
    assert [name for name, service in SERVICES.items() if "ports" in service] == ["caddy"]
    assert [port.rpartition(":")[2] for port in SERVICES["caddy"]["ports"]] == ["80", "443"]


def test_redis_is_on_a_network_without_a_way_out_that_only_the_replicas_share() -> None:
    """Nobody but the replicas can even try a password."""
    assert SERVICES["redis"]["networks"] == ["back"]
    assert COMPOSE["networks"]["back"] == {"internal": True}
    assert [name for name, service in SERVICES.items() if "back" in service["networks"]] == ["redis", "api"]


def test_there_is_one_redis_with_sixteen_databases_that_loses_nothing_silently() -> None:
    """The conditions of the task text and of the promises."""
    conf = (ROOT / "deploy/redis/redis.conf").read_text()
    assert "deploy" not in SERVICES["redis"]
    for line in ("databases 16", "appendonly yes", "maxmemory-policy noeviction"):
        assert re.search(rf"^{line}$", conf, re.MULTILINE)
    assert "--maxmemory " in SERVICES["redis"]["command"][-1]


def test_the_number_of_replicas_is_the_administrators() -> None:
    """`deploy.replicas`, from REPLICAS."""
    assert SERVICES["api"]["deploy"] == {"mode": "replicated", "replicas": "${REPLICAS:-4}"}


def test_a_replica_is_not_killed_while_it_drains() -> None:
    """The grace is above the drain and the longest deadline that may be asked for."""
    drain_s = int(SERVICES["api"]["environment"]["DRAIN_MS"]) / 1000
    assert drain_s >= 1
    assert seconds(SERVICES["api"]["stop_grace_period"]) > drain_s + 60


def test_services_start_in_order() -> None:
    """Redis answers before a replica starts, and replicas are ready before there is an address."""
    assert SERVICES["api"]["depends_on"]["redis"] == {"condition": "service_healthy"}
    assert SERVICES["caddy"]["depends_on"]["api"] == {"condition": "service_healthy"}


@pytest.mark.parametrize("check", [name for name, service in SERVICES.items() if "healthcheck" in service])
def test_health_checks_hold_no_space_within_an_argument(check: str) -> None:
    """Some engines split at it and run something else."""
    assert [word for word in SERVICES[check]["healthcheck"]["test"] if " " in str(word)] == []


def test_the_password_is_a_secret_and_nowhere_in_the_environment() -> None:
    """Whoever may list processes or inspect a container does not see it."""
    assert SERVICES["redis"]["secrets"] == SERVICES["api"]["secrets"] == ["redis_password"]
    named = [name for service in SERVICES.values() for name in service.get("environment", {})]
    assert [name for name in named if name.startswith("REDIS_PASSWORD")] == []
    password = (ROOT / "deploy/secrets/redis_password").read_text()
    assert password and password not in TEXT


def test_what_its_head_lists_is_what_it_reads() -> None:
    """Names and defaults."""
    head, _, body = TEXT.partition("\nname: mesh\n")
    listed = dict(re.findall(r"^#   ([A-Z_]+) +(\S+)(?=  )", head, re.MULTILINE))
    assert listed == dict(re.findall(r"\$\{([A-Z_]+):-([^}]*)\}", body))
