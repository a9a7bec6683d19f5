"""A replica that slept through its lease writes and reads nothing under it: the server has cut it off."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import redis

from mesh import Member
from tests.support.replicas import Replicas
from tests.support.server import Server
from tests.support.waiting import eventually

TTL_S = 1.5
ENV = {"MESH_LEASE_TTL_MS": str(int(TTL_S * 1000))}

#: A `sitecustomize` module: the replica trusts its lease however long it slept, like one that was stopped between its
#: look at the clock and its command.
BELIEVING = """
from mesh.lease.holding import Lease

Lease.trusted = property(lambda self: self._loss is None)
"""

#: The grant no longer deletes the former holder's user.
WITHOUT_DELETION = """
from redis.asyncio.client import Pipeline

say = Pipeline.execute_command

def without_deletion(self, *words, **options):
    if words[:2] == ("ACL", "DELUSER"):
        words = ("PING",)
    return say(self, *words, **options)

Pipeline.execute_command = without_deletion
"""


class Monitor:
    """What the server itself says it has executed."""

    def __init__(self, server: Server) -> None:
        self._client = server.redis()
        self.lines: list[str] = []

    @contextlib.contextmanager
    def running(self) -> Iterator[Monitor]:
        with self._client.monitor() as monitor:
            ended = threading.Event()
            reading = threading.Thread(target=self._read, args=(monitor, ended), daemon=True)
            reading.start()
            yield self
            ended.set()
            reading.join(5)

    def _read(self, monitor: redis.client.Monitor, ended: threading.Event) -> None:
        with contextlib.suppress(redis.RedisError):
            while not ended.is_set():
                self.lines.append(str(monitor.next_command()))

    def of(self, replica: str) -> list[str]:
        """Commands of this replica: each names it, as consumer, as holder or by its reply stream."""
        return [line for line in self.lines if replica in line]


async def sleep_through_the_lease(replicas: Replicas, env: dict[str, str]) -> tuple[list[str], Member, Member]:
    """Stop a replica for twice its lease, let another take its database, and let the first one go on.

    Returns what the server executed for the former membership of the sleeper after it woke, the sleeper's new
    membership, and its successor.
    """
    (sleeper,) = await replicas(1, {**ENV, **env})
    (asleep,) = await replicas.roster()
    item = {"value": 77, "ttl": 600, "cls": asleep.cls}
    assert (await replicas.client.post(f"{sleeper.public}/values", json=[item])).status_code == 200

    sleeper.send(signal.SIGSTOP)
    stopped = asyncio.get_running_loop().time()
    successor = replicas.spawn({**ENV, **env})
    await replicas.ready(successor)
    await asyncio.sleep(max(0.0, stopped + 2 * TTL_S - asyncio.get_running_loop().time()))
    (member,) = await replicas.roster()
    assert member.pid == successor.pid

    with Monitor(replicas.server).running() as monitor:
        sleeper.send(signal.SIGCONT)

        async def joined_again() -> Member | None:
            mine = [each for each in await replicas.roster() if each.pid == sleeper.pid]
            return mine[0] if mine and mine[0].replica != asleep.replica else None

        again: Member = await eventually(joined_again, TTL_S + 10)

        async def went_on() -> bool:
            return len(monitor.of(member.replica)) > 5

        await eventually(went_on)
    await replicas.ready(sleeper)
    assert sleeper.popen.poll() is None, "a lost lease does not end the process"
    assert (await replicas.client.get(f"{successor.public}/values/11")).json()[0]["value"] == 77
    return monitor.of(asleep.replica), again, member


async def test_none_of_a_sleepers_commands_succeeds_and_it_joins_again(replicas: Replicas) -> None:
    """The new grant deleted its Redis user, which cut its connections and made its password useless."""
    executed, again, successor = await sleep_through_the_lease(replicas, {})
    assert executed == []
    assert again.database != successor.database and again.epoch > successor.epoch
    with replicas.server.redis() as admin:
        assert admin.get(f"mesh:lease:{successor.database}") == f"{successor.epoch} {successor.replica}"


async def test_the_fence_holds_against_a_sleeper_that_believes_in_its_lease(replicas: Replicas, tmp_path: Path) -> None:
    """The sleeper need not notice anything: the server alone refuses every command."""
    (tmp_path / "sitecustomize.py").write_text(BELIEVING)
    executed, _, _ = await sleep_through_the_lease(replicas, {"PYTHONPATH": str(tmp_path)})
    assert executed == []


async def test_without_the_deletion_of_its_user_a_sleepers_commands_reach_the_server(
    replicas: Replicas, tmp_path: Path
) -> None:
    """The fence is that deletion: without it the test above fails. (Commits would still be refused.)

    The sleeper joins again here, too, because its renewal is told that another replica holds the lease.
    """
    (tmp_path / "sitecustomize.py").write_text(BELIEVING + WITHOUT_DELETION)
    executed, _, _ = await sleep_through_the_lease(replicas, {"PYTHONPATH": str(tmp_path)})
    assert executed != []


async def test_a_replica_that_cannot_renew_stops_by_itself_and_comes_back(replicas: Replicas) -> None:
    """Trust in a lease ends before the lease does, without a word from Redis.

    The replica answers 503 with Retry-After then, refuses no connection, and joins again within a second.
    """
    (one,) = await replicas(1, ENV)
    (before,) = await replicas.roster()
    assert replicas.server.process is not None
    replicas.server.process.send_signal(signal.SIGSTOP)
    started = asyncio.get_running_loop().time()

    async def stopped() -> bool:
        answer = await replicas.client.get(f"{one.public}/classes")
        return answer.status_code == 503 and bool(answer.headers["Retry-After"])

    await eventually(stopped, TTL_S)
    await asyncio.sleep(max(0.0, started + 3 * TTL_S - asyncio.get_running_loop().time()))
    for path in ("/classes", "/values/11"):
        assert (await replicas.client.get(f"{one.public}{path}")).status_code == 503
    assert (await replicas.client.get(f"{one.public}/readyz")).status_code == 503
    assert (await replicas.client.get(f"{one.public}/health")).status_code == 200
    replicas.server.process.send_signal(signal.SIGCONT)
    await replicas.ready(one, 1)
    (after,) = await replicas.roster()
    assert (after.pid, after.database) == (before.pid, before.database)
    assert after.epoch > before.epoch and after.replica != before.replica
    assert "mesh_memberships_lost_total 1.0" in (await replicas.client.get(f"{one.private}/metrics")).text


async def test_a_replica_ends_in_order_while_it_waits_to_join_again(replicas: Replicas) -> None:
    """After a SIGTERM between two memberships the process ends at once with the status 0."""
    (one,) = await replicas(1, ENV)
    replicas.server.kill()

    async def lost() -> bool:
        return "membership lost" in one.log.read_text()

    await eventually(lost)
    one.popen.terminate()
    assert await one.ended(5) == 0


async def test_a_short_sleep_costs_nothing(replicas: Replicas) -> None:
    """After a sleep of half a lease the replica has the same name and epoch."""
    (one,) = await replicas(1, ENV)
    (before,) = await replicas.roster()
    one.send(signal.SIGSTOP)
    await asyncio.sleep(TTL_S / 2)
    one.send(signal.SIGCONT)
    assert (await replicas.client.get(f"{one.public}/values/11")).status_code == 200
    (after,) = await replicas.roster()
    assert (after.replica, after.epoch) == (before.replica, before.epoch)
