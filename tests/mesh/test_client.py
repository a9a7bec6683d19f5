"""A client asks a mesh without being a member: without a lease, with few rights, and leaving nothing behind."""

from __future__ import annotations

import asyncio
import contextlib
import re
import sys
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from redis.asyncio import Redis
from redis.exceptions import ConnectionError, NoPermissionError

from mesh import (
    Busy,
    Class,
    Database,
    DeadlineExceeded,
    InvalidBody,
    KeyReused,
    NoReplica,
    SetupError,
    Unavailable,
    keys,
)
from mesh.client import WRITE_PRESENCE
from mesh.later.due import Due
from mesh.raw import Ask, Body, Client, Effects, Request, Store, Worker, connect
from mesh.requests.once import Once
from mesh.settings import MeshSettings, RedisSettings
from mesh.testing import MeshKit
from mesh.wire.script import Script
from tests.support.server import Server
from tests.support.waiting import eventually

counting = Worker()
KEYS_PAGE = Path(__file__).parents[2] / "docs" / "keys.md"


@counting.handles("count.add")
async def add(request: Request, store: Store, transaction: Effects) -> Body:
    transaction.incrby("count:n", 1)
    await asyncio.sleep(request.body.get("seconds", 0))
    return {"database": store.database, "from": request.sender}


@counting.handles("count.read", effect=False)
async def read(request: Request, store: Store, transaction: Effects) -> Body:
    return {"n": int(await store.get("count:n") or 0)}


@pytest.fixture(params=["fake", "real"])
async def kit(request: pytest.FixtureRequest) -> AsyncIterator[MeshKit]:
    """Two replicas, over fakeredis and over a real server."""
    url = None if request.param == "fake" else request.getfixturevalue("server").url
    async with MeshKit(counting, replicas=2, redis=url, lease_ttl_ms=1000) as kit:
        yield kit


async def left_by_clients(kit: MeshKit) -> list[str]:
    return [str(key) for key in await kit.redis().keys("*client-*")]


async def test_it_calls_gathers_and_sends(kit: MeshKit) -> None:
    """What it sends, it sends as a replica would."""
    async with kit.connect() as connected:
        client = connected.client
        assert await client.call(Class("B"), "count.add", {}) == {"database": 2, "from": client.id}
        assert await client.gather("count.read", {}) == {1: {"n": 0}, 2: {"n": 1}}
        await client.send(Database(1), "count.add", {})
        await eventually(lambda: kit.redis(1).get("db1:count:n"))
        assert [member.database for member in await client.roster()] == [1, 2]
        assert (await client.books())["answered"] == 4


async def test_it_is_in_no_roster_and_leaves_nothing(kit: MeshKit) -> None:
    """Nobody waits for it in a gather; while it is there, one key says who it is."""
    async with kit.connect() as connected:
        client = connected.client
        assert len(await kit[0].roster()) == 2
        assert await kit.redis().get(f"mesh:client:{client.id}")
        await client.call(Class("A"), "count.add", {})
        assert len(await left_by_clients(kit)) == 3
        # It need not be renewed often, and no key of a client that was killed stays for long.
        for key in (f"mesh:client:{client.id}", f"mesh:replies:{client.id}"):
            assert 9000 < await kit.redis().pttl(key) <= 10_000
    assert await left_by_clients(kit) == []


async def test_no_reply_is_stored_for_a_request_that_was_only_sent(kit: MeshKit) -> None:
    """The worker learns that nobody waits."""
    async with kit.connect() as connected:
        client = connected.client
        for _ in range(3):
            await client.send(Class("A"), "count.add", {})
        await eventually(lambda: _is(kit, "count:n", "3"))
        assert await kit.redis().xlen(f"mesh:replies:{client.id}") == 0


async def _is(kit: MeshKit, key: str, value: str) -> bool:
    return await kit.read(key, database=1) == value


async def test_its_mistakes_and_refusals_are_those_of_a_replica(kit: MeshKit) -> None:
    """The same errors, for calls and for sends."""
    async with kit.connect() as connected:
        client = connected.client
        for ask in (client.call, client.send):
            with pytest.raises(NoReplica):
                await ask(Class("D"), "count.add", {})
            with pytest.raises(InvalidBody):
                await ask(Class("A"), "count.add", {"x": object()})
        with pytest.raises(DeadlineExceeded):
            await client.call(Class("A"), "count.add", {"seconds": 3}, deadline_ms=300)


async def test_a_lost_answer_of_a_submission_changes_nothing(kit: MeshKit) -> None:
    """The batches of a client are numbered as those of a replica."""
    async with kit.connect() as connected:
        client = connected.client
        kit.lose_answers(3)
        kit.lose_requests(1)
        for _ in range(2):
            await client.send(Class("A"), "count.add", {})
        await client.call(Class("A"), "count.add", {})
        await eventually(lambda: _is(kit, "count:n", "3"))


async def test_calls_in_progress_are_answered_before_it_leaves(kit: MeshKit) -> None:
    """A client that leaves waits for its calls, as a replica does."""
    async with kit.connect() as connected:
        client = connected.client
        call = asyncio.create_task(client.call(Class("A"), "count.add", {"seconds": 0.3}))
        await asyncio.sleep(0.1)
    assert (await call)["database"] == 1


async def test_an_emptied_server_costs_it_a_moment(kit: MeshKit) -> None:
    """A client writes its presence again after the server was emptied."""
    async with kit.connect() as connected:
        client = connected.client
        await kit.redis().delete(f"mesh:client:{client.id}", f"mesh:replies:{client.id}")

        async def works() -> bool:
            try:
                await client.call(Class("A"), "count.add", {}, deadline_ms=500)
            except (Unavailable, DeadlineExceeded):
                return False
            return True

        await eventually(works)


async def test_it_works_beside_sixteen_full_databases() -> None:
    """A client needs no database."""
    async with MeshKit(counting, replicas=16) as kit:
        async with kit.connect() as connected:
            client = connected.client
            assert len(await client.gather("count.read", {})) == 16
            assert (await client.call(Database(0), "count.add", {}))["database"] == 0


async def test_a_server_of_another_mesh_is_refused(server: Server) -> None:
    """The claim of another mesh refuses a client, as it refuses a replica."""
    async with MeshKit(counting, redis=server.url):
        with pytest.raises(SetupError, match="MESH_NAME=mesh"):
            async with connect(settings=MeshSettings(name="another", redis=server.settings)):
                raise AssertionError


async def test_an_address_that_is_none_is_refused() -> None:
    """The error names the setting."""
    with pytest.raises(SetupError, match="REDIS_URL"):
        async with connect("http://example.org"):
            raise AssertionError


async def test_while_redis_is_away_calls_are_refused_and_then_work_again(server: Server) -> None:
    """A client never ends by an interruption: a web application goes on, and answers 503 meanwhile."""
    async with connect(server.url) as client:
        with pytest.raises(NoReplica):
            await client.call(Class("A"), "count.add", {})
        server.kill()
        with pytest.raises((Unavailable, DeadlineExceeded)):
            await client.call(Class("A"), "count.add", {}, deadline_ms=500)
        server.start()

        async def works() -> bool:
            try:
                await client.call(Class("A"), "count.read", {}, deadline_ms=500)
            except (Unavailable, DeadlineExceeded):
                return False
            except NoReplica:
                return True
            return False

        await eventually(works)


@pytest.mark.parametrize("use", ["call", "roster", "books"])
async def test_a_presence_that_ended_is_followed_by_another(monkeypatch: pytest.MonkeyPatch, use: str) -> None:
    """After a longer interruption Redis may have forgotten its batches, so it begins anew."""
    monkeypatch.setattr("mesh.client.SAFETY_SHARE", 2)
    async with MeshKit(counting) as kit:
        async with kit.connect() as connected:
            client = connected.client
            with pytest.raises(Unavailable):
                await getattr(client, use)(*(Class("A"), "count.add", {}) if use == "call" else ())
            monkeypatch.setattr("mesh.client.SAFETY_SHARE", 0.1)
            await asyncio.sleep(1)
            assert (await client.call(Class("A"), "count.add", {}))["from"] == client.id
        assert await left_by_clients(kit) == []


async def test_an_overwritten_reply_stream_is_written_anew(server: Server) -> None:
    """With the next renewal of the presence: then calls get their replies again."""
    async with MeshKit(counting, redis=server.settings, lease_ttl_ms=1000) as kit, kit.connect() as connected:
        client = connected.client
        await client.call(Class("A"), "count.add", {})
        await kit.redis().set(keys.replies(client.id), "overwritten")

        async def works() -> bool:
            with contextlib.suppress(DeadlineExceeded):
                return bool(await client.call(Class("A"), "count.add", {}, deadline_ms=300))
            return False

        await eventually(works, 20)


class Failing:
    """A script that fails a few times."""

    def __init__(self, script: Script, times: int) -> None:
        self.script, self.times = script, times

    async def run(self, *words: Any) -> Any:
        if self.times:
            self.times -= 1
            raise ConnectionError("the server is away")
        return await self.script.run(*words)


async def test_a_presence_outlives_renewals_that_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    """As long as Redis still knows of it; it is not replaced meanwhile, so that no call is lost."""
    async with MeshKit(counting, lease_ttl_ms=1000) as kit, kit.connect() as connected:
        client = connected.client
        await client.call(Class("A"), "count.add", {})
        before, failing = client.id, Failing(WRITE_PRESENCE, 3)
        monkeypatch.setattr("mesh.client.WRITE_PRESENCE", failing)
        for _ in range(4):
            await kit.advance(seconds=1)
        assert failing.times == 0
        assert (await client.call(Class("A"), "count.add", {}))["from"] == client.id == before


async def test_redis_may_be_away_at_the_beginning(server: Server) -> None:
    """A web application starts all the same."""
    settings = MeshSettings(redis=RedisSettings(port=1, connect_timeout_ms=50))
    async with connect(settings=settings) as client:
        with pytest.raises(Unavailable):
            await client.call(Class("A"), "count.add", {})


@pytest.fixture
async def asker(server: Server) -> AsyncIterator[str]:
    """Yield the address of the user that docs/keys.md describes."""
    (rule,) = re.findall(r"^ACL SETUSER asker .*?(?=```)", KEYS_PAGE.read_text("utf-8"), re.DOTALL | re.MULTILINE)
    async with Redis.from_url(server.url) as redis:
        await redis.execute_command(*rule.replace("PASSWORD", "secret").split())
    yield server.url.replace("redis://", "redis://asker:secret@").replace("default:", "")


async def test_the_documented_user_may_ask_and_nothing_else(server: Server, asker: str) -> None:
    """A program elsewhere needs no administrator, and cannot reach data or leases."""
    async with MeshKit(counting, redis=server.url) as kit:
        async with connect(asker) as client:
            await client.call(Class("A"), "count.add", {})
            await client.gather("count.read", {})
            await client.send(Class("A"), "count.add", {})
            await client.books()
            await client.roster()
            with pytest.raises(DeadlineExceeded):
                await client.call(Class("A"), "count.add", {"seconds": 3}, deadline_ms=200)
            await client.send(Class("A"), "count.add", {}, key="k", due=Due("+60000"))
            await client.send(Class("A"), "count.add", {}, key="m", due=Due("+60000"), once=Once("m", 1000))
            assert await client.cancel("k")
            assert await client.cancel("m")
            for _ in range(2):
                await client.ask([Ask(Class("A"), "count.add", {}, Once("k", 1000))])
            with pytest.raises(KeyReused):
                await client.ask([Ask(Class("A"), "count.add", {"seconds": 0}, Once("k", 1000))])
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.2):
                    await client.ask([Ask(Class("A"), "count.add", {"seconds": 3}, Once("l", 1000))])
        async with Redis.from_url(asker) as redis:
            for words in (
                ("SELECT", 1),
                ("SET", "mesh:lease:1", "1 x"),
                ("DEL", "mesh:replica:1"),
                ("XREAD", "STREAMS", f"mesh:replies:{kit[0].id}", "0"),
                ("GET", "shared:values:where:1"),
                ("FLUSHALL",),
                ("ACL", "LIST"),
            ):
                with pytest.raises(NoPermissionError):
                    await redis.execute_command(*words)
        assert await left_by_clients(kit) == []


async def test_refused_credentials_are_named(server: Server, asker: str) -> None:
    """Waiting cannot help."""
    with pytest.raises(SetupError, match="password"):
        async with connect(asker.replace("secret", "wrong")):
            raise AssertionError


ASKING = """
import asyncio, sys
from mesh import Class, MeshSettings, RedisSettings
from mesh.raw import connect

async def ask(client, n):
    while True:
        await client.send(Class("AB"[n % 2]), "count.add", {})
        await client.call(Class("AB"[n % 2]), "count.add", {"seconds": 0.05})

async def main():
    settings = MeshSettings(redis=RedisSettings(url=sys.argv[1]), lease_ttl_ms=500, deadline_ms=2000)
    async with connect(settings=settings) as client:
        await asyncio.gather(*(ask(client, n) for n in range(20)))

asyncio.run(main())
"""


async def test_a_killed_client_leaves_nothing_behind(server: Server, tmp_path: Path) -> None:
    """What it asked is done once, or expires; its keys expire; the books balance."""
    async with MeshKit(counting, replicas=2, redis=server.url) as kit:
        process = await asyncio.create_subprocess_exec(sys.executable, "-c", ASKING, server.url)
        for most in (100, 200, 300):
            await eventually(partial(_more, kit, most), explain=lambda: str(len(kit.committed)))
            assert await left_by_clients(kit) != []
            process.kill()
            await process.wait()
            process = await asyncio.create_subprocess_exec(sys.executable, "-c", ASKING, server.url)
        process.kill()
        await process.wait()
        await eventually(partial(_nothing, kit))
        await eventually(partial(_finished, kit))
        books = await kit.books()
        assert books["accepted"] == sum(books.values()) - books["accepted"]
        assert books["lost"] == books["dead"] == 0
        counted = [int(await kit.read("count:n", database=n) or 0) for n in (1, 2)]
        assert sum(counted) == len(kit.committed) == books["answered"]


async def _more(kit: MeshKit, count: int) -> bool:
    return len(kit.committed) >= count


async def _nothing(kit: MeshKit) -> bool:
    return await left_by_clients(kit) == []


async def _finished(kit: MeshKit) -> bool:
    return (await kit.books())["in_flight"] == 0


def test_a_client_has_no_database() -> None:
    """A client has nothing to commit to."""
    assert not hasattr(Client, "transaction")


async def test_it_reads_when_memory_is_really_full(server: Server) -> None:
    """As a replica does; the replicas say which operations have no effect. It may come when memory is full, too."""
    async with (
        MeshKit(counting, replicas=2, redis=server.url, lease_ttl_ms=1000) as kit,
        Redis.from_url(server.url) as admin,
    ):
        try:
            async with kit.connect() as early:
                await early.client.call(Class("A"), "count.add", {})
                await admin.config_set("maxmemory", 1)
                async with kit.connect() as late:
                    for client in (early.client, late.client):
                        assert await client.call(Class("A"), "count.read", {}) == {"n": 1}
                        assert await client.gather("count.read", {}) == {1: {"n": 1}, 2: {"n": 0}}
                        for ask in (client.call, client.send):
                            with pytest.raises(Busy, match="Redis is full"):
                                await ask(Class("A"), "count.add", {})
                    await asyncio.sleep(1.5)  # each has renewed its presence
                    assert await early.client.call(Class("A"), "count.read", {}) == {"n": 1}
        finally:
            await admin.config_set("maxmemory", 0)


async def test_a_user_that_may_not_send_for_later_is_told_so(server: Server, asker: str) -> None:
    """A rule from an older release of the page lacks this right; the rest of the batch happens."""
    async with Redis.from_url(server.url) as redis:
        await redis.execute_command("ACL", "SETUSER", "asker", "-zadd")
    async with MeshKit(counting, redis=server.url) as kit:
        async with connect(asker) as client:
            sends = (
                client.send(Class("A"), "count.add", {}, key="one"),
                client.send(Class("A"), "count.add", {}, key="late", due=Due("+60000")),
                client.send(Class("A"), "count.add", {}, key="kept", due=Due("+60000"), once=Once("kept", 1000)),
                client.send(Class("A"), "count.add", {}, key="two"),
            )
            found = await asyncio.gather(*sends, return_exceptions=True)
            assert [type(each) for each in found] == [type(None), SetupError, SetupError, type(None)]
            assert all("docs/keys.md" in str(each) for each in found[1:3])
            await eventually(lambda: _is(kit, "count:n", "2"))
