"""A replica that slept through its lease changes nothing and reads nothing: the server has cut it off."""

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

#: Loaded by a Python that finds it on its path: a replica that believes in its lease however long it slept, as one
#: does that was stopped between its look at the clock and its command.
BELIEVING = """
from mesh.lease.holding import Lease

Lease.trusted = property(lambda self: self._lost is None)
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


async def sleep_through_the_lease(replicas: Replicas, env: dict[str, str]) -> tuple[list[str], int, Member]:
    """SIGSTOP a replica for twice its lease, let another take its database, SIGCONT.

    Returns what the server executed for the sleeper after it woke, its exit status, and its successor.
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
        status = await sleeper.ended(TTL_S + 10)

        async def went_on() -> bool:
            return len(monitor.of(member.replica)) > 5

        await eventually(went_on)
    assert (await replicas.client.get(f"{successor.public}/values/11")).json()[0]["value"] == 77
    return monitor.of(asleep.replica), status, member


async def test_none_of_a_sleepers_commands_succeeds_and_it_exits_to_start_anew(replicas: Replicas) -> None:
    """Its Redis user is gone with the new grant, so its connections are, and its password is nobody's."""
    executed, status, successor = await sleep_through_the_lease(replicas, {})
    assert executed == []
    assert status == 75
    with replicas.server.redis() as admin:
        assert admin.get(f"mesh:lease:{successor.database}") == f"{successor.epoch} {successor.replica}"


async def test_the_fence_holds_against_a_sleeper_that_believes_in_its_lease(replicas: Replicas, tmp_path: Path) -> None:
    """It needs no insight of the sleeper's: the server alone refuses every word."""
    (tmp_path / "sitecustomize.py").write_text(BELIEVING)
    executed, status, _ = await sleep_through_the_lease(replicas, {"PYTHONPATH": str(tmp_path)})
    assert executed == []
    assert status == 75


async def test_without_the_deletion_of_its_user_a_sleepers_commands_reach_the_server(
    replicas: Replicas, tmp_path: Path
) -> None:
    """The fence is that deletion: take it out, and the test above fails. (The commits would still be refused.)"""
    (tmp_path / "sitecustomize.py").write_text(BELIEVING + WITHOUT_DELETION)
    executed, status, _ = await sleep_through_the_lease(replicas, {"PYTHONPATH": str(tmp_path)})
    assert executed != []
    assert status == 75, "the renewal tells it in the end that the lease is in other hands"


async def test_a_replica_that_cannot_renew_stops_by_itself(replicas: Replicas) -> None:
    """Trust in a lease ends before the lease does: no word of Redis is needed to stop."""
    (one,) = await replicas(1, ENV)
    assert replicas.server.process is not None
    replicas.server.process.send_signal(signal.SIGSTOP)
    started = asyncio.get_running_loop().time()
    status = await one.ended(TTL_S + 5)
    assert status == 75
    assert asyncio.get_running_loop().time() - started < TTL_S + 2


async def test_a_short_sleep_costs_nothing(replicas: Replicas) -> None:
    """Half a lease asleep: the same replica, the same epoch."""
    (one,) = await replicas(1, ENV)
    (before,) = await replicas.roster()
    one.send(signal.SIGSTOP)
    await asyncio.sleep(TTL_S / 2)
    one.send(signal.SIGCONT)
    assert (await replicas.client.get(f"{one.public}/values/11")).status_code == 200
    (after,) = await replicas.roster()
    assert (after.replica, after.epoch) == (before.replica, before.epoch)
