"""The parts of a local mesh, put together. Whole meshes run in tests/journeys/test_up.py."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from quart_app.local import caddy, mesh, replicas
from quart_app.local.errors import LocalError
from quart_app.local.forks import ForkServer
from quart_app.local.mesh import Front
from quart_app.local.ports import free_port
from quart_app.local.processes import Supervisor
from quart_app.local.replicas import PortPair
from quart_app.providers import environment
from quart_app.providers.launch import FREE_PORT
from tests.support.waiting import eventually


@contextlib.contextmanager
def taken(port: int = 0) -> Iterator[int]:
    with socket.socket() as busy:
        busy.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        with contextlib.suppress(OSError):  # somebody else has it: that is as good
            busy.bind(("127.0.0.1", port))
            busy.listen()
        yield busy.getsockname()[1]


def forks(stack: contextlib.AsyncExitStack, logs: Path) -> ForkServer:
    return stack.enter_context(contextlib.closing(replicas.fork_server([], logs)))


async def test_both_providers_run_on_other_ports_where_the_usual_ones_are_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The replicas are told where."""
    for name in environment():
        monkeypatch.delenv(name, raising=False)
    with taken(FREE_PORT):
        async with contextlib.AsyncExitStack() as stack, httpx.AsyncClient() as client:
            told = await mesh._run_providers(stack, Supervisor(print), tmp_path, forks(stack, tmp_path))
            assert told["FREE_PROVIDER_URL"] != environment()["FREE_PROVIDER_URL"]

            for kind in ("free", "paid"):

                async def answers(url: str = told[f"{kind.upper()}_PROVIDER_URL"]) -> str:
                    with contextlib.suppress(httpx.TransportError):
                        return str((await client.post(url, json={"message": "hello"})).json()["provider"])
                    return ""

                assert await eventually(answers, 30) == kind


async def test_a_provider_that_is_named_in_the_environment_is_not_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Any URL can take its place."""
    monkeypatch.setenv("FREE_PROVIDER_URL", "https://free.example/")
    monkeypatch.setenv("PAID_PROVIDER_URL", "https://paid.example/")
    async with contextlib.AsyncExitStack() as stack:
        told = await mesh._run_providers(stack, Supervisor(print), tmp_path, forks(stack, tmp_path))
    assert told == {"FREE_PROVIDER_URL": "https://free.example/", "PAID_PROVIDER_URL": "https://paid.example/"}
    assert not (tmp_path / "provider-free.log").exists()


async def test_without_the_message_service_there_are_no_providers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody would call them."""
    monkeypatch.setenv("SERVICES", "values")
    async with contextlib.AsyncExitStack() as stack:
        assert await mesh._run_providers(stack, Supervisor(print), tmp_path, forks(stack, tmp_path)) == {}


@pytest.mark.parametrize("with_caddy", [True, False])
def test_a_taken_port_is_found_before_anything_starts(with_caddy: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever would listen on it."""
    monkeypatch.setattr(caddy, "find_caddy", lambda: Path("/caddy") if with_caddy else None)
    with taken() as port:
        with pytest.raises(LocalError, match=f"cannot listen on 127.0.0.1:{port}: .*; try --port"):
            Front(port, 0, contextlib.AsyncExitStack())


async def test_without_caddy_the_first_replica_has_the_private_port(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where there is a Caddy, Caddy has the port, and replicas serve on until Caddy notices that they leave."""
    port, private = free_port(), free_port()
    async with contextlib.AsyncExitStack() as stack:
        monkeypatch.setattr(caddy, "find_caddy", lambda: None)
        front = Front(port, private, stack)
        assert front.first_private_port == private
        assert front.env == {"LISTEN_FD": str(front.inherited_fds[0])}
        front.set_page_url([PortPair(1, 2), PortPair(3, 4)])
        assert (front.private_port, front.env["PAGE_URL"]) == (2, "http://127.0.0.1:2/mesh")
    monkeypatch.setattr(caddy, "find_caddy", lambda: Path("/caddy"))
    front = Front(port, private, stack)
    assert (front.first_private_port, front.inherited_fds, set(front.env)) == (0, [], {"DRAIN_MS", "TRUSTED_PROXIES"})
    front.set_page_url([PortPair(1, 2)])
    assert (front.private_port, front.env["PAGE_URL"]) == (private, f"http://127.0.0.1:{private}/mesh")
    monkeypatch.setenv("PAGE_URL", "")
    front.set_page_url([PortPair(1, 2)])
    assert front.env["PAGE_URL"] == ""
