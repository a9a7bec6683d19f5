"""Fixtures: nodes around a real server, with short waits."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from mesh.journal import journal as mesh_log
from mesh.journal import snapshots
from quart_app.grades import replication
from tests.support.grades import Nodes
from tests.support.server import Server


@pytest.fixture(autouse=True)
def short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mesh_log, "BLOCK_MS", 30)
    monkeypatch.setattr(replication, "RETRY_S", 0.02)
    monkeypatch.setattr(snapshots, "LOCK_RETRY_S", 0.01)


@pytest.fixture
async def nodes(server: Server, tmp_path: Path) -> AsyncIterator[Nodes]:
    made = Nodes(server.port, tmp_path)
    yield made
    await made.close()
