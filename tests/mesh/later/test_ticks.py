"""Operations that run by themselves: each tick happens once, although replicas die."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Awaitable, Callable

import pytest
from msgspec import Struct

from mesh import Limit, Operations, Tick, Transaction, UsageError, keys
from mesh.discovery import publishing
from mesh.testing import MeshKit
from tests.support.other_lines import instead

ONE_CLASS = {"classes": "A"}


class Note(Struct):
    text: str


def ticking(**options: object) -> tuple[Operations, list[Tick]]:
    """An operation that runs each minute, and the ticks that it saw."""
    table, ticks = Operations("clock"), list[Tick]()

    @table.every("* * * * *", **options)  # type: ignore[arg-type]
    async def tick(tx: Transaction, tick: Tick) -> None:
        tx.set(table.value("last", int, 0), tick.at)
        ticks.append(tick)

    return table, ticks


def minutes(ticks: list[Tick]) -> list[int]:
    """The minutes between ticks."""
    return [(after.at - before.at) // 60_000 for before, after in itertools.pairwise(ticks)]


class TestEvery:
    """`@operations.every(cron)`."""

    async def test_each_tick_is_one_run(self) -> None:
        table, ticks = ticking()
        async with MeshKit(table, replicas=3) as kit:
            await kit.advance(minutes=20, seconds=5)
            assert len(ticks) in (20, 21)
            assert set(minutes(ticks)) == {1}
            assert {tick.missed for tick in ticks} == {0}

    async def test_the_replica_that_sends_a_tick_knows_the_next_one(self) -> None:
        """It depends neither on a renewal nor on its next look at the schedule to tell it."""
        table, ticks = Operations("clock"), list[Tick]()

        @table.every("*/5 * * * * *")
        async def tick(tx: Transaction, tick: Tick) -> None:
            ticks.append(tick)

        async with MeshKit(table, lease_ttl_ms=3_600_000) as kit:
            await kit.advance(minutes=1, seconds=2)
        assert len(ticks) in (12, 13)
        assert {tick.missed for tick in ticks} == {0}

    async def test_with_each_every_database_runs(self) -> None:
        table, ticks = ticking(each=True)
        async with MeshKit(table, replicas=3) as kit:
            await kit.advance(minutes=5, seconds=5)
            moments = sorted({tick.at for tick in ticks})
            assert len(moments) >= 5
            assert [sum(tick.at == at for tick in ticks) for at in moments] == [3] * len(moments)

    @pytest.mark.parametrize(("missed", "runs"), [("once", 1), ("skip", 0), ("all", 30)])
    async def test_ticks_without_a_replica(self, missed: str, runs: int) -> None:
        """No replica lives for half an hour."""
        table, ticks = ticking(missed=missed)
        async with MeshKit(table) as kit:
            await kit.advance(minutes=2)
            await kit.stop(0)
            await kit.advance(minutes=30)
            before = len(ticks)
            await kit.start()
            await kit.advance(seconds=5)
            assert runs <= len(ticks) - before <= runs + 1
            await kit.advance(minutes=3)
            assert ticks[-1].missed == 0

    @pytest.mark.parametrize(("missed", "runs"), [("once", 1), ("skip", 0), ("all", 30)])
    async def test_ticks_without_a_replica_that_has_them(self, missed: str, runs: int) -> None:
        """The schedule rests while only other replicas live: nobody is woken for it, and no tick is forgotten."""
        table, ticks = ticking(missed=missed)
        async with MeshKit(Operations("other")) as kit:
            await kit.start(table)
            await kit.advance(minutes=2)
            await kit.stop(1)
            await kit.advance(minutes=30)
            redis, before = kit.redis(), len(ticks)
            assert await redis.zcard(keys.SCHEDULES) == 0 and kit[0].replica._waking._next_ms is None
            assert await redis.pttl(keys.schedule("clock.tick")) > 300 * 24 * 60 * 60 * 1000
            await kit.start(table)
            await kit.advance(seconds=5)
            assert runs <= len(ticks) - before <= runs + 1
            assert await redis.zcard(keys.SCHEDULES) == 1 and await redis.pttl(keys.schedule("clock.tick")) == -1

    @pytest.mark.parametrize("is_careful", [True, False])
    async def test_what_an_older_release_may_run_does_not_rest(
        self, monkeypatch: pytest.MonkeyPatch, is_careful: bool
    ) -> None:
        """An older release does not say what it serves. Without this care, its schedule would be forgotten."""
        if not is_careful:
            instead(monkeypatch, "PUBLISH", "then all_are_known = false end", "then end", publishing)
        async with MeshKit(Operations("other")) as kit:
            redis = kit.redis()
            await redis.hset(keys.row(9), mapping={"replica": "older", "class": "B", "state": "ready"})
            await redis.hset(keys.schedule("old.tick"), mapping={"definition": "[]", "epoch": 1, "next": 1})
            await redis.zadd(keys.SCHEDULES, {"old.tick": 1})
            await kit.advance(seconds=20)
            assert (await redis.zscore(keys.SCHEDULES, "old.tick") is not None) == is_careful
            await redis.delete(keys.row(9))

    async def test_a_schedule_that_somebody_deletes_comes_back(self) -> None:
        """An emptied server gets it again while its replicas live, as it gets the operations."""
        table, ticks = ticking()
        async with MeshKit(table) as kit:
            await kit.advance(minutes=2, seconds=5)
            await kit.redis().delete(keys.SCHEDULES, keys.schedule("clock.tick"))
            await kit.advance(seconds=40)
            before = len(ticks)
            await kit.advance(minutes=5)
            assert len(ticks) - before == 5

    @pytest.mark.parametrize("limit", [None, Limit(concurrency=5)])
    async def test_a_run_that_lasts_leaves_ticks_out(self, limit: Limit | None) -> None:
        """One run at a time, unless it is asked for otherwise; also if a limit has put it on its stream anew."""
        table, running, most = Operations("slow"), [0], [0]

        @table.every("* * * * *", limit=limit)
        async def run(tx: Transaction, tick: Tick) -> None:
            running[0] += 1
            most[0] = max(most[0], running[0])
            await asyncio.sleep(150)
            running[0] -= 1

        async with MeshKit(table, replicas=2, **ONE_CLASS) as kit:
            await kit.advance(minutes=10)
            assert most[0] == 1
            await kit.advance(minutes=3)

    async def test_kills_repeat_no_tick_and_lose_none(self) -> None:
        table, ticks = ticking(overlap=True)
        async with MeshKit(table, replicas=3, **ONE_CLASS) as kit:
            await kit.advance(minutes=5)
            await kit.kill(0)
            kit.lose_answers(5)
            await kit.advance(minutes=5)
            await kit.kill(1)
            await kit.advance(minutes=5, seconds=10)
            ticks.sort(key=lambda tick: tick.at)
            assert set(minutes(ticks)) == {1}
            assert len(ticks) in (15, 16)

    async def test_a_new_definition_replaces_the_old_one(self) -> None:
        """The definition of the replica that joined last counts: it is of a newer release."""
        table, ticks = ticking()
        changed, hourly = Operations("clock"), list[Tick]()

        @changed.every("0 * * * *", name="tick")
        async def tick(tx: Transaction, tick: Tick) -> None:
            hourly.append(tick)

        async with MeshKit(table) as kit:
            await kit.advance(minutes=3)
            await kit.stop(0)
            seen = len(ticks)
            await kit.start(changed)
            await kit.advance(hours=3)
            assert len(ticks) == seen
            assert len(hourly) == 3

    async def test_of_two_releases_the_newer_ones_definition_counts_while_it_is_live(self) -> None:
        """The older release goes on beside it and sends none of its ticks; it takes over again when it is alone."""
        table, each_minute = ticking()
        changed, hourly = Operations("clock"), list[Tick]()

        @changed.every("0 * * * *", name="tick")
        async def tick(tx: Transaction, tick: Tick) -> None:
            hourly.append(tick)

        async with MeshKit(table, replicas=3, **ONE_CLASS) as kit:
            await kit.advance(minutes=3)
            seen = len(each_minute)
            await kit.start(changed)
            await kit.advance(hours=3)
            # The class has replicas of both releases, and any of them runs the tick.
            assert [tick.at % 3_600_000 for tick in (each_minute[seen:] + hourly)] == [0] * 3
            seen = len(each_minute)
            await kit.stop(3)
            await kit.advance(hours=1, minutes=10)
            assert set(minutes(each_minute[seen + 1 :])) == {1}
            assert len(each_minute) - seen >= 9

    async def test_the_author_of_a_definition_dies(self) -> None:
        """Another replica with its definition still runs: the definition stays."""
        table, each_minute = ticking()
        changed, hourly = Operations("clock"), list[Tick]()

        @changed.every("0 * * * *", name="tick")
        async def tick(tx: Transaction, tick: Tick) -> None:
            hourly.append(tick)

        async with MeshKit(table, **ONE_CLASS) as kit:
            await kit.start(changed)
            await kit.start(changed)
            await kit.advance(minutes=3)
            seen = len(each_minute)
            await kit.kill(2)
            await kit.advance(hours=4)
            assert {tick.at % 3_600_000 for tick in (each_minute[seen:] + hourly)} == {0}
            assert len(each_minute[seen:] + hourly) >= 3

    async def test_a_removed_schedule_rests(self) -> None:
        """No replica of this release knows the schedule; it is kept for a while, and keeps nobody busy."""
        table, ticks = ticking()
        async with MeshKit(table) as kit:
            await kit.advance(minutes=3)
            await kit.stop(0)
            seen = len(ticks)
            await kit.start(Operations("other"))
            await kit.advance(minutes=10)
            assert len(ticks) == seen
            assert await kit.redis().zscore(keys.SCHEDULES, "clock.tick") is None
            assert await kit.redis().hget(keys.schedule("clock.tick"), "next") is not None
            assert kit[1].replica._waking._next_ms is None

    @pytest.mark.parametrize(
        "register",
        [
            lambda table: table.every("never"),
            lambda table: table.every("* * * * *", tz="Nowhere"),
            lambda table: table.every("* * * * *", missed="sometimes"),
        ],
    )
    def test_mistakes_are_told_at_import(self, register: Callable[[Operations], object]) -> None:
        with pytest.raises(UsageError):
            register(Operations("clock"))

    def test_a_handler_of_other_types_is_refused(self) -> None:
        table = Operations("clock")
        every: Callable[[object], Awaitable[object]] = table.every("* * * * *")  # type: ignore[assignment]

        async def wrong(tx: Transaction, body: Note) -> None: ...

        with pytest.raises(UsageError, match="tick: Tick"):
            every(wrong)


async def test_without_its_check_a_tick_runs_on_every_replica(monkeypatch: pytest.MonkeyPatch) -> None:
    check = "if next ~= tick or known ~= definition or now < tonumber(tick) then return -1 end"
    instead(monkeypatch, "TICK", check, "")
    table, ticks = ticking(overlap=True)
    async with MeshKit(table, replicas=3, **ONE_CLASS) as kit:
        await kit.advance(minutes=10)
        assert len(ticks) > len({tick.at for tick in ticks})
