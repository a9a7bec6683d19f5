"""Grades over real HTTP, on both ports of several replicas: what one is told, all of them know."""

from __future__ import annotations

import asyncio
import gzip
import re
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.conftest import Process, Replicas, eventually

AUTH = ("keeper", "a long password")


class Mesh:
    """Replicas that serve grades, each with a disk of its own unless told otherwise."""

    def __init__(self, replicas: Replicas, folder: Path) -> None:
        self.replicas = replicas
        self.client = replicas.client
        self._folder = folder
        self._disks: dict[int, Path] = {}

    def env(self, disk: int) -> dict[str, str]:
        return {
            "SERVICES": "grades", "GRADES_USERNAME": AUTH[0], "GRADES_PASSWORD": AUTH[1],
            "GRADES_SNAPSHOT_DIR": str(self._folder / f"disk-{disk}"), "GRADES_SNAPSHOT_EVERY": "50",
            "GRADES_FOUNDER_PATIENCE_S": "2",
        }  # fmt: skip

    async def start(self, *disks: int) -> list[Process]:
        started = [self.replicas.spawn(self.env(disk)) for disk in disks]
        for process in started:
            await self.replicas.ready(process)
        return started

    async def set(self, at: Process, **body: Any) -> httpx.Response:
        return await self.client.post(f"{at.private}/set", json=body, auth=AUTH)

    async def get(self, at: Process, user_id: str) -> httpx.Response:
        return await self.client.get(f"{at.public}/get", params={"user_id": user_id})

    async def head(self, at: Process) -> httpx.Headers:
        response = await self.client.head(f"{at.private}/backup", auth=AUTH)
        return response.headers if response.status_code == 200 else httpx.Headers()

    async def shows(self, at: Process, user_id: str, **fields: int) -> None:
        """Wait until a replica shows these fields; a change is there within moments."""

        async def shown() -> bool:
            response = await self.get(at, user_id)
            return response.status_code == 200 and fields.items() <= response.json().items()

        await eventually(shown, 10, lambda: f"{user_id}: {fields}")

    async def agree(self, *processes: Process) -> str:
        """Wait until all have the same digest, and that digest."""

        async def agreed() -> str:
            heads = [await self.head(process) for process in processes]
            found = {head.get("Backup-Digest", "") for head in heads}
            return found.pop() if len(found) == 1 else ""

        return str(await eventually(agreed, 20, lambda: str([process.log.read_text()[-800:] for process in processes])))


@pytest.fixture
def mesh(replicas: Replicas, tmp_path: Path) -> Mesh:
    return Mesh(replicas, tmp_path)


async def test_what_one_replica_is_told_another_shows(mesh: Mesh) -> None:
    """Two fresh replicas without a peer start; set at one, get at the other, field by field."""
    one, two = await mesh.start(1, 2)
    answer = await mesh.set(one, user_id="alice", spp=5, postpaid_limit=100)
    assert answer.status_code == 200
    assert answer.json() == {
        "user_id": "alice", "postpaid_limit": 100, "spp": 5, "shipping_fee": 0, "return_fee": 0,
    }  # fmt: skip
    await mesh.shows(two, "alice", spp=5, postpaid_limit=100)
    answer = await mesh.set(two, user_id="alice", spp=0, return_fee=-7)
    assert answer.json() == {
        "user_id": "alice", "postpaid_limit": 100, "spp": 0, "shipping_fee": 0, "return_fee": -7,
    }  # fmt: skip
    await mesh.shows(one, "alice", spp=0, return_fee=-7, postpaid_limit=100)
    assert (await mesh.get(one, "bob")).status_code == 404
    await mesh.agree(one, two)
