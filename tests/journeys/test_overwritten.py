"""A key of the mesh that somebody overwrites with a value of another type, by a command meant for another server."""

from __future__ import annotations

import asyncio

import httpx
import pytest

from tests.support.replicas import Process, Replicas
from tests.support.server import Server
from tests.support.waiting import eventually

#: Keys that no answer needs, or that the replicas write anew.
SPARE = [
    "mesh:later",
    "mesh:books",
    "mesh:minutes",
    "mesh:dead",
    "mesh:paused",
    "mesh:lanes",
    "mesh:clock",
    "mesh:schedules",
    "mesh:operations",
    "mesh:operations:served",
    "mesh:requests:db0",
]


async def statuses(client: httpx.AsyncClient, replica: Process) -> list[int]:
    url, item = replica.public, {"value": 6, "ttl": 600, "cls": "A"}
    answers = await asyncio.gather(
        client.get(url + "/classes"), client.get(url + "/values/3"), client.post(url + "/values", json=[item])
    )
    assert all(answer.status_code != 503 or answer.json()["detail"] for answer in answers)
    return [answer.status_code for answer in answers]


async def after(client: httpx.AsyncClient, replica: Process, seconds: float) -> set[int]:
    """Return the statuses of all answers that come in a time."""
    seen: set[int] = set()
    for _ in range(int(seconds * 4)):
        seen |= set(await statuses(client, replica))
        await asyncio.sleep(0.25)
    return seen


@pytest.mark.timeout(120)
@pytest.mark.parametrize(
    ("key", "is_needed"), [("mesh:requests:A", True), ("mesh:written", False), ("mesh:expected:1", True)]
)
async def test_no_process_ends_and_all_works_when_it_is_repaired(
    server: Server, replicas: Replicas, key: str, is_needed: bool
) -> None:
    """Answers meanwhile are 200, or 503 with a reason; none is a 500. What a commit can write anew fails no request."""
    (replica,) = await replicas(1, {"LOG_FORMAT": "json"})
    with server.redis() as admin:
        admin.delete(key)
        admin.lpush(key, "overwritten")
        seen = await after(replicas.client, replica, 5)
        admin.delete(key)

    async def works() -> bool:
        return await statuses(replicas.client, replica) == [200, 200, 200]

    await eventually(works, 20)
    assert replica.popen.poll() is None, replica.log.read_text()
    assert seen <= {200, 404, 503, 504}
    assert (503 in seen) is is_needed
    assert '"exc_type"' not in replica.log.read_text()


@pytest.mark.timeout(120)
@pytest.mark.parametrize("command", ["SET", "RPUSH"])
async def test_what_no_answer_needs_changes_no_answer(server: Server, replicas: Replicas, command: str) -> None:
    """All these keys are overwritten at once: a replica that runs goes on, and a new one joins."""
    (replica,) = await replicas(1, {"LOG_FORMAT": "json"})
    assert await after(replicas.client, replica, 0.5) == {200}
    with server.redis() as admin:
        for key in SPARE:
            admin.delete(key)
            admin.execute_command(command, key, "overwritten")
        assert await after(replicas.client, replica, 7) == {200}
        assert (await replicas.client.get(replica.private + "/metrics")).status_code == 200
        types = {key: admin.type(key) for key in SPARE}
        (other,) = await replicas(1, {"LOG_FORMAT": "json"})
        assert await after(replicas.client, other, 1) == {200}
    assert types["mesh:operations"] == types["mesh:operations:served"] == "hash"
    for each in (replica, other):
        assert each.popen.poll() is None, each.log.read_text()
        assert '"exc_type"' not in each.log.read_text()


@pytest.mark.timeout(120)
@pytest.mark.parametrize("pattern", ["mesh:replica:*", "mesh:replies:*"])
async def test_what_a_replica_can_renew_is_written_anew(server: Server, replicas: Replicas, pattern: str) -> None:
    """The next renewal of the lease replaces what somebody wrote over the key, and the replica stays a member."""
    (replica,) = await replicas(1, {"LOG_FORMAT": "json"})
    with server.redis() as admin:
        (row,) = admin.keys("mesh:replica:*")
        before = admin.hgetall(row)
        (key,) = admin.keys(pattern)
        admin.set(key, "overwritten")

        async def works() -> bool:
            written_anew = admin.type(key) != "string"
            return await statuses(replicas.client, replica) == [200, 200, 200] and written_anew

        await eventually(works, 15)  # calls whose replies were lost wait for their deadlines first
        now = admin.hgetall(row)
    assert now["replica"] == before["replica"] and now["epoch"] == before["epoch"]
    assert '"exc_type"' not in replica.log.read_text()


@pytest.mark.timeout(120)
async def test_a_replica_starts_beside_texts_that_no_mesh_writes(server: Server, replicas: Replicas) -> None:
    """It takes a database whose keys can be read, and its epoch is that of its time."""
    with server.redis() as admin:
        for key in ("mesh:epoch", "mesh:clock"):
            admin.set(key, "overwritten")
        for number, key in ((1, "db1:class"), (2, "db2:format")):
            with server.redis(number) as database:
                database.set(key, "overwritten")
        (replica,) = await replicas(1, {"LOG_FORMAT": "json"})
        (row,) = admin.keys("mesh:replica:*")
        assert row == "mesh:replica:3"
        assert int(admin.get("mesh:epoch")) > 1_700_000_000_000
    assert await after(replicas.client, replica, 0.5) == {200}
    log = replica.log.read_text()
    assert '"key": "db1:class"' in log and '"key": "db2:format"' in log
    assert '"exc_type"' not in log


@pytest.mark.timeout(120)
@pytest.mark.parametrize("key", ["mesh:format", "mesh:claim"])
async def test_a_replica_that_cannot_start_beside_a_text_names_the_key(
    server: Server, replicas: Replicas, key: str
) -> None:
    """Without the format nobody knows which release wrote the data; without the claim, nobody knows whose they are."""
    with server.redis() as admin:
        admin.set(key, "overwritten")
        replica = replicas.spawn()
        said = f"the key {key}"

        async def names_it() -> bool:
            return said in replica.log.read_text() and "'overwritten'" in replica.log.read_text()

        await eventually(names_it)
        assert "Traceback" not in replica.log.read_text()
        admin.delete(key)
    if key == "mesh:claim":
        assert await replica.ended() == 78
    else:
        await replicas.ready(replica)


@pytest.mark.timeout(120)
async def test_members_and_fields_that_no_mesh_writes_change_no_answer(server: Server, replicas: Replicas) -> None:
    """Somebody has written them by hand beside those of the mesh."""
    (replica,) = await replicas(1, {"LOG_FORMAT": "json"})
    assert await after(replicas.client, replica, 0.5) == {200}
    with server.redis() as admin:
        (row,) = admin.keys("mesh:replica:*")
        number = row.rpartition(":")[2]
        admin.zadd("mesh:written", {"overwritten": 9e15})
        admin.hset("mesh:paused", "nobody.serves", "overwritten")
        with server.redis(int(number)) as own:
            own.zadd(f"db{number}:values:index", {"overwritten": 0, ":": 0, "a:b": 0, "": 0})
            own.hset(f"db{number}:values:alone", "overwritten", "x")
        for _ in range(16):
            admin.hset(row, mapping={"since": "overwritten", "pid": "overwritten", "epoch": "overwritten"})
            assert await after(replicas.client, replica, 0.5) == {200}
    for page in ("/mesh", "/metrics"):
        assert (await replicas.client.get(replica.private + page)).status_code == 200
    assert '"exc_type"' not in replica.log.read_text()
