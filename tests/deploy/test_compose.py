"""What must hold of compose.yaml, read without an engine; `make containers` runs it."""

from __future__ import annotations

import re
import subprocess
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
    """A read-only root, no capability but the one that Caddy's program carries, no way to gain any, a restart."""
    service = SERVICES[name]
    assert service["read_only"] is (name != "browser")
    assert service["cap_drop"] == ["ALL"]
    assert service.get("cap_add", []) == (["NET_BIND_SERVICE"] if name == "caddy" else [])
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert service["restart"] == ("no" if name == "secrets" else "unless-stopped")


@pytest.mark.parametrize("name", SERVICES)
def test_every_service_has_bounds(name: str) -> None:
    """Bounds of memory, processes and log keep one service from using up the host."""
    service = SERVICES[name]
    assert service["mem_limit"] and service["pids_limit"]
    assert service["logging"] == {"driver": "json-file", "options": {"max-size": "10m", "max-file": "5"}}


def test_a_full_redis_fits_into_its_container() -> None:
    """A rewrite of the log copies pages; killed by its limit, Redis would take the mesh with it."""
    defaults = dict(re.findall(r"\$\{(REDIS_[A-Z]+):-([^}]*)\}", TEXT))
    assert (defaults["REDIS_MAXMEMORY"], defaults["REDIS_MEMORY"]) == ("512mb", "1g")


#: What starts only when it is asked for, by profile.
PROFILES = {"prometheus": "monitoring", "grafana": "monitoring", "redis-exporter": "monitoring", "browser": "browser"}


def test_the_rest_is_there_only_when_it_is_asked_for() -> None:
    """`docker compose up` starts the mesh; nothing of the mesh waits for a profile."""
    assert {name: service["profiles"] for name, service in SERVICES.items() if "profiles" in service} == {
        name: [profile] for name, profile in PROFILES.items()
    }
    waited_for = {other for service in SERVICES.values() for other in service.get("depends_on", {})}
    assert not waited_for & PROFILES.keys()


def test_the_extras_publish_on_loopback_only() -> None:
    """Metrics and the content of Redis are for people on this host."""
    for name in PROFILES:
        assert all(port.startswith("127.0.0.1:") for port in SERVICES[name].get("ports", ())), name
    assert SERVICES["browser"]["environment"]["READ_ONLY"] == "true"


def test_prometheus_finds_what_it_scrapes() -> None:
    """Each target is a service that shares a network with it; files that are mounted exist."""
    config = yaml.safe_load((ROOT / "deploy/prometheus/prometheus.yml").read_text())
    hosts = set()
    for job in config["scrape_configs"]:
        hosts |= {name for found in job.get("dns_sd_configs", ()) for name in found["names"]}
        hosts |= {target.partition(":")[0] for found in job.get("static_configs", ()) for target in found["targets"]}
    assert hosts == {"api", "redis-exporter", "caddy"}
    for host in hosts:
        assert set(SERVICES[host]["networks"]) & set(SERVICES["prometheus"]["networks"])
    mounted = [volume.split(":")[0] for service in SERVICES.values() for volume in service.get("volumes", ())]
    assert [path for path in mounted if path.startswith("./") and not (ROOT / path).exists()] == []


def test_only_caddy_publishes_ports() -> None:
    """Redis cannot be reached from outside, and operators only from this host."""
    assert [name for name, service in SERVICES.items() if "ports" in service and name not in PROFILES] == ["caddy"]
    published = {port.rpartition(":")[2]: port for port in SERVICES["caddy"]["ports"]}
    assert set(published) == {"80", "443", "8001"}
    assert published["8001"].startswith("127.0.0.1:")
    told = SERVICES["caddy"]["environment"]
    assert (told["PRIVATE"], told["PRIVATE_BIND"]) == ("private", "0.0.0.0")


def test_a_proxy_that_docker_copies_in_does_not_take_the_requests() -> None:
    """Caddy would send each request for a replica there; the address of certificates is https, which stays."""
    told = SERVICES["caddy"]["environment"]
    assert told["HTTP_PROXY"] == told["http_proxy"] == ""
    assert not {"HTTPS_PROXY", "https_proxy", "NO_PROXY"} & told.keys()


def test_redis_is_on_a_network_without_a_way_out_that_only_the_replicas_share() -> None:
    """Nobody else can even try a password."""
    assert SERVICES["redis"]["networks"] == ["back"]
    assert COMPOSE["networks"]["back"] == {"internal": True}
    found = [name for name, service in SERVICES.items() if "back" in service.get("networks", ())]
    assert [name for name in found if name not in PROFILES] == ["redis", "api"]
    assert [name for name in found if name in PROFILES] == ["redis-exporter", "browser"]


def test_there_is_one_redis_with_sixteen_databases_that_loses_nothing_silently() -> None:
    """The task text and the promises need these settings."""
    conf = (ROOT / "deploy/redis/redis.conf").read_text()
    assert "deploy" not in SERVICES["redis"]
    for line in ("databases 16", "appendonly yes", "maxmemory-policy noeviction"):
        assert re.search(rf"^{line}$", conf, re.MULTILINE)
    assert "--maxmemory" in SERVICES["redis"]["command"]


def test_the_number_of_replicas_is_the_administrators() -> None:
    """`deploy.replicas` takes the number from REPLICAS."""
    assert SERVICES["api"]["deploy"] == {"mode": "replicated", "replicas": "${REPLICAS:-4}"}


def test_a_replica_is_not_killed_while_it_drains() -> None:
    """The grace is longer than the drain and the longest deadline that a client may ask for."""
    drain_s = int(SERVICES["api"]["environment"]["DRAIN_MS"]) / 1000
    assert drain_s >= 1
    assert seconds(SERVICES["api"]["stop_grace_period"]) > drain_s + 60


def test_services_start_in_order() -> None:
    """Secrets exist before Redis, Redis answers before a replica starts, replicas are ready before Caddy listens."""
    assert SERVICES["redis"]["depends_on"]["secrets"] == {"condition": "service_completed_successfully"}
    assert SERVICES["api"]["depends_on"]["redis"] == {"condition": "service_healthy"}
    assert SERVICES["caddy"]["depends_on"]["api"] == {"condition": "service_healthy"}


@pytest.mark.parametrize("check", [name for name, service in SERVICES.items() if "healthcheck" in service])
def test_health_checks_have_no_space_within_an_argument(check: str) -> None:
    """Some engines split at it and run something else."""
    assert [word for word in SERVICES[check]["healthcheck"]["test"] if " " in str(word)] == []


def test_secrets_are_files_that_only_their_readers_mount() -> None:
    """They are not in the environment, so nobody who may list processes or inspect a container sees them."""
    mount = "${SECRETS:-secrets}:/run/secrets"
    readers = {name for name, service in SERVICES.items() if f"{mount}:ro" in service.get("volumes", ())}
    writers = {name for name, service in SERVICES.items() if mount in service.get("volumes", ())}
    assert (readers - PROFILES.keys(), writers) == ({"redis", "api"}, {"secrets"})
    assert readers & PROFILES.keys() == {"redis-exporter", "browser"}
    named = [name for service in SERVICES.values() for name in service.get("environment", {})]
    assert [name for name in named if name.endswith("PASSWORD") or "SECRET" in name.removeprefix("GF_SECURITY")] == []


def test_no_secret_is_committed() -> None:
    """Nowhere: a well-known password is no password."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    files = [name for name in listed.split("\0") if name]
    assert [name for name in files if re.search(r"(^|/)secrets?/|_password$|(^|/)\.env$", name)] == []
    well_known = "changeme" + "123"
    texts = [name for name in files if (ROOT / name).suffix in {".yaml", ".yml", ".env", ".md", ".conf", ".sh", ""}]
    assert [name for name in texts if well_known in (ROOT / name).read_text(errors="replace")] == []


def test_its_head_lists_the_variables_that_it_reads() -> None:
    """The list has names and defaults."""
    head, _, body = TEXT.partition("\nname: mesh\n")
    listed = dict(re.findall(r"^#   ([A-Z_]+) +(\S+)(?=  )", head, re.MULTILINE))
    assert listed == dict(re.findall(r"\$\{([A-Z_]+):-([^}]*)\}", body))
