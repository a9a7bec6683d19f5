"""The movements service of one replica, on a member of a real mesh in this process."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import cast

import pytest
from prometheus_client import CollectorRegistry
from pydantic import SecretStr

from mesh import SetupError, Unavailable
from mesh.raw import Replica
from quart_app.movements.ledger import Ledger
from quart_app.movements.metrics import MovementMetrics
from quart_app.movements.models import Event
from quart_app.movements.producer import sample
from quart_app.movements.settings import MovementSettings
from tests.support.backend import Backend
from tests.support.server import Server
from tests.support.waiting import eventually

MOVEMENT = Event.model_validate(sample()[0]).data.movement_id


async def test_it_stores_events_with_the_rights_of_a_member(
    mesh_of: Backend, server: Server, database_url: str
) -> None:
    """The rights of a replica's Redis user suffice, the gauges are measured, and leaving is quick."""
    registry = CollectorRegistry()
    ledger = Ledger(MovementSettings(database_url=SecretStr(database_url)), MovementMetrics(registry))
    (replica,) = await mesh_of(1)
    with server.redis() as client:
        for message in (sample()[0], "no event"):
            client.xadd("events:movements", {"body": json.dumps(message)})
        async with ledger.running(replica):

            async def known() -> bool:
                return await ledger.movement(MOVEMENT) is not None

            async def measured() -> bool:
                names = ("mesh_movements_deficit", "mesh_movements_deficit_products", "mesh_movements_lag")
                return [registry.get_sample_value(name) for name in names] == [100, 1, 0]

            await eventually(known)
            await eventually(measured)
            began = asyncio.get_running_loop().time()
        assert asyncio.get_running_loop().time() - began < 3
        assert client.xlen("events:movements") == 0
        assert [letter["body"] for _, letter in client.xrange("mesh:dead")] == ['"no event"']
    assert registry.get_sample_value("mesh_movements_dead_letters_total") == 1


async def test_a_database_that_is_away_fails_the_start_of_this_service_alone() -> None:
    """The start raises Unavailable at once; the application serves the others and tries again later."""
    settings = MovementSettings(database_url=SecretStr("postgresql://mesh@127.0.0.1:9/none"), database_timeout_ms=200)
    ledger = Ledger(settings, MovementMetrics(CollectorRegistry()))
    async with asyncio.timeout(5):
        with pytest.raises(Unavailable, match="the movements database cannot be used: it cannot be reached"):
            async with ledger.running(cast(Replica, None)):
                pass


async def test_a_folder_that_cannot_be_made_fails_the_start_with_a_sentence(tmp_path: Path) -> None:
    """A file stands where the folder should be."""
    (tmp_path / "file").write_text("in the way")
    ledger = Ledger(
        MovementSettings(movements_db_path=tmp_path / "file" / "m.db"), MovementMetrics(CollectorRegistry())
    )
    async with asyncio.timeout(1):
        with pytest.raises(SetupError, match="the folder of the movements database cannot be made"):
            async with ledger.running(cast(Replica, None)):
                pass
