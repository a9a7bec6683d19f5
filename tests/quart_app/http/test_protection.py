"""Host names that a request may name."""

from __future__ import annotations

import socket

import pytest

from quart_app.http.problems import Problem
from quart_app.http.protection import AllowedHosts
from quart_app.settings import AppSettings


def is_allowed(host: str, **settings: object) -> bool:
    try:
        AllowedHosts(AppSettings(port=0, private_port=0, **settings)).check(host)
    except Problem as problem:
        assert problem.status == 421
        return False
    return True


@pytest.mark.parametrize(
    "host",
    [
        "localhost", "localhost:8000", "LocalHost.", "mesh.localhost:80", "127.0.0.1:8000", "10.1.2.3", "[::1]:8000",
        "[2001:db8::1]", "api", "api:8001", "mesh.default.svc.cluster.local", "printer.local", "x.internal",
        "a.home.arpa", "", socket.gethostname(),
    ],
)  # fmt: skip
def test_names_that_no_stranger_can_own_are_allowed(host: str) -> None:
    """`make run`, compose and the probes of Kubernetes need no setting."""
    assert is_allowed(host)


@pytest.mark.parametrize(
    "host",
    [
        "evil.example.com", "evil.example.com:8000", "localhost.evil.com", "127.0.0.1.evil.com", "evil.com.",
        "local.com", "xlocal.com", "a b.com", "[evil.com]", "[::1].evil.com", "evil.com:80:80", "evil.com/",
        "user@evil.com", "\xa7.com", "1.2.3", "1.2.3.4.5",
    ],
)  # fmt: skip
def test_other_names_are_refused(host: str) -> None:
    """A page of that name would be shown our answers."""
    assert not is_allowed(host)


def test_a_setting_adds_names() -> None:
    """One name, all names below one, or any; as a list, and as the addresses of sites in a Caddyfile are written."""
    assert is_allowed("mesh.example.org", allowed_hosts="other.example.org, mesh.example.org")
    assert is_allowed("MESH.example.org:443", allowed_hosts="https://mesh.example.org:8443")
    assert is_allowed("a.b.example.org", allowed_hosts="*.example.org")
    assert not is_allowed("example.org", allowed_hosts="*.example.org")
    assert not is_allowed("badexample.org", allowed_hosts="*.example.org")
    assert is_allowed("whatever.example.com", allowed_hosts="*")
    assert is_allowed("replica-7.example.org", advertise_host="replica-7.example.org")
    assert not is_allowed("evil.com", allowed_hosts=":80")
