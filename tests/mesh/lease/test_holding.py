"""A lease in our hands: renewed whatever the replica's event loop does, ended with the membership."""

from __future__ import annotations

import asyncio
import ctypes
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
from redis import exceptions as redis_errors
from structlog.testing import capture_logs

from mesh import Class, LeaseLost, MeshSettings, keys
from mesh.lease import holding
from mesh.lease.loop_thread import LoopThread
from mesh.raw import Effects, Replica, Request, Store, Worker, join
from tests.support.faults.mutations import run_on_the_callers_loop
from tests.support.server import Server
from tests.support.waiting import eventually

TTL_MS = 1000
TTL_S = TTL_MS / 1000


def sleep(seconds: float) -> None:
    """Block the loop in a call that lets other threads run."""
    time.sleep(seconds)


def compute(seconds: float) -> None:
    """Block the loop in Python code; other threads run every 5 ms."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        pass


def keep_the_lock(seconds: float) -> None:
    """Block the loop in one C call that lets nobody run (PyDLL keeps the interpreter's lock)."""
    ctypes.PyDLL(None).usleep(int(seconds * 1e6))


def blocking(block: Callable[[float], None], seconds: float, after: list[bool]) -> Worker:
    """A worker whose handler blocks the event loop and notes whether the lease is trusted right after."""
    worker = Worker()

    @worker.handles("block")
    async def handle(request: Request, store: Store, transaction: Effects) -> dict[str, Any]:
        block(seconds)
        after.append(members[0].trusted)
        return {}

    @worker.handles("quick")
    async def quick(request: Request, store: Store, transaction: Effects) -> dict[str, Any]:
        return {"answered": True}

    members: list[Replica] = []
    worker.members = members  # type: ignore[attr-defined]
    return worker


async def block_a_member(
    server: Server, block: Callable[[float], None], seconds: float, **settings: Any
) -> tuple[bool, bool]:
    """Whether a replica trusts its lease right after its loop was blocked, and whether it then goes on working."""
    after: list[bool] = []
    worker = blocking(block, seconds, after)
    chosen = MeshSettings(redis=server.settings, lease_ttl_ms=TTL_MS, **settings)
    async with join(worker, chosen) as replica:
        worker.members.append(replica)  # type: ignore[attr-defined]
        await asyncio.sleep(0.2)
        asked = asyncio.create_task(replica.call(Class(replica.cls), "block", {}))
        asked.add_done_callback(lambda task: task.cancelled() or task.exception())
        await asyncio.sleep(seconds)
        asked.cancel()
        answer = await replica.call(Class(replica.cls), "quick", {})
        with server.redis() as admin:
            held = admin.get(f"mesh:lease:{replica.database}")
        return after[0], answer == {"answered": True} and held == f"{replica.epoch} {replica.id}"


@pytest.mark.parametrize("block", [sleep, compute])
async def test_a_handler_that_blocks_the_loop_for_two_ttls_costs_no_lease(
    server: Server, block: Callable[[float], None]
) -> None:
    """The lease is renewed by a thread of its own; the same epoch goes on working."""
    assert await block_a_member(server, block, 2 * TTL_S) == (True, True)


async def test_without_its_thread_the_lease_is_lost(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """Take the thread out, and the test above fails."""
    monkeypatch.setattr(LoopThread, "run", run_on_the_callers_loop)
    with pytest.raises(LeaseLost):
        await block_a_member(server, sleep, 2 * TTL_S)


async def test_a_c_call_that_keeps_the_interpreters_lock_for_half_a_ttl_costs_no_lease(server: Server) -> None:
    """Six renewals fit in a ttl, and the last one counts from when it was sent."""
    assert await block_a_member(server, keep_the_lock, TTL_S / 2) == (True, True)


async def test_a_c_call_that_keeps_the_interpreters_lock_for_two_ttls_costs_the_lease(server: Server) -> None:
    """No thread of this process can run then, as if it were stopped: it must not act on the lease after it."""
    after: list[bool] = []
    worker = blocking(keep_the_lock, 2 * TTL_S, after)
    with pytest.raises(LeaseLost):
        async with join(worker, MeshSettings(redis=server.settings, lease_ttl_ms=TTL_MS)) as replica:
            worker.members.append(replica)  # type: ignore[attr-defined]
            await asyncio.sleep(0.2)
            await replica.call(Class(replica.cls), "block", {})
    assert after == [False]


async def test_a_loop_that_hangs_gives_its_database_to_another(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that never answers again must not keep a database for ever."""
    monkeypatch.setattr(holding, "HUNG_TTLS", 1)
    with pytest.raises(LeaseLost, match="event loop of this replica has been blocked for 1 s"):
        async with join(Worker(), MeshSettings(redis=server.settings, lease_ttl_ms=TTL_MS)):
            await asyncio.sleep(0.2)
            sleep(2.2 * TTL_S)
            await asyncio.sleep(5)


async def no_lease_thread() -> bool:
    return not any(thread.name.startswith("lease-") for thread in threading.enumerate())


async def live(server: Server, ready: asyncio.Event, end: asyncio.Future[None]) -> None:
    """A membership that ends as `end` does."""
    async with join(Worker(), MeshSettings(redis=server.settings, lease_ttl_ms=TTL_MS)):
        await asyncio.sleep(0.1)
        assert not await no_lease_thread()
        ready.set()
        await end


@pytest.mark.parametrize("how", ["in order", "with an error", "cancelled", "lease lost"])
async def test_the_thread_ends_with_the_membership(server: Server, how: str) -> None:
    """The thread ends no later than the membership, whatever ends that."""
    ready, end = asyncio.Event(), asyncio.get_running_loop().create_future()
    living = asyncio.create_task(live(server, ready, end))
    await ready.wait()
    if how == "in order":
        end.set_result(None)
        await living
    elif how == "with an error":
        end.set_exception(LookupError("of the application"))
        with pytest.raises(LookupError):
            await living
    elif how == "cancelled":
        living.cancel()
        with pytest.raises(asyncio.CancelledError):
            await living
    else:
        with server.redis() as admin:
            admin.set("mesh:lease:1", "1 replica-other", px=60_000)
        with pytest.raises(LeaseLost):
            await living
    await eventually(no_lease_thread, 1)


async def test_the_thread_ends_although_the_loop_was_closed_without_it(server: Server) -> None:
    """Nobody cancels anything: the renewals end by themselves, and the lease runs out."""
    settings = MeshSettings(redis=server.settings, lease_ttl_ms=TTL_MS)

    def abandon() -> None:
        loop = asyncio.new_event_loop()
        joining = loop.create_task(join(Worker(), settings).__aenter__())
        loop.run_until_complete(joining)
        loop.run_until_complete(asyncio.sleep(0.2))
        for task in asyncio.all_tasks(loop):
            task._log_destroy_pending = False  # type: ignore[attr-defined]
        loop.close()

    await asyncio.to_thread(abandon)
    await eventually(no_lease_thread, 2)
    with server.redis() as admin:

        async def free() -> bool:
            return not admin.exists("mesh:lease:1")

        await eventually(free, TTL_S + 1)


async def test_a_state_reaches_the_roster_from_the_replicas_loop(server: Server) -> None:
    """The state is in the next renewal, which comes at once, also when one is just on its way."""
    settings = MeshSettings(redis=server.settings, lease_ttl_ms=30_000)
    async with join(Worker(), settings) as replica:
        with server.redis() as admin:
            for state in ("draining", "ready") * 10:
                replica._lease.set_state(state)

                async def told(expected: str = state) -> bool:
                    return admin.hget(f"mesh:replica:{replica.database}", "state") == expected

                await eventually(told, 1)


@pytest.mark.parametrize("error", [redis_errors.ConnectionError("gone"), TimeoutError(), OSError("reset")], ids=repr)
async def test_a_release_that_fails_ends_the_membership_in_order(
    server: Server, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    """The lease runs out by itself when Redis goes away during the release."""

    class Failing:
        async def run(self, *words: object) -> int:
            raise error

    monkeypatch.setattr(holding, "RELEASE", Failing())
    async with join(Worker(), MeshSettings(redis=server.settings, lease_ttl_ms=TTL_MS)) as replica:
        pass
    assert not await replica._lease.release(0)
    await eventually(no_lease_thread, 1)
    with server.redis() as admin:
        assert admin.get(f"mesh:lease:{replica.database}") == f"{replica.epoch} {replica.id}"


async def test_the_holder_measures_how_late_its_loop_runs(server: Server) -> None:
    """The roster tells an operator, in ms, which replica is too busy."""
    async with join(Worker(), MeshSettings(redis=server.settings, lease_ttl_ms=600)) as replica:
        lease, seen = replica._lease, list[float]()

        def describe() -> dict[str, str]:
            seen.append(lease.loop_ms)
            return {}

        lease.describe = describe

        async def described() -> bool:
            return len(seen) > 1

        await eventually(described)
        sleep(0.4)
        await asyncio.sleep(0.05)
    assert 200 < max(seen) < 10_000


async def test_a_replica_leaves_once_an_operator_asks_it_to(server: Server) -> None:
    """Each renewal looks for that. One that was asked is not asked again."""
    asked: list[int] = []
    async with join(Worker(), MeshSettings(redis=server.settings, lease_ttl_ms=TTL_MS)) as replica:
        replica.on_drain(lambda: asked.append(1))
        await asyncio.sleep(0.5)
        assert asked == []
        with server.redis() as admin:
            admin.set(keys.drain(replica.id), 1)

        async def told() -> bool:
            return bool(asked)

        await eventually(told)
        await asyncio.sleep(0.5)
    assert asked == [1]


async def test_work_waits_for_a_lease_that_the_next_renewal_puts_back(server: Server) -> None:
    """An emptied server costs a moment: the renewal also makes the stream of replies again."""
    worker = blocking(sleep, 0, [])
    async with join(worker, MeshSettings(redis=server.settings, lease_ttl_ms=TTL_MS)) as replica:
        with server.redis() as admin:
            # Each of them ends with a renewal, so the next one meets a lease that is gone for a while.
            for number in range(3):
                admin.delete(f"mesh:lease:{replica.database}")
                transaction = replica.transaction()
                transaction.set("x", number)
                assert await replica.commit(transaction)
                admin.delete(f"mesh:lease:{replica.database}")
                assert await replica.call(Class(replica.cls), "quick", {}) == {"answered": True}
            admin.delete(keys.replies(replica.id))

            async def made() -> bool:
                return bool(admin.exists(keys.replies(replica.id)))

            await eventually(made, 2)
        assert replica.trusted


async def test_a_lease_that_is_put_back_on_an_emptied_server_is_told_once(server: Server) -> None:
    """An operator learns that data may be gone, and is not told so by each renewal."""
    settings = MeshSettings(redis=server.settings, lease_ttl_ms=TTL_MS)
    with capture_logs() as logs:

        def told() -> list[tuple[int, int]]:
            says = [log for log in logs if log["event"] == "lease restored on an emptied server"]
            return [(log["database"], log["epoch"]) for log in says]

        async with join(Worker(), settings) as replica:

            async def renewed_twice() -> None:
                for _ in range(2):
                    last = replica._lease._renewal

                    async def renewed(last: object = last) -> bool:
                        return replica._lease._renewal is not last

                    await eventually(renewed)

            await renewed_twice()
            assert told() == []
            with server.redis() as admin:
                admin.delete(f"mesh:lease:{replica.database}")
            await renewed_twice()
            with server.redis() as admin:
                assert admin.get(f"mesh:lease:{replica.database}") == f"{replica.epoch} {replica.id}"
            await renewed_twice()
    assert told() == [(replica.database, replica.epoch)]
