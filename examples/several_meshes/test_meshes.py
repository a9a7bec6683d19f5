"""Which mesh a value belongs to, and what a front of two real meshes answers, also while one of them is away."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from quart import Quart

from examples.several_meshes.front import create_app
from examples.several_meshes.meshes import Meshes, owner
from mesh import connect
from quart_app.local.ports import free_port
from tests.support.replicas import Replicas
from tests.support.server import Server
from tests.support.waiting import eventually

NAMES = ("north", "south")
#: A prime factor of all values of the test, and how many there are.
PRIME, COUNT = 99_991, 4_000
BATCH = 1_000


def test_values_are_spread_evenly() -> None:
    """Each of eight meshes gets an eighth of the values, within a tenth of it."""
    names = [f"mesh-{number}" for number in range(8)]
    counts = Counter(owner(str(value), names) for value in range(20_000))
    assert all(abs(counts[name] - 2_500) < 250 for name in names)


@pytest.mark.parametrize("count", [1, 2, 7])
def test_a_new_mesh_takes_its_share_and_nothing_else_moves(count: int) -> None:
    """A value stays where it was or moves to the new mesh; about one in `count + 1` moves."""
    names = [f"mesh-{number}" for number in range(count)]
    values = [str(value) for value in range(5_000)]
    moved = [value for value in values if owner(value, names) != owner(value, [*names, "new"])]
    assert {owner(value, [*names, "new"]) for value in moved} == {"new"}
    assert abs(len(moved) - 5_000 / (count + 1)) < 250


class Two(NamedTuple):
    """Two meshes, each on a server of its own, and the front of both."""

    servers: dict[str, Server]
    front: Any

    async def post(self, values: list[int], ttl: int = 300) -> Any:
        items = [{"value": value, "ttl": ttl, "cls": "A"} for value in values]
        return await self.front.post("/values", json=items)


@contextlib.contextmanager
def _server(folder: Path) -> Iterator[Server]:
    folder.mkdir()
    server = Server(free_port(), folder)
    server.start()
    try:
        yield server
    finally:
        server.kill()


@pytest.fixture
async def two(tmp_path: Path) -> AsyncIterator[Two]:
    async with contextlib.AsyncExitStack() as stack:
        servers, clients = {}, {}
        started = []
        for name in NAMES:
            servers[name] = stack.enter_context(_server(tmp_path / name))
            replicas = Replicas(servers[name], tmp_path / name)
            stack.push_async_callback(replicas.close)
            started.append((replicas, replicas.spawn({"MESH_CLASS": "A"})))
        for replicas, process in started:
            await replicas.ready(process)
        for name in NAMES:
            clients[name] = await stack.enter_async_context(connect(servers[name].url))
        app: Quart = create_app(Meshes(clients))
        yield Two(servers, app.test_client())


async def test_thousands_of_values_are_split_and_gathered_and_a_lost_mesh_is_named(two: Two) -> None:
    """Each value is in its mesh and in no other. Without one mesh, its values are 503 by name; the other goes on."""
    values = [PRIME * factor for factor in range(1, COUNT + 1)]
    for at in range(0, COUNT, BATCH):
        batch = values[at : at + BATCH]
        answer = await two.post(batch)
        assert answer.status_code == 200, await answer.get_data(as_text=True)
        assert [element["value"] for element in await answer.get_json()] == batch
    for name, server in two.servers.items():
        with server.redis(1) as client:
            stored = {int(value) for value in client.hkeys("db1:values:records")}
        assert stored == {value for value in values if owner(str(value), NAMES) == name}
    answer = await two.front.get(f"/values/{PRIME}")
    assert [element["value"] for element in await answer.get_json()] == values

    two.servers["south"].kill()

    async def is_named() -> bool:
        answer = await two.front.get(f"/values/{PRIME}")
        problem = await answer.get_json()
        return bool(answer.status_code == 503 and problem["meshes"] == ["south"] and "south" in problem["detail"])

    await eventually(is_named)
    by_owner = {name: [value for value in values if owner(str(value), NAMES) == name] for name in NAMES}
    assert (await two.post(by_owner["north"][:BATCH])).status_code == 200
    answer = await two.post(values[:10])
    assert answer.status_code == 503
    kept = [str(value) for value in values[:10] if owner(str(value), NAMES) == "north"]
    assert (await answer.get_json())["stored"] == sorted(kept)

    two.servers["south"].start()

    async def is_whole() -> bool:
        answer = await two.front.get(f"/values/{PRIME}")
        return answer.status_code == 200 and len(await answer.get_json()) == COUNT

    await eventually(is_whole, 20)


@pytest.mark.parametrize("body", [b"", b"[1]", b'[{"value": "x", "ttl": 1, "cls": "A"}]', b"{}"])
async def test_a_body_that_is_no_list_of_items_is_refused(body: bytes) -> None:
    """Nothing of it reaches a mesh."""
    answer = await create_app(Meshes({})).test_client().post("/values", data=body)
    assert answer.status_code == 422
