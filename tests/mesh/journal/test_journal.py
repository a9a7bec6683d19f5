"""The replicated log and its snapshots, against a real server."""

from __future__ import annotations

import asyncio
import os
import sys
from asyncio.subprocess import PIPE
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from redis.asyncio import Redis

from mesh import Connections
from mesh.journal import Entry, Gap, Late, Log, NoLog, Replaced, UnreadableLog
from mesh.journal import journal as module
from mesh.journal.position import Position, Snapshot, pack_id, unpack_id
from mesh.journal.snapshots import Snapshots
from tests.support.server import Server

KEY = "shared:test:log"


class Clients:
    """Clients of the server under test, made as the mesh makes them."""

    def __init__(self, server: Server) -> None:
        self._connections = Connections(server.settings)

    def client(self) -> Redis:
        return self._connections.client("log-test", block_ms=1000, shared=True)


@pytest.fixture
def clients(server: Server) -> Clients:
    return Clients(server)


@pytest.fixture
async def redis(clients) -> AsyncIterator[Redis]:
    client = clients.client()
    yield client
    await client.aclose()


@pytest.fixture
async def log(redis: Redis, clients) -> AsyncIterator[Log]:
    log = Log(redis, clients.client, KEY, writer="one")
    yield log
    await log.close()


async def founded(log: Log) -> Position:
    position = await log.found(body={})
    assert position is not None
    return position


async def appended(log: Log, at: Position, count: int) -> list[Position]:
    return [await log.append("set", {"n": n}, reader_at=at, write=f"w{n}") for n in range(count)]


async def read_all(log: Log, position: Position) -> list[Entry]:
    entries: list[Entry] = []
    async with log.follow(position) as tail:
        while not tail.at_end:
            entries += await tail.read()
    return entries


# ids


def test_packed_ids_keep_the_order_of_ids() -> None:
    """A packed id fits in 64 bits and sorts like the stream id."""
    ids = ["0-0", "0-1", "1-0", "1763700000000-0", "1763700000000-65535", "1763700000001-0", "4398046511103-9"]
    stamps = [pack_id(text) for text in ids]
    assert stamps == sorted(stamps)
    assert [unpack_id(stamp) for stamp in stamps] == ids
    assert max(stamps) < 2**63


# founding


async def test_of_many_founders_one_founds(log: Log) -> None:
    """Replicas that start together share one log."""
    found = await asyncio.gather(*(log.found(body={}) for _ in range(20)))
    assert sum(position is not None for position in found) == 1
    view = await log.view()
    assert view is not None
    assert view.whole and view.just_founded
    assert view.newest.position in found
    await appended(log, view.newest.position, 1)
    view = await log.view()
    assert view is not None and view.whole and not view.just_founded


async def test_a_log_with_a_state_before_it_is_not_whole(log: Log) -> None:
    """A replica without data cannot start at the beginning of a log that begins with its founder's state."""
    await log.found(body={}, after=Position("a" * 16, 7, "5-0"))
    view = await log.view()
    assert view is not None and not view.whole
    with pytest.raises(Gap):
        await read_all(log, Position.start(view.log))


async def test_a_new_log_is_later_than_all_its_founder_saw(log: Log) -> None:
    """A new server whose clock is behind must not give ids that lose against those of the old one."""
    ahead = Position("a" * 16, 7, "4000000000000-5")
    position = await log.found(body={}, after=ahead)
    assert position is not None and position.stamp > ahead.stamp
    assert (await appended(log, position, 1))[0].stamp > position.stamp


async def test_a_log_may_be_founded_again_by_who_has_all_its_entries(log: Log) -> None:
    """A founder that died before anybody restored from it must not block the log for ever, nor may a change be lost."""
    first = await founded(log)
    assert await log.found(body={}, instead_of=replace(first, log="0" * 16)) is None
    second = await log.found(body={}, instead_of=first)
    assert second is not None and second.log != first.log
    (third,) = await appended(log, second, 1)
    assert await log.found(body={}, instead_of=second) is None
    fourth = await log.found(body={}, instead_of=third)
    assert fourth is not None and fourth.log not in (first.log, second.log)


# appending


async def test_numbers_have_no_gaps_whoever_appends(log: Log, clients) -> None:
    """Concurrent writers get consecutive numbers, and ids in the same order."""
    at = await founded(log)
    writers = [Log(log._redis, clients.client, KEY, writer=f"w{n}") for n in range(4)]
    await asyncio.gather(*(appended(writer, at, 50) for writer in writers))
    entries = await read_all(log, Position.start(at.log))
    assert [entry.position.number for entry in entries] == list(range(1, 202))
    stamps = [entry.position.stamp for entry in entries]
    assert stamps == sorted(set(stamps))


async def test_ids_stay_packable_when_the_clock_stands_still(log: Log, redis: Redis) -> None:
    """After 65536 entries in one millisecond the next id moves on to the next millisecond."""
    at = await founded(log)
    fields = {"log": at.log, "number": "2", "op": "set", "from": "x", "write": "x", "body": "{}"}
    await redis.xadd(KEY, fields, id="4000000000000-65535")
    (position,) = await appended(log, at, 1)
    assert position == Position(at.log, 3, "4000000000001-0")


async def test_an_append_to_another_log_is_refused(log: Log, redis: Redis) -> None:
    """A writer that has not noticed yet must not write into a log it does not follow."""
    at = await founded(log)
    await redis.delete(KEY)
    with pytest.raises(NoLog):
        await appended(log, at, 1)
    await founded(log)
    with pytest.raises(Replaced):
        await appended(log, at, 1)


async def test_an_append_to_a_log_that_went_back_is_refused(log: Log, redis: Redis) -> None:
    """After a server lost its last entries a writer has read more than the log holds."""
    at = await founded(log)
    *_, last = await appended(log, at, 3)
    await redis.xdel(KEY, last.id)
    with pytest.raises(Gap):
        await appended(log, last, 1)


async def test_an_append_that_arrives_late_changes_nothing(log: Log, redis: Redis) -> None:
    """An append that arrives after its sender gave up is refused, by the server's clock."""
    at = await founded(log)
    await log.view()  # from here on the server's clock is known
    await redis.execute_command("CLIENT", "PAUSE", 150, "WRITE")
    with pytest.raises(Late):
        await log.append("set", {}, reader_at=at, write="w", within_ms=20)
    assert await redis.xlen(KEY) == 1


async def test_full_memory_refuses_appends_and_allows_reading_and_trimming(
    log: Log, redis: Redis, tmp_path: Path
) -> None:
    """When memory is full Redis refuses appends; trimming goes on."""
    at = await founded(log)
    *_, last = await appended(log, at, 3)
    snapshot = await Snapshots(tmp_path, "bin").save(last, content(b"x"))
    await redis.config_set("maxmemory", "1")
    try:
        with pytest.raises(Exception, match="memory"):
            await appended(log, at, 1)
        assert len(await read_all(log, at)) == 3
        assert await log.trim(snapshot) == 3
    finally:
        await redis.config_set("maxmemory", "0")


# following


async def test_a_reader_gets_what_is_appended_while_it_waits(log: Log) -> None:
    """A new entry wakes a waiting reader; it does not poll."""
    at = await founded(log)
    async with log.follow(at) as tail:
        assert await tail.read() == []
        assert tail.at_end
        reading = asyncio.create_task(tail.read())
        (position,) = await appended(log, at, 1)
        (entry,) = await asyncio.wait_for(reading, 5)
    assert entry.position == position
    assert (entry.op, entry.writer, entry.write, entry.content()) == ("set", "one", "w0", {"n": 0})


async def test_more_entries_than_one_answer_holds_arrive_all_and_in_order(
    log: Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A reader far behind catches up in bounded steps."""
    monkeypatch.setattr(module, "MOST_ENTRIES", 7)
    at = await founded(log)
    await appended(log, at, 30)
    assert [entry.content()["n"] for entry in await read_all(log, at)] == list(range(30))


@pytest.mark.parametrize("options", [{"protocol": 3}, {"protocol": 3, "legacy_responses": False}, {"protocol": 2}])
async def test_a_reader_waits_over_each_protocol(server: Server, options: dict[str, Any]) -> None:
    """redis-py returns the entries of a stream in a list, in a dict, or in a list within a dict."""

    def client() -> Redis:
        return Redis(port=server.port, decode_responses=True, **options)

    async with client() as redis:
        log = Log(redis, client, KEY, writer="one")
        at = await founded(log)
        async with log.follow(at) as tail:
            assert await tail.read() == []
            await appended(log, at, 2)
            assert [entry.content()["n"] for entry in await tail.read()] == [0, 1]
        await log.close()


async def behind(log: Log) -> tuple[Position, list[Position]]:
    at = await founded(log)
    return at, await appended(log, at, 5)


async def test_a_trimmed_log_is_a_gap_to_one_who_is_behind(log: Log, redis: Redis) -> None:
    """XREAD from a trimmed id skips without an error; the reader must notice."""
    at, positions = await behind(log)
    await redis.xtrim(KEY, minid=positions[2].id, approximate=False)
    with pytest.raises(Gap):
        await read_all(log, at)
    assert len(await read_all(log, positions[2])) == 2


async def test_a_waiting_reader_notices_a_hole_in_what_arrives(log: Log, redis: Redis) -> None:
    """Entries removed between two others are a gap, also for a reader that waits at the end."""
    at = await founded(log)
    async with log.follow(at) as tail:
        await tail.read()
        assert tail.at_end
        async with redis.pipeline(transaction=True) as pipe:
            for number in (2, 4):
                fields = {"log": at.log, "number": number, "op": "set", "from": "x", "write": "x", "body": "{}"}
                pipe.xadd(KEY, fields)
            await pipe.execute()
        with pytest.raises(Gap):
            await tail.read()
            await tail.read()


@pytest.mark.parametrize("command", ["FLUSHALL", "DEL"])
async def test_a_waiting_reader_notices_that_the_log_is_gone(log: Log, redis: Redis, command: str) -> None:
    """Redis does not tell a reader that its stream was deleted; the reader checks after each wait."""
    at, positions = await behind(log)
    async with log.follow(positions[-1]) as tail:
        assert await tail.read() == []
        await redis.execute_command(command, *([KEY] if command == "DEL" else []))
        with pytest.raises(NoLog):
            await asyncio.wait_for(tail.read(), 5)
    assert at.number == 1


async def test_another_log_with_the_right_numbers_is_still_another(log: Log, redis: Redis) -> None:
    """The identity is compared with each entry: numbers may agree by chance."""
    at, positions = await behind(log)
    async with log.follow(positions[-1]) as tail:
        await tail.read()
        fields = {"log": "f" * 16, "number": "7", "op": "set", "from": "x", "write": "x", "body": "{}"}
        await redis.xadd(KEY, fields)
        with pytest.raises(Replaced):
            await tail.read()
    assert not await log.holds(positions[-1])
    assert at.log != "f" * 16


async def test_a_log_that_went_back_and_grew_again_is_not_continued(log: Log, redis: Redis) -> None:
    """A server restored from an older copy gives numbers twice; a reader notices that they are other entries."""
    _, positions = await behind(log)
    copy = await redis.execute_command("DUMP", KEY, NEVER_DECODE=True)
    (lost,) = await appended(log, positions[-1], 1)
    await redis.delete(KEY)
    await redis.execute_command("RESTORE", KEY, 0, copy)
    await asyncio.sleep(0.002)  # the clock moves on before a restarted server takes anything
    await appended(log, positions[-1], 3)
    assert await log.holds(positions[-1])
    assert not await log.holds(lost)
    with pytest.raises(Gap):
        await read_all(log, lost)


async def test_rubbish_in_the_stream_is_named_and_never_read_as_an_entry(log: Log, redis: Redis) -> None:
    """A foreign entry makes the log unreadable until somebody removes it; the reader never skips it."""
    at = await founded(log)
    rubbish = await redis.xadd(KEY, {"hello": "world"})
    with pytest.raises(UnreadableLog, match=rubbish):
        await log.view()
    with pytest.raises(Replaced):
        await appended(log, at, 1)
    await redis.xdel(KEY, rubbish)
    assert len(await appended(log, at, 1)) == 1


async def test_a_cancelled_reader_loses_nothing(log: Log) -> None:
    """A read changes nothing, so a cancelled reader goes on from the same position."""
    at = await founded(log)
    async with log.follow(at) as tail:
        await tail.read()
        reading = asyncio.create_task(tail.read())
        await asyncio.sleep(0.02)
        reading.cancel()
        await asyncio.gather(reading, return_exceptions=True)
        await appended(log, at, 2)
        assert tail.position == at
    assert len(await read_all(log, at)) == 2


# trimming and snapshots


async def content(*chunks: bytes) -> AsyncIterator[bytes]:
    for chunk in chunks:
        yield chunk


async def test_trimming_keeps_the_snapshots_own_entry(log: Log, tmp_path: Path) -> None:
    """A replica that restores from the snapshot must be able to see that it belongs to the log."""
    _, positions = await behind(log)
    snapshot = await Snapshots(tmp_path, "bin").save(positions[2], content(b"state"))
    assert await log.trim(snapshot) == 3
    assert await log.holds(snapshot.position)
    assert not await log.holds(positions[1])
    assert await log.trim(snapshot) == 0


async def test_a_snapshot_of_another_history_trims_nothing(log: Log, redis: Redis, tmp_path: Path) -> None:
    """A snapshot of another log, or of entries that this log lost, deletes nothing."""
    at, positions = await behind(log)
    foreign = Snapshot(Position("f" * 16, positions[2].number, positions[2].id), tmp_path)
    assert await log.trim(foreign) == 0
    lost = Snapshot(Position(at.log, 6, "4000000000000-0"), tmp_path)
    assert await log.trim(lost) == 0
    assert await redis.xlen(KEY) == 6


async def test_a_snapshot_is_forced_to_the_disk_before_it_gets_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The order is fsync of the file, rename, fsync of the folder; another one could leave an empty file."""
    steps: list[str] = []
    fsync, replace = os.fsync, os.replace
    is_folder = {True: "folder", False: "file"}

    def spy_fsync(fd: int) -> None:
        steps.append(f"fsync {is_folder[os.path.isdir(f'/proc/self/fd/{fd}')]}")
        fsync(fd)

    def spy_replace(source: Path, target: Path) -> None:
        steps.append("rename")
        replace(source, target)

    monkeypatch.setattr(os, "fsync", spy_fsync)
    monkeypatch.setattr(os, "replace", spy_replace)
    snapshot = await Snapshots(tmp_path, "bin").save(Position("a" * 16, 3, "7-1"), content(b"one", b"two"))
    assert steps == ["fsync file", "rename", "fsync folder"]
    assert snapshot.path.read_bytes() == b"onetwo"


async def test_an_interrupted_snapshot_does_not_count(tmp_path: Path) -> None:
    """A cancelled, failed or killed writer leaves no file under a final name."""
    snapshots = Snapshots(tmp_path, "bin")

    async def failing() -> AsyncIterator[bytes]:
        yield b"half"
        raise RuntimeError("the disk is full")

    with pytest.raises(RuntimeError):
        await snapshots.save(Position("a" * 16, 3, "7-1"), failing())
    (tmp_path / ".deadbeef.part").write_bytes(b"left by one who was killed")
    (tmp_path / "notes.bin").write_bytes(b"somebody's")
    assert await snapshots.on_disk() == []


async def test_parts_of_the_dead_are_cleared_away_and_those_of_the_living_are_not(tmp_path: Path) -> None:
    """Replicas share the folder: only an unfinished file that nobody writes to any more is removed."""
    dead, living = tmp_path / ".dead.part", tmp_path / ".living.part"
    dead.touch()
    living.touch()
    os.utime(dead, (1, 1))
    await Snapshots(tmp_path, "bin").save(Position("a" * 16, 3, "7-1"), content(b"x"))
    assert not dead.exists() and living.exists()


async def test_the_newest_snapshots_of_each_log_are_kept(tmp_path: Path) -> None:
    """Pruning leaves the newest ones of this log and every one of another log."""
    snapshots = Snapshots(tmp_path, "bin")
    for number in range(1, 6):
        await snapshots.save(Position("a" * 16, number, f"{number}-0"), content(b"x"))
    await snapshots.save(Position("b" * 16, 1, "9-0"), content(b"x"))
    kept = await snapshots.prune("a" * 16)
    assert [snapshot.position.number for snapshot in kept] == [5, 4]
    assert [snapshot.position.log[0] for snapshot in await snapshots.on_disk()] == ["b", "a", "a"]


async def test_two_that_prune_at_once_do_not_disturb_each_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A snapshot that somebody else has removed since it was listed is gone, and that is all."""
    snapshots = Snapshots(tmp_path, "bin")
    for number in range(1, 5):
        await snapshots.save(Position("a" * 16, number, f"{number}-0"), content(b"x"))
    listed = await snapshots.on_disk("a" * 16)
    await snapshots.prune("a" * 16)

    async def as_before(log: str) -> list[Snapshot]:
        return listed

    monkeypatch.setattr(snapshots, "on_disk", as_before)
    assert await snapshots.prune("a" * 16) == listed[:2]


async def test_writers_of_one_folder_take_turns(tmp_path: Path) -> None:
    """Each process has its own view of the folder; the second one sees what the first one wrote."""
    position = Position("a" * 16, 3, "7-1")
    found = []

    async def write() -> None:
        snapshots = Snapshots(tmp_path, "bin")
        async with snapshots.hold_lock():
            found.append(len(await snapshots.on_disk()))
            if not found[-1]:
                await snapshots.save(position, content(b"x"))

    await asyncio.gather(*(write() for _ in range(4)))
    assert found == [0, 1, 1, 1]


async def test_a_turn_ends_with_its_process(tmp_path: Path) -> None:
    """A writer that was killed keeps nobody waiting."""
    program = "import fcntl, sys; file = open(sys.argv[1], 'ab'); fcntl.flock(file, fcntl.LOCK_EX); print(); input()"
    command = (sys.executable, "-c", program, str(tmp_path / ".turn"))
    killed = await asyncio.create_subprocess_exec(*command, stdin=PIPE, stdout=PIPE)
    assert killed.stdout is not None
    await killed.stdout.readline()
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.5), Snapshots(tmp_path, "bin").hold_lock():
            raise AssertionError("it is another's turn")
    killed.kill()
    await killed.wait()
    async with asyncio.timeout(10), Snapshots(tmp_path, "bin").hold_lock():
        pass


async def test_where_there_can_be_no_turns_none_waits(tmp_path: Path) -> None:
    """An error of the disk reaches the writer."""
    (tmp_path / "folder").write_text("a file where the folder should be")
    snapshots = Snapshots(tmp_path / "folder", "bin")
    async with asyncio.timeout(10), snapshots.hold_lock():
        with pytest.raises(OSError):
            await snapshots.save(Position("a" * 16, 3, "7-1"), content(b"x"))
