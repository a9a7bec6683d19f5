"""Starting both providers beside a mesh is one call."""

from __future__ import annotations

import asyncio
import socket
import subprocess
from pathlib import Path
from typing import IO

import httpx
import pytest

from quart_app.providers import commands, environment, running


def test_the_replicas_are_told_where_the_providers_are() -> None:
    """Commands and environment name the same ports."""
    told = environment(free_port=1234, paid_port=5678)
    assert told == {"FREE_PROVIDER_URL": "http://127.0.0.1:1234/", "PAID_PROVIDER_URL": "http://127.0.0.1:5678/"}
    assert commands(1234, 5678)["free"][-1] == "1234"


class Children:
    """Starts processes and remembers them."""

    def __init__(self) -> None:
        self.started: list[subprocess.Popen[bytes]] = []

    def __call__(self, command: list[str], log: IO[bytes]) -> subprocess.Popen[bytes]:
        self.started.append(subprocess.Popen(command, stdout=log, stderr=log))
        return self.started[-1]


async def test_both_run_and_are_gone_afterwards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On other ports where the usual ones are taken."""
    for name in environment():
        monkeypatch.delenv(name, raising=False)
    children = Children()
    with socket.socket() as taken:
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            taken.bind(("127.0.0.1", 2197))
            taken.listen()
        except OSError:
            pass  # taken already, then
        async with running(children, tmp_path) as told, httpx.AsyncClient() as client:
            assert told["FREE_PROVIDER_URL"] != environment()["FREE_PROVIDER_URL"]
            for kind in ("free", "paid"):
                answer = await _once_up(client, told[f"{kind.upper()}_PROVIDER_URL"])
                assert answer.json()["provider"] == kind
    assert [child.returncode for child in children.started] == [0, 0]


async def test_a_provider_that_is_named_already_is_not_started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Any URL can stand in its place."""
    monkeypatch.setenv("FREE_PROVIDER_URL", "https://free.example/")
    monkeypatch.setenv("PAID_PROVIDER_URL", "https://paid.example/")
    children = Children()
    async with running(children, tmp_path) as told:
        assert told == {"FREE_PROVIDER_URL": "https://free.example/", "PAID_PROVIDER_URL": "https://paid.example/"}
    assert children.started == []


async def _once_up(client: httpx.AsyncClient, url: str) -> httpx.Response:
    async with asyncio.timeout(30):
        while True:
            try:
                return await client.post(url, json={"message": "hello"})
            except httpx.TransportError:
                await asyncio.sleep(0.05)
