"""The Caddyfile, as Caddy itself reads it; journeys/test_caddy.py puts replicas behind it."""

from __future__ import annotations

import json
import os
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest

from quart_app.local.caddy import CADDYFILE, find_caddy

LISTED = {"UPSTREAMS_FROM": "listed", "UPSTREAMS": "127.0.0.1:8010 127.0.0.1:8020"}


def adapt(path: Path = CADDYFILE, **environment: str) -> dict[str, Any]:
    """Return the configuration that Caddy would run. Raises CalledProcessError where Caddy refuses it."""
    binary = find_caddy()
    if binary is None:
        pytest.skip("no Caddy here")
    done = subprocess.run(
        [binary, "adapt", "--config", path, "--adapter", "caddyfile", "--validate"],
        env={"PATH": os.environ["PATH"], "HOME": "/nonexistent", **environment},
        capture_output=True,
        check=True,
    )
    config: dict[str, Any] = json.loads(done.stdout)
    return config


def find(config: Any, key: str) -> list[Any]:
    """Return every value of this key, at any depth."""
    if isinstance(config, list):
        return [found for each in config for found in find(each, key)]
    if not isinstance(config, dict):
        return []
    here = [config[key]] if key in config else []
    return here + [found for each in config.values() for found in find(each, key)]


def test_in_containers_replicas_are_found_by_name() -> None:
    """Every address of the name is a replica; Caddy asks for them every second."""
    first, again = find(adapt(), "dynamic_upstreams")
    assert first == again == {"source": "a", "name": "api", "port": "8000", "refresh": 1_000_000_000}


def test_on_one_machine_replicas_are_listed_and_watched() -> None:
    """The same file; a replica that is not ready gets no request."""
    config = adapt(**LISTED)
    assert find(config, "upstreams") == [[{"dial": "127.0.0.1:8010"}, {"dial": "127.0.0.1:8020"}]] * 2
    assert [check["uri"] for check in find(config, "active")] == ["/readyz"]


@pytest.mark.parametrize("environment", [{}, LISTED], ids=["by-name", "listed"])
def test_a_connection_is_given_up_before_the_drain_ends_and_an_answer_never_before_its_deadline(
    environment: dict[str, str],
) -> None:
    """Idle connections end within the drain (2 s); the longest deadline is 60 s."""
    config = adapt(**environment)
    transport, again = find(config, "transport")
    assert transport == again
    assert transport["keep_alive"]["idle_timeout"] < 2_000_000_000
    assert transport["response_header_timeout"] > 61_000_000_000


def test_nobody_can_reconfigure_it_and_the_private_port_is_not_in_it() -> None:
    """There is no admin endpoint, and no upstream but the public port, unless operators ask for their site."""
    config = adapt()
    assert config["admin"] == {"disabled": True}
    assert "8001" not in json.dumps(config)


@pytest.mark.parametrize("environment", [{}, LISTED], ids=["by-name", "listed"])
def test_operators_get_a_site_of_their_own_on_loopback(environment: dict[str, str]) -> None:
    """Only this site leads to the private ports, also while no replica is ready."""
    config = adapt(PRIVATE="private", PRIVATE_UPSTREAMS="127.0.0.1:9010", **environment)
    servers = {server["listen"][0]: json.dumps(server) for server in config["apps"]["http"]["servers"].values()}
    assert set(servers) == {"0.0.0.0:80", "127.0.0.1:8001"}
    private = "127.0.0.1:9010" if environment else '"port": "8001"'
    assert private in servers["127.0.0.1:8001"] and private not in servers["0.0.0.0:80"]
    assert "/readyz" not in servers["127.0.0.1:8001"]


def test_it_limits_bodies_and_headers() -> None:
    """The limits are above those of the application, and below sizes that would do harm."""
    config = adapt()
    assert find(config, "max_size") == [16_000_000]
    assert find(config, "max_header_bytes") == [16_000]


def test_http3_is_neither_served_nor_advertised() -> None:
    """No UDP port is published, so browsers must not hear of one."""
    servers = adapt(SITE="mesh.example.org")["apps"]["http"]["servers"].values()
    assert [server["protocols"] for server in servers] == [["h1", "h2"]]


def test_nobody_is_believed_about_whom_a_request_is_from_unless_named() -> None:
    """192.0.2.1 is an address of documentation, which no host has."""
    assert find(adapt(), "trusted_proxies") == [["192.0.2.1"]] * 2
    named = adapt(PROXIES_IN_FRONT="10.0.0.0/8 172.16.0.0/12")
    assert find(named, "trusted_proxies") == [["10.0.0.0/8", "172.16.0.0/12"]] * 2


def test_a_domain_gets_a_certificate_and_a_port_does_not() -> None:
    """SITE alone decides."""
    assert find(adapt(SITE="mesh.example.org"), "listen") == [["0.0.0.0:443"]]
    assert find(adapt(), "listen") == [["0.0.0.0:80"]]


def test_its_head_lists_the_variables_that_it_reads() -> None:
    """The list has names and defaults."""
    text = CADDYFILE.read_text()
    head, _, body = text.partition("\n{\n")
    listed = dict(re.findall(r"^#   ([A-Z_]+) +(\S+)(?=  )", head, re.MULTILINE))
    read = dict(re.findall(r"\{\$([A-Z_]+):?([^}]*)\}", body))
    assert listed | {"UPSTREAMS": "", "PRIVATE_UPSTREAMS": ""} == read


def test_a_broken_one_does_not_pass(tmp_path: Path) -> None:
    """The check can fail."""
    broken = tmp_path / "Caddyfile"
    broken.write_text(CADDYFILE.read_text().replace("lb_policy least_conn", "lb_policy least_con"))
    with pytest.raises(subprocess.CalledProcessError):
        adapt(broken)
