"""Restoring, following, gaps, lost logs and snapshots of the grades, on a real server."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Sequence
from dataclasses import replace

import pytest
from redis.exceptions import ConnectionError as RedisConnectionError
from structlog.testing import capture_logs

from mesh import Member, Missing, Unavailable
from mesh.journal.journal import Log
from mesh.journal.snapshots import Snapshots
from quart_app.grades import backup
from quart_app.grades.known_state import backup_chunks
from quart_app.grades.models import GradeUpdate, UserGrade
from quart_app.grades.replication import MOVES, GradesStage
from quart_app.grades.sources import Source, peer_sources
from tests.support.grades import LOG_KEY, Node, Nodes, eventually, verified
from tests.support.server import Server


async def fill(node: Node, count: int, **fields: int) -> None:
    """Set fields of `count` users."""
    chosen = fields or {"spp": 1}
    await asyncio.gather(*(node.set(f"user-{number}", **chosen) for number in range(count)))


# Start and change


async def test_two_fresh_nodes_without_a_peer_start(nodes: Nodes) -> None:
    """There is no master: one of them founds the log, and both follow it."""
    one, two = await nodes.up("one", "two")
    await one.set("alice", spp=1)
    await two.set("alice", return_fee=2)
    await nodes.agree()
    for node in nodes:
        assert node.replication.get("alice") == UserGrade(user_id="alice", spp=1, return_fee=2)


async def test_the_answer_to_a_change_is_the_merged_record(nodes: Nodes) -> None:
    """An absent field is unchanged and 0 sets it to 0, whichever node set the other fields."""
    one, two = await nodes.up("one", "two")
    await one.set("alice", spp=5, shipping_fee=6)
    answer = await two.set("alice", spp=0, postpaid_limit=9)
    assert answer == UserGrade(user_id="alice", postpaid_limit=9, spp=0, shipping_fee=6)
    assert await one.set("alice") == answer


async def test_concurrent_changes_give_the_same_state_everywhere(nodes: Nodes) -> None:
    """Four nodes set one field at once: the order of the log decides for all of them."""
    four = await nodes.up("a", "b", "c", "d")
    await asyncio.gather(*(node.set("alice", spp=n) for n in range(25) for node in four))
    await nodes.agree()


async def test_an_own_entry_is_applied_once(nodes: Nodes) -> None:
    """A node recognises its own entries in the log and applies nothing before."""
    (one,) = await nodes.up("one")
    await fill(one, 10)
    assert one.replication._metrics.applied._value.get() == 10
    assert not one.replication.pending_sets._pending


async def test_a_new_node_takes_a_peers_backup_and_reads_on(nodes: Nodes) -> None:
    """It asks a ready peer and reads later changes from the log."""
    (one,) = await nodes.up("one")
    await fill(one, 30)
    (two,) = await nodes.up("two")
    await one.set("late", spp=3)
    await nodes.agree()
    assert two.restores("peer", "done") == 1
    assert two.replication._metrics.applied._value.get() == 1


async def test_without_a_peer_the_stream_is_read_from_its_start(nodes: Nodes) -> None:
    """After a restart of all nodes the stream has everything, as long as nothing was trimmed."""
    nodes.settings["snapshot_every"] = 1000
    (one,) = await nodes.up("one")
    await fill(one, 30)
    digest = one.digest()
    await one.kill()
    await one.start()
    assert one.digest() == digest and not one.snapshots()


async def test_without_a_peer_a_trimmed_log_needs_the_snapshot_on_disk(nodes: Nodes) -> None:
    """After a restart of all nodes it uses the newest snapshot and the stream behind it."""
    (one,) = await nodes.up("one")
    await fill(one, 12)
    await trimmed_after_snapshots(one, nodes)
    digest = one.digest()
    await one.kill()
    await one.start()
    assert one.digest() == digest
    assert one.restores("disk", "done") == 1


async def trimmed_after_snapshots(node: Node, nodes: Nodes) -> None:
    """Make changes until the log is trimmed behind the older of two snapshots, far from its beginning."""
    log = Log(nodes.redis, nodes.client, nodes.key, writer="test")
    async with asyncio.timeout(20):
        for number in itertools.count():
            await node.set(f"more-{number}", spp=number)
            view = await log.view()
            if number > 40 and view is not None and view.oldest.position.number > 10:
                return


# Sources that are bad


def foreign(data: bytes) -> bytes:
    """Return a whole, well-formed backup of the same records that names another log."""
    header, storage = verified(data).result()
    return b"".join(backup.chunks_of(replace(header, log="f" * 16), storage.snapshot()))


@pytest.mark.parametrize(
    "spoil",
    [
        pytest.param(lambda data: data[: len(data) // 2], id="truncated"),
        pytest.param(lambda data: data[:-9] + bytes([data[-9] ^ 1]) + data[-8:], id="a bit flipped"),
        pytest.param(lambda data: b"<html>not a backup</html>", id="something else"),
        pytest.param(foreign, id="of another log"),
    ],
)
async def test_a_bad_backup_is_refused_and_the_next_peer_used(nodes: Nodes, spoil) -> None:
    """Row 26 of the fault matrix: nothing of it is used, and the replica starts from the next source."""
    bad, good = await nodes.up("bad", "good")
    await fill(good, 20)
    await trimmed_after_snapshots(good, nodes)
    bad.spoil = spoil
    (new,) = await nodes.up("new")
    await nodes.agree()
    assert new.restores("peer", "refused") == 1
    assert new.restores("peer", "done") == 1


async def test_a_bad_snapshot_is_refused_and_the_one_before_used(nodes: Nodes) -> None:
    """Row 26: the log is trimmed only behind the older of two snapshots, so the newest one can be replaced."""
    (one,) = await nodes.up("one")
    await trimmed_after_snapshots(one, nodes)
    digest = one.digest()
    await eventually(lambda: not one.replication.keeper.task or one.replication.keeper.task.done(), "written")
    await one.kill()
    newest = one.snapshots()[-1]
    data = bytearray(newest.read_bytes())
    data[len(data) // 2] ^= 4
    newest.write_bytes(data)
    await one.start()
    assert one.digest() == digest
    assert one.restores("disk", "refused") >= 1


async def test_a_snapshot_whose_writer_was_killed_does_not_count(nodes: Nodes) -> None:
    """Row 26: a file has its final name only when it is whole."""
    (one,) = await nodes.up("one")
    await trimmed_after_snapshots(one, nodes)
    digest = one.digest()
    await one.kill()
    part = one.disk / ".0123456789abcdef.part"
    part.write_bytes(one.snapshots()[-1].read_bytes()[:100])
    await one.start()
    assert one.digest() == digest
    assert one.restores("disk", "refused") == 0


async def test_with_no_good_source_it_waits_rather_than_skip(nodes: Nodes) -> None:
    """A node without a peer or a snapshot is not ready while the log is trimmed."""
    one, two = await nodes.up("one", "two")
    # A running node trims the log behind its own snapshots, so the node that has them must run last.
    await two.kill()
    await trimmed_after_snapshots(one, nodes)
    await one.kill()
    disk = one.disk.rename(one.disk.with_name("aside"))
    for path in two.snapshots():
        path.unlink()
    await two.start(ready=False)
    await eventually(
        lambda: "no peer and no snapshot has a state of the log" in two.replication.explanation, "it says why"
    )
    with pytest.raises(Unavailable, match="no peer and no snapshot has a state of the log"):
        two.replication.get("more-1")
    with pytest.raises(Unavailable):
        await two.set("more-1", spp=1)
    disk.rename(one.disk)
    await one.start()
    await two.start()
    await nodes.agree()


# Gaps


async def test_a_node_behind_the_trimmed_end_restores(nodes: Nodes) -> None:
    """Row 25 of the fault matrix: the node notices the gap and restores, and the digests are equal."""
    one, two = await nodes.up("one", "two")
    await fill(one, 5)
    await nodes.agree()
    await two.pause()
    behind, restored = two.replication._state.position.number, two.restores("peer", "done")
    await trimmed_after_snapshots(one, nodes)
    await two.start()
    await nodes.agree()
    assert two.number() >= behind + 40
    assert two.restores("peer", "done") == restored + 1


async def test_a_disk_that_cannot_be_written_is_logged_at_the_start(nodes: Nodes) -> None:
    """The log does not wait until the first snapshot is due, and the node works without the disk."""
    (nodes.folder / "one").write_text("a file where the folder is to be")
    with capture_logs() as said:
        one, two = await nodes.up("one", "two")
    (told,) = [line for line in said if line["event"] == "no snapshot can be written"]
    assert told["folder"] == str(one.disk) and told["log_level"] == "error"
    assert not list(two.disk.iterdir()), "the try leaves nothing behind"
    await fill(two, 3)
    await nodes.agree()


async def test_while_it_restores_no_old_state_is_shown(nodes: Nodes) -> None:
    """Between the gap and the swap every read raises Unavailable, so no stale record is answered."""
    one, two = await nodes.up("one", "two")
    await fill(one, 5)
    await nodes.agree()
    await two.pause()
    await trimmed_after_snapshots(one, nodes)
    release = asyncio.Event()
    peers = two._peers

    async def held_up():
        await release.wait()
        return await peers()

    two._peers = held_up
    await two.start(ready=False)
    await eventually(
        lambda: two.replication.stage is GradesStage.RESTORING and two.replication._state is None, "restoring"
    )
    with pytest.raises(Unavailable):
        two.replication.get("user-1")
    with pytest.raises(Unavailable):
        two.replication.header_and_records()
    release.set()
    await two.start()
    await nodes.agree()


async def test_without_gap_detection_the_digests_would_differ(nodes: Nodes, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the check of numbers the state would be wrong: the mechanism is needed."""
    monkeypatch.setattr("mesh.journal.journal.check_numbers", lambda *_: None)
    monkeypatch.setattr("mesh.journal.journal.check_continuity", lambda view, entries, position: list(entries))
    one, two = await nodes.up("one", "two")
    await fill(one, 5)
    await nodes.agree()
    await two.pause()
    await trimmed_after_snapshots(one, nodes)
    await two.start()
    await eventually(lambda: two.number() == one.number(), "it has come as far")
    assert two.digest() != one.digest()


async def test_an_unreadable_entry_is_skipped_by_all_alike(nodes: Nodes) -> None:
    """An unreadable entry is counted; the nodes go on and stay equal."""
    one, two = await nodes.up("one", "two")
    log = Log(nodes.redis, nodes.client, nodes.key, writer="stranger")
    at = one.replication._state.position
    for op, body in (
        ("set", {"user_id": ""}), ("set", {"user_id": "a", "spp": None}), ("set", []), ("dance", {}),
        ("carry", {"of": "x", "records": [{"user_id": "a", "set": {"nope": [1, "1-0"]}}]}),
        ("carry", {"of": "x", "records": [{"user_id": "a", "set": {"spp": [1, "never"]}}]}),
        ("carry", {"of": "x", "records": [{"user_id": "a", "set": {"spp": [1, f"{2**70}-0"]}}]}),
        ("set", {"user_id": "a", "spp": 2**63}), ("set", "[" * 5),
    ):  # fmt: skip
        await log.append(op, body, reader_at=at, write="x")
    await one.set("alice", spp=1)
    await nodes.agree()
    assert two.replication._metrics.unreadable._value.get() == 9
    assert two.replication.header_and_records()[0].count == 1


# A lost log


async def test_when_the_log_is_deleted_no_grade_is_lost(nodes: Nodes) -> None:
    """After FLUSHALL or DEL a survivor founds a new log, and all nodes keep everything."""
    three = await nodes.up("one", "two", "three")
    await fill(three[0], 20)
    digest = await nodes.agree()
    old = three[0].replication.header_and_records()[0].log
    await nodes.redis.flushall()
    await eventually(
        lambda: all(node.is_ready and node.replication._state.position.log != old for node in three), "new"
    )
    assert await nodes.agree() == digest
    assert all(old in node.replication.header_and_records()[0].continues for node in three)
    await three[1].set("user-1", spp=77)
    await nodes.agree()
    assert three[2].replication.get("user-1").spp == 77


async def test_grades_that_one_survivor_knew_reach_all(nodes: Nodes) -> None:
    """Another survivor may know more than the founder; it carries the rest over."""
    one, two = await nodes.up("one", "two")
    await fill(one, 6)
    await nodes.agree()
    await two.pause()
    await one.set("user-1", spp=50)
    await one.set("only-one-knows", spp=51)
    digest = one.digest()
    await one.pause()
    await nodes.redis.flushall()
    await two.start()
    await two.set("new", spp=1)
    await one.start()
    await nodes.agree()
    assert two.replication.get("only-one-knows").spp == 51
    assert two.replication.get("user-1").spp == 50
    assert one.replication.get("new").spp == 1
    assert one.digest() != digest


async def test_a_newer_change_wins_against_what_is_carried_over(nodes: Nodes) -> None:
    """Carried fields keep their own stamps, so a change in the new log wins."""
    one, two = await nodes.up("one", "two")
    await one.set("alice", spp=1)
    await nodes.agree()
    await two.pause()
    await one.set("alice", spp=2, return_fee=2)
    await one.pause()
    await nodes.redis.flushall()
    await two.start()
    await two.set("alice", spp=3)
    await one.start()
    await nodes.agree()
    assert two.replication.get("alice") == UserGrade(user_id="alice", spp=3, return_fee=2)


async def test_leaving_without_a_log_writes_a_snapshot(nodes: Nodes) -> None:
    """The server is emptied and every node ends: their states are on their disks."""
    one, two = await nodes.up("one", "two")
    await fill(one, 3)
    digest = await nodes.agree()
    await nodes.redis.flushall()
    await asyncio.gather(one.leave(), two.leave())
    await asyncio.gather(one.start(), two.start())
    assert await nodes.agree() == digest


async def test_a_log_founded_by_an_empty_node_gets_the_old_grades(nodes: Nodes) -> None:
    """A new node may be the first after the loss; the survivors carry everything over."""
    (one,) = await nodes.up("one")
    await fill(one, 7)
    await nodes.redis.flushall()
    await one.leave()
    (new,) = await nodes.up("new")
    await new.set("user-1", spp=9)
    await one.start()
    await nodes.agree()
    assert new.replication.get("user-1").spp == 9
    assert new.replication.get("user-2").spp == 1
    assert new.replication.header_and_records()[0].count == 7


async def test_an_empty_log_is_replaced_by_a_survivor(nodes: Nodes) -> None:
    """Nothing was appended to it, so the survivor founds a log that begins with its state."""
    nodes.settings["founder_patience_s"] = 10  # it takes over in any case, however busy the machine is
    (one,) = await nodes.up("one")
    await fill(one, 7)
    digest = one.digest()
    await one.pause()
    await nodes.redis.flushall()
    (new,) = await nodes.up("new")
    await one.start()
    await eventually(lambda: new.is_ready and new.replication._state.storage.count == 7, "it has taken over")
    assert await nodes.agree() == digest
    assert one.replication._metrics.carried._value.get() == 0


async def test_a_snapshot_of_another_mesh_is_never_mixed_in(nodes: Nodes) -> None:
    """A file on a disk of another mesh is refused and left alone."""
    (one,) = await nodes.up("one")
    await fill(one, 3)
    await one.pause()
    header, state = one.replication._state.header_and_records(None)
    await Snapshots(nodes.folder / "two", "csv.gz").save(header.position, backup_chunks(header, state))
    await one.kill()
    await nodes.redis.flushall()
    (three,) = await nodes.up("three")
    await three.set("bob", spp=1)
    (two,) = await nodes.up("two")
    await nodes.agree()
    assert two.replication.header_and_records()[0].count == 1
    assert two.restores("disk", "refused") == 1
    assert len(two.snapshots()) == 1


async def test_a_log_that_lost_its_end_gets_it_back_from_memory(nodes: Nodes) -> None:
    """The server returns without its last second; nodes that had read it append it again."""
    one, two = await nodes.up("one", "two")
    await fill(one, 4)
    await nodes.agree()
    copy = await nodes.redis.execute_command("DUMP", LOG_KEY, NEVER_DECODE=True)
    await one.set("user-1", spp=11)
    await one.set("lost", spp=12)
    await nodes.agree()
    async with nodes.redis.pipeline(transaction=True) as pipe:
        pipe.delete(LOG_KEY)
        pipe.execute_command("RESTORE", LOG_KEY, 0, copy)
        await pipe.execute()
    await eventually(lambda: not one.is_ready or not two.is_ready, "noticed")
    await eventually(lambda: one.is_ready and two.is_ready, "healed")
    await two.set("after", spp=1)
    await nodes.agree()
    for node in nodes:
        assert node.replication.get("user-1").spp == 11
        assert node.replication.get("lost").spp == 12


async def test_a_founder_that_died_is_replaced(nodes: Nodes) -> None:
    """The founder and its disk are lost, and with them the first state of the log: another survivor founds it again."""
    one, two = await nodes.up("one", "two")
    await fill(one, 5)
    digest = await nodes.agree()
    await two.pause()
    await nodes.redis.flushall()
    await eventually(lambda: one.is_ready and one.replication._state.position.number == 2, "founded")
    await one.kill()
    for path in one.snapshots():
        path.unlink()
    await two.start()
    assert await nodes.agree() == digest
    await one.start()
    assert await nodes.agree() == digest


async def test_changes_after_the_founding_do_not_keep_a_dead_founder_s_log(nodes: Nodes) -> None:
    """Only the founder has the state. When it dies, the changes in its log and the state on its disk are not lost."""
    one, two, three = await nodes.up("one", "two", "three")
    await fill(one, 3)
    await nodes.agree()
    await two.pause()
    await three.pause()
    await one.set("user-0", spp=8)
    await one.set("only-one-knows", spp=9)
    await nodes.redis.flushall()
    await eventually(lambda: one.is_ready and one.replication._state.position.number == 2, "founded")
    await one.set("user-1", spp=70)
    await one.set("new", spp=71)
    await one.kill()
    await asyncio.gather(two.start(), three.start())
    await two.set("user-2", spp=72)
    await nodes.agree()
    assert [three.replication.get(user).spp for user in ("user-0", "user-1", "user-2", "new")] == [1, 70, 72, 71]
    assert three.replication.get("only-one-knows") is None
    await one.start()
    await nodes.agree()
    assert [two.replication.get(user).spp for user in ("user-0", "user-1", "only-one-knows")] == [8, 70, 9]


async def founder_and_survivor(nodes: Nodes) -> list[Node]:
    """Return two nodes after the log was lost: one has founded a new log and made a change; the other is paused."""
    one, two = await nodes.up("one", "two")
    await fill(one, 3)
    await nodes.agree()
    await two.pause()
    await nodes.redis.flushall()
    await eventually(lambda: one.is_ready and one.replication._state.position.number == 2, "founded")
    await one.set("new", spp=71)
    return [one, two]


async def test_a_log_is_not_founded_again_while_somebody_has_its_state(nodes: Nodes) -> None:
    """A replica that is ready but gives no backup keeps its log: the others wait for it, and say so."""
    one, two = await founder_and_survivor(nodes)
    present = one.replication._state.position.log
    one.spoil = lambda data: data[:100]
    await two.start(ready=False)
    await eventually(lambda: "no peer and no snapshot" in two.replication.explanation, "it says why")
    await asyncio.sleep(1)
    assert one.is_ready and one.replication._state.position.log == present
    assert two.restores("peer", "refused") > 1
    one.spoil = bytes
    await two.start()
    await nodes.agree()


async def test_a_log_is_not_founded_again_while_a_replica_is_expected_back(
    nodes: Nodes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The founder may be about to start again, with the state on its disk."""
    one, two = await founder_and_survivor(nodes)
    present = one.replication._state.position.log
    await one.kill()

    async def missing() -> list[Missing]:
        return [Missing(4, "", True), Missing(5, "A", True)]

    async def roster() -> list[Member]:
        # The row of a replica whose lease has just ended.
        return [Member(6, "A", 1, "six", 1, "", "127.0.0.1:6", "ready", 0, "", leased=False)]

    async def away() -> Sequence[Source]:
        return await peer_sources(roster, missing, "two", two.settings)

    monkeypatch.setattr(two, "_peers", away)
    assert [(source.name, source.blocks_founding) for source in await away()] == [
        ("database 5", True),
        ("database 6", True),
    ]
    await two.start(ready=False)
    await eventually(lambda: "no peer and no snapshot" in two.replication.explanation, "it says why")
    await asyncio.sleep(1)
    assert not two.is_ready
    await two.pause()
    monkeypatch.undo()
    await one.start()
    await two.start()
    await nodes.agree()
    assert two.replication._state.position.log == present and two.replication.get("new").spp == 71


async def test_without_a_disk_no_log_with_changes_is_founded_again(
    nodes: Nodes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The entries of the log are the only copy of these changes, so they stay."""
    one, two = await founder_and_survivor(nodes)
    present = one.replication._state.position.log
    await one.kill()

    async def full(*_: object) -> bool:
        return False

    monkeypatch.setattr(two.replication.keeper, "save_orphan", full)
    await two.start(ready=False)
    await asyncio.sleep(1.5)
    view = await Log(nodes.redis, nodes.client, nodes.key, writer="test").view()
    assert not two.is_ready and view is not None and view.log == present
    monkeypatch.undo()
    await two.start()
    assert two.replication.get("new").spp == 71


async def test_who_dies_while_it_founds_a_log_again_loses_no_change(
    nodes: Nodes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The new log takes the place of the entries, and the state with them is on the disk before."""
    one, two = await founder_and_survivor(nodes)
    former = one.replication._state.position.log
    await one.kill()
    for path in one.snapshots():
        path.unlink()

    async def never(*_: object) -> None:
        await asyncio.Event().wait()

    monkeypatch.setattr(two.replication.keeper, "save", never)
    await two.start(ready=False)
    log = Log(nodes.redis, nodes.client, nodes.key, writer="test")
    async with asyncio.timeout(10):
        while (view := await log.view()) is None or view.log == former:
            await asyncio.sleep(0.02)
    await two.kill()
    await asyncio.gather(one.start(), two.start())
    await nodes.agree()
    assert [one.replication.get(user).spp for user in ("new", "user-1")] == [71, 1]


# The server is away, replies are lost


async def test_with_the_stream_down_reads_go_on_and_changes_are_refused(nodes: Nodes, server: Server) -> None:
    """A change raises Unavailable at once, reads go on from memory, and changes work when the server is back."""
    (one,) = await nodes.up("one")
    await one.set("alice", spp=1)
    server.kill()
    await eventually(lambda: not one.replication._reachable, "noticed")
    with pytest.raises(Unavailable, match="nothing was changed"):
        await asyncio.wait_for(one.set("alice", spp=2), 0.1)
    assert one.replication.get("alice").spp == 1
    server.start()
    await eventually(lambda: one.replication._reachable, "back")
    assert (await one.set("alice", return_fee=3)).spp == 1


async def test_a_change_whose_reply_is_lost_is_answered_from_the_log(
    nodes: Nodes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The connection broke after the append: the node reads the entry and answers it."""
    (one,) = await nodes.up("one")
    append = Log.append

    async def cut_off(self, *args, **kwargs):
        await append(self, *args, **kwargs)
        raise RedisConnectionError("the connection broke")

    monkeypatch.setattr(Log, "append", cut_off)
    assert (await one.set("alice", spp=2)).spp == 2
    assert one.number() == 2


async def test_an_append_that_never_arrived_is_refused_in_time(nodes: Nodes, monkeypatch: pytest.MonkeyPatch) -> None:
    """The change is not reported as done, and the wait ends after its time-out."""
    nodes.settings["set_timeout_ms"] = 200
    (one,) = await nodes.up("one")

    async def lost(self, *args, **kwargs):
        raise RedisConnectionError("the connection broke")

    monkeypatch.setattr(Log, "append", lost)
    with pytest.raises(Unavailable, match="did not confirm"):
        await one.set("alice", spp=2)
    assert one.replication.get("alice") is None
    assert not one.replication.pending_sets._pending


async def test_changes_under_way_are_bounded(nodes: Nodes) -> None:
    """Changes beyond the bound are refused at once; the others are done."""
    nodes.settings["set_in_flight"] = 5
    (one,) = await nodes.up("one")
    answers = await asyncio.gather(*(one.set("alice", spp=n) for n in range(20)), return_exceptions=True)
    assert sum(isinstance(answer, UserGrade) for answer in answers) == 5
    assert sum(isinstance(answer, Unavailable) for answer in answers) == 15


async def test_full_memory_refuses_only_changes(nodes: Nodes) -> None:
    """At maxmemory a change is refused and nothing is changed; reads go on, and no restart is needed."""
    (one,) = await nodes.up("one")
    await one.set("alice", spp=1)
    await nodes.redis.config_set("maxmemory", "1")
    with pytest.raises(Unavailable, match="nothing was changed"):
        await one.set("alice", spp=2)
    assert one.replication.get("alice").spp == 1
    await nodes.redis.config_set("maxmemory", "0")
    assert (await one.set("alice", spp=3)).spp == 3


# Backups and snapshots


async def test_a_backup_is_of_one_moment_while_changes_go_on(nodes: Nodes) -> None:
    """Changes after its first byte are not in it and do not wait for it."""
    (one,) = await nodes.up("one")
    await fill(one, 100)
    header, state = one.replication.header_and_records()
    chunks = []
    for number, chunk in enumerate(backup.chunks_of(header, state)):
        chunks.append(chunk)
        await one.set(f"user-{number % 100}", spp=999)
        await one.set(f"new-{number}", spp=999)
    found, storage = verified(b"".join(chunks)).result()
    assert len(chunks) > 100
    assert found.digest == header.digest == storage.digest
    assert {storage.get(f"user-{n}").spp for n in range(100)} == {1}


async def test_nothing_is_trimmed_when_the_disk_refuses(nodes: Nodes) -> None:
    """Without a durable snapshot the log is the only copy, so it grows."""
    (nodes.folder / "one").write_text("a file where the folder should be")
    (one,) = await nodes.up("one")
    for number in range(30):
        await one.set(f"user-{number}", spp=1)
    failed = one.replication._metrics.snapshots.labels("failed")._value
    await eventually(lambda: failed.get() > 0, "it was tried")
    assert await nodes.redis.xlen(LOG_KEY) == 31
    assert one.is_ready


async def test_of_the_nodes_on_one_disk_one_writes(nodes: Nodes) -> None:
    """Nodes that share a folder write one snapshot together."""
    for node in await nodes.up("a", "b", "c", "d"):
        await node.kill()
        node.disk = nodes.folder / "shared"
        node.replication = node._new()
        await node.start()
    await fill(nodes[0], 8)
    await nodes.agree()
    idle = [node.replication for node in nodes]
    await eventually(lambda: all(r.keeper.task is not None and r.keeper.task.done() for r in idle), "looked")
    written = sum(node.replication._metrics.snapshots.labels("done")._value.get() for node in nodes)
    assert written == 1
    assert all(node.replication.keeper.counted_from >= 5 for node in nodes)


async def test_a_leaving_node_writes_nothing_when_the_log_has_its_state(nodes: Nodes) -> None:
    """An ordinary stop is quick, because everything is in the log."""
    nodes.settings["snapshot_every"] = 1000
    (one,) = await nodes.up("one")
    await fill(one, 10)
    await one.leave()
    assert one.snapshots() == []


# The life


def test_only_the_drawn_moves_exist() -> None:
    """The moves are closed -> restoring <-> ready, and to closed from both."""
    assert {(a.value, b.value) for a, to in MOVES.items() for b in to} == {
        ("closed", "restoring"), ("restoring", "ready"), ("restoring", "closed"),
        ("ready", "restoring"), ("ready", "closed"),
    }  # fmt: skip


async def test_before_it_is_opened_it_is_unavailable(nodes: Nodes) -> None:
    """A read raises Unavailable with the reason and does not return None."""
    node = Node(nodes, "one")
    with pytest.raises(Unavailable, match="not open yet"):
        node.replication.get("alice")
    with pytest.raises(Unavailable):
        await node.replication.set(GradeUpdate(user_id="a"))
