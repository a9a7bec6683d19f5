"""Replicas that start while the memory of the server is really full."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.replicas import Replicas
from tests.support.server import Server, ServerProgram, server_programs

SERVICES = "values,addresses,messages,grades,movements"


@pytest.mark.timeout(120)
@pytest.mark.parametrize("program", server_programs())
async def test_replicas_restart_while_memory_is_really_full(
    make_server: Callable[..., Server], tmp_path: Path, program: ServerProgram | None
) -> None:
    """Nobody could read anything otherwise: all services are ready again, and what was stored is there."""
    server = make_server(program=program)
    env = {"SERVICES": SERVICES, "MOVEMENTS_DB_PATH": str(tmp_path / "movements.db")}
    replicas = Replicas(server, tmp_path)
    try:
        (first,) = await replicas(1, env)
        items = [{"value": 6, "ttl": 600, "cls": "A"}]
        assert (await replicas.client.post(first.public + "/values", json=items)).status_code == 200
        with server.redis() as admin:
            admin.config_set("maxmemory", 1)
        first.kill()
        second = replicas.spawn(env)
        await replicas.ready(second)
        look = (await replicas.client.get(second.public + "/readyz")).json()
        assert (look["full"], look["not_ready"]) == (True, {})
        assert (await replicas.client.get(second.public + "/values/3")).json() == [
            {"value": 6, "prime_factors": [2, 3]}
        ]
    finally:
        await replicas.close()
