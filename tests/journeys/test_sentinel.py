"""A Redis that fails over: a master, two copies, three sentinels, and a mesh that is told the sentinels alone.

And sentinels that do not answer just anybody.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import time
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
import redis
from pydantic import SecretStr

from mesh import Connections, Member
from mesh.settings import RedisSettings
from mesh.wire.clients import SHARED_CONNECTIONS
from quart_app.local import replicas
from quart_app.local.discovery import read_roster
from quart_app.local.ports import free_ports
from quart_app.local.processes import Supervisor
from quart_app.local.redis_program import find_server
from quart_app.local.replicas import PortPair
from tests.support import tls
from tests.support.load import History, Sample, load, send
from tests.support.replicas import PROFILE, Replicas
from tests.support.server import Server
from tests.support.waiting import eventually

NAME = "mesh"
BACK_WITHIN_S = 5.0
#: What a copy is waited for; many at once would together wait longer than for any answer (1.5 s).
WAIT_MS = 600


@dataclass
class Cluster:
    """Servers and sentinels, each a process of its own."""

    servers: dict[int, subprocess.Popen[bytes]]
    sentinels: list[int]

    @property
    def settings(self) -> RedisSettings:
        addresses = ",".join(f"127.0.0.1:{port}" for port in self.sentinels)
        return RedisSettings(sentinels=addresses, sentinel_master=NAME)

    def master(self) -> int:
        """The master's port, as the sentinels have it."""
        for port in self.sentinels:
            with contextlib.suppress(redis.RedisError), redis.Redis(port=port, decode_responses=True) as client:
                return int(client.sentinel_get_master_addr_by_name(NAME)[1])  # type: ignore[index]
        raise AssertionError("no sentinel answers")

    def kill_master(self) -> int:
        """kill -9; its port."""
        port = self.master()
        self.servers[port].kill()
        self.servers[port].wait()
        return port

    def copies(self) -> int:
        """Return how many copies the master counts as connected."""
        with contextlib.suppress(redis.RedisError), redis.Redis(port=self.master(), decode_responses=True) as client:
            return int(client.info("replication")["connected_slaves"])  # type: ignore[index]
        return 0

    def is_whole_without(self, dead: int) -> bool:
        """Whether there is another master, and a copy that confirms what is written to it."""
        with contextlib.suppress(redis.RedisError, AssertionError):
            master = self.master()
            with redis.Redis(port=master, db=15) as client:
                client.set("probe", "1", px=100)
                return master != dead and client.wait(1, 100) >= 1  # type: ignore[no-any-return,operator]
        return False

    def watched(self) -> bool:
        """Whether every sentinel knows the copies and the other sentinels: before, nobody could be elected."""
        for port in self.sentinels:
            with redis.Redis(port=port, decode_responses=True) as client:
                state = client.sentinel_master(NAME)
                if (state["num-slaves"], state["num-other-sentinels"]) != (2, 2):  # type: ignore[index]
                    return False
        return True


def start(folder: Path, port: int, *words: str, lines: tuple[str, ...] = ()) -> subprocess.Popen[bytes]:
    home = folder / str(port)
    home.mkdir()
    config = home / "config"
    config.write_text("\n".join([f"port {port}", "bind 127.0.0.1", f"dir {home}", *lines, ""]))
    with (home / "log").open("wb") as log:
        return subprocess.Popen([find_server().path, config, *words], stdout=log, stderr=log)


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    """One master, two copies, three sentinels that call a server dead after half a second."""
    ports = free_ports(6)
    master, sentinels = ports[0], ports[3:]
    keep = ("appendonly yes", 'save ""', "repl-diskless-sync-delay 0", "databases 16")
    servers = {master: start(tmp_path, master, lines=keep)}
    for port in ports[1:3]:
        servers[port] = start(tmp_path, port, lines=(*keep, f"replicaof 127.0.0.1 {master}"))
    watch = (
        f"sentinel monitor {NAME} 127.0.0.1 {master} 2",
        f"sentinel down-after-milliseconds {NAME} 500",
        f"sentinel failover-timeout {NAME} 5000",
    )
    watchers = [start(tmp_path, port, "--sentinel", lines=watch) for port in sentinels]
    yield Cluster(servers, sentinels)
    for process in (*watchers, *servers.values()):
        process.kill()
        process.wait()


@contextlib.asynccontextmanager
async def supervised(cluster: Cluster, count: int, folder: Path, **settings: str) -> AsyncIterator[list[str]]:
    """Run replicas that are started again when they end, as any orchestrator does; yield their public addresses."""
    logs = folder / "logs"
    logs.mkdir()
    ports = free_ports(2 * count)
    environment = {
        **os.environ, **PROFILE, "SERVICES": "values", "HOST": "127.0.0.1", "LOG_FORMAT": "console",
        "REDIS_SENTINELS": cluster.settings.sentinels, "REDIS_SENTINEL_MASTER": NAME, **settings,
    }  # fmt: skip
    pairs = [PortPair(*pair) for pair in zip(ports[::2], ports[1::2], strict=True)]
    async with replicas.running(Supervisor(print), replicas.replica_programs(pairs, environment, logs, 15)):
        yield [f"http://127.0.0.1:{port}" for port in ports[::2]]


async def members(cluster: Cluster) -> list[Member]:
    with contextlib.suppress(redis.RedisError, OSError):
        return [each for each in await read_roster(cluster.settings) if each.state == "ready" and each.leased]
    return []


async def all_ready(cluster: Cluster, count: int) -> list[Member]:
    async def ready() -> list[Member]:
        found = await members(cluster)
        return found if len(found) == count else []

    found: list[Member] = await eventually(ready, 40)
    return found


async def settled(cluster: Cluster) -> None:
    async def whole() -> bool:
        with contextlib.suppress(redis.RedisError):
            return cluster.copies() == 2 and cluster.watched()
        return False

    await eventually(whole, 30)


def outage_s(history: History, since: float) -> float:
    """From the kill to the first POST, begun after it, that was done."""
    ends = [each.began + each.took_s for each in history.succeeded("POST") if each.began > since + 0.1]
    return min(ends) - since


async def everything_at(base: str) -> set[int]:
    """Every even value that is there."""
    found: set[int] = set()
    after = ""
    async with httpx.AsyncClient(base_url=base, timeout=30) as client:
        while page := (await client.get(f"/values/2?limit=1000{after}")).json():
            found |= {each["value"] for each in page}
            after = f"&after={page[-1]['value']}"
    return found


async def test_more_commands_at_once_than_connections_wait_for_one(cluster: Cluster) -> None:
    """Commands wait for a connection as they do without sentinels; redis-py's own pool refuses them."""
    await settled(cluster)
    client = Connections(cluster.settings).client("shared", shared=True)
    answers = await asyncio.gather(*(client.incr("n") for _ in range(5 * SHARED_CONNECTIONS)))
    assert sorted(answers) == list(range(1, 5 * SHARED_CONNECTIONS + 1))
    await client.aclose()


@pytest.fixture
def guarded(tmp_path: Path) -> Iterator[Callable[..., Cluster]]:
    """A master and one sentinel, each with a password. The sentinel names the port `named` as that of the master."""
    running: list[subprocess.Popen[bytes]] = []

    def make(master: int, sentinel: int, named: int) -> Cluster:
        running.append(start(tmp_path, master, lines=('save ""', "requirepass of-the-server")))
        watch = (f"sentinel monitor {NAME} 127.0.0.1 {named} 1", f"sentinel down-after-milliseconds {NAME} 3600000")
        login = (f"sentinel auth-pass {NAME} of-the-server", "requirepass of-the-sentinel")
        running.append(start(tmp_path, sentinel, "--sentinel", lines=(*watch, *login)))
        return Cluster({}, [sentinel])

    yield make
    for process in running:
        process.kill()
        process.wait()


async def who_answers(settings: RedisSettings) -> list[str]:
    """Wait until the server answers; return the user and the database of the connection."""
    client = Connections(settings).client("t")

    async def answer() -> list[str]:
        with contextlib.suppress(redis.ConnectionError):
            return [await client.execute_command("ACL", "WHOAMI"), str((await client.client_info())["db"])]
        return []

    try:
        found: list[str] = await eventually(answer, 10)
        return found
    finally:
        await client.aclose()


async def test_sentinels_may_ask_for_a_password_of_their_own(guarded: Callable[..., Cluster]) -> None:
    """It differs from that of the servers, which may stand in the address. Without it the error gives the reason."""
    master, sentinel = free_ports(2)
    cluster = guarded(master, sentinel, master)
    told = cluster.settings.model_copy(update={"sentinel_password": SecretStr("of-the-sentinel")})
    assert await who_answers(told.model_copy(update={"password": SecretStr("of-the-server")})) == ["default", "0"]
    named = SecretStr("redis://:of-the-server@nowhere:1/3")
    assert await who_answers(told.model_copy(update={"url": named})) == ["default", "3"]
    for wrong in (None, SecretStr("another")):
        client = Connections(told.model_copy(update={"sentinel_password": wrong})).client("t")
        with pytest.raises(
            redis.ConnectionError, match=rf"No master found for 'mesh' : 127.0.0.1:{sentinel} - .{{0,20}}Authentication"
        ):
            await client.ping()
        await client.aclose()


@tls.needed
async def test_sentinels_and_servers_behind_tls(guarded: Callable[..., Cluster], tmp_path: Path) -> None:
    """The address says so, for both; without its certificate nobody is trusted."""
    certificate = await tls.certificate(tmp_path)
    master, sentinel = free_ports(2)
    async with tls.before(master, certificate) as server, tls.before(sentinel, certificate) as asked:
        guarded(master, sentinel, server)
        address = f"rediss://:of-the-server@nowhere/2?ssl_ca_certs={certificate.path}"
        told = Cluster({}, [asked]).settings.model_copy(
            update={"url": SecretStr(address), "sentinel_password": SecretStr("of-the-sentinel")}
        )
        assert await who_answers(told) == ["default", "2"]
        client = Connections(told.model_copy(update={"url": SecretStr(address.partition("?")[0])})).client("t")
        with pytest.raises(redis.ConnectionError, match="No master found"):
            await client.ping()
        await client.aclose()


@pytest.mark.slow
async def test_a_master_killed_under_load_is_replaced_and_nothing_acknowledged_is_lost(
    cluster: Cluster, tmp_path: Path
) -> None:
    """The mesh is back within five seconds. If the sentinels or the machine are slow, the outage may last until some
    master has a copy, and then for as long as a replica takes to start. The epochs are new. With WAIT, every value that
    had a 200 is still there."""
    await settled(cluster)
    async with supervised(cluster, 2, tmp_path, REDIS_WAIT_REPLICAS="1") as (base, _):
        began = time.monotonic()
        before = await all_ready(cluster, 2)
        start_s = time.monotonic() - began
        classes = [each.cls for each in before]
        async with load(base, classes, clients=6) as history:
            await asyncio.sleep(2)
            killed_at = time.monotonic()
            dead = cluster.kill_master()

            async def redis_is_whole() -> bool:
                return await asyncio.to_thread(cluster.is_whole_without, dead)

            async def serves_again() -> bool:
                return any(each.began > killed_at + 0.1 for each in history.succeeded("POST"))

            await eventually(redis_is_whole, 30)
            failover_s = time.monotonic() - killed_at
            await eventually(serves_again, 30)
            await asyncio.sleep(1)
        after = await all_ready(cluster, 2)
        acknowledged = {each.body[0]["value"] for each in history.succeeded("POST")}
        kept = await everything_at(base)
    assert cluster.master() != dead
    assert min(each.epoch for each in after) > max(each.epoch for each in before)
    assert sorted(each.database for each in after) == sorted(each.database for each in before)
    assert len(acknowledged) > 20
    assert acknowledged - kept == set()
    assert outage_s(history, killed_at) < max(BACK_WITHIN_S, failover_s + start_s), history.says()


async def test_nothing_is_acknowledged_that_no_copy_has(make_server: Callable[..., Server], replicas: Replicas) -> None:
    """With WAIT and a copy that does not answer, every client soon gets an error, however many there are. Requests that
    need no copy are not held up, and all succeed once the copy is back."""
    copy = make_server("--replicaof", "127.0.0.1", str(replicas.server.port))
    (replica,) = await replicas(1, {"REDIS_WAIT_REPLICAS": "1", "REDIS_WAIT_TIMEOUT_MS": str(WAIT_MS)})

    def items(value: int) -> list[dict[str, Any]]:
        return [{"value": value, "ttl": 60, "cls": "A"}]

    async def post(value: int) -> Sample:
        return await send(replicas.client, "POST", replica.public + "/values", items(value))

    async def classes() -> Sample:
        return await send(replicas.client, "GET", replica.public + "/classes")

    async def is_safe() -> bool:
        return (await post(30)).ok

    async def begin_job() -> httpx.Response:
        asynchronously = {"Prefer": "respond-async"}
        return await replicas.client.post(replica.public + "/values", json=items(42), headers=asynchronously)

    await eventually(is_safe, 20)
    job = replica.public + (await begin_job()).headers["Location"]
    assert copy.process is not None
    copy.process.send_signal(signal.SIGSTOP)
    # Several rounds, and longer than Redis may take for an answer: nothing must be said again to a new connection.
    for start in (1000, 2000, 3000):
        told, others = await asyncio.gather(
            asyncio.gather(*(post(start + each) for each in range(12))),
            asyncio.gather(*(classes() for _ in range(12))),
        )
        assert {each.status for each in told} == {503}
        assert max(each.took_s for each in told) < 2 * WAIT_MS / 1000 + 1
        assert {each.status for each in others} == {200}
        assert max(each.took_s for each in others) < WAIT_MS / 1000
    answers = [await begin_job(), await replicas.client.get(job), await replicas.client.delete(job)]
    assert [answer.status_code for answer in answers] == [503] * 3
    copy.process.send_signal(signal.SIGCONT)
    await eventually(is_safe, 20)
    answers = [await begin_job(), await replicas.client.get(job)]
    assert [answer.status_code for answer in answers] == [202, 404]
