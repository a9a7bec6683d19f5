"""Dead letters: looked at, replayed and dropped, each in one step."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest
from redis import exceptions as redis_errors
from redis.asyncio import Redis

from mesh import Refused, keys
from mesh.dead import letters
from mesh.dead.letters import DISCARD, LOOK, REPLAY, Actor, DeadLetters, LetterGroup, Report
from mesh.events.reader import DeliveredEvent, EventReader, SerialConnection
from mesh.groups.reader import fields_of
from mesh.requests.scripts import BOOKS, BURY, OPEN
from tests.support.backend import Backend
from tests.support.server import Server

A, EVENTS = "mesh:requests:A", "events:moves"
ACTOR = Actor("operator", "192.0.2.1")


@pytest.fixture
async def redis(backend: Backend) -> AsyncIterator[Redis]:
    """A server, real or fake, with the request stream of class A."""
    client = backend.redis()
    await OPEN.run(client, [keys.BOOKS, A], 1)
    yield client
    await client.aclose()


@pytest.fixture
def dead(redis: Redis) -> DeadLetters:
    return DeadLetters(redis, 10_000)


async def bury(redis: Any, number: int, reason: str = "it crashed", stream: str = A, **fields: str) -> None:
    """Submit a request, let a replica take it, and give it up."""
    entry = {
        "op": "count.put", "request": f"r-{number}", "from": "replica-1", "reply_to": "mesh:replies:replica-1",
        "deadline": "1700000000000", "body": f'{{"n":{number}}}', **fields,
    }  # fmt: skip
    id = await redis.xadd(stream, entry)
    await redis.hincrby(keys.BOOKS, "accepted", 1)
    await redis.xreadgroup(keys.GROUP, "replica-2", {stream: ">"}, count=1)
    names = [keys.BOOKS, keys.DEAD, stream]
    assert await BURY.run(redis, names, id, "replica-2", reason, 3, "given-up", "{}", keys.DEAD_KEPT)


async def balance(redis: Redis) -> dict[str, int]:
    """Return the books; they balance."""
    counts = await BOOKS.run(redis, [keys.BOOKS, A])
    assert counts[0] == sum(counts[1:]), counts
    return dict(zip(("accepted", "dead", "in_flight"), (counts[0], counts[4], counts[6]), strict=True))


async def audited(redis: Any) -> list[dict[str, str]]:
    return [entry for _, entry in await redis.xrange(keys.AUDIT)]


async def test_a_replayed_request_is_accepted_once_more(redis: Any, dead: DeadLetters) -> None:
    """A replayed request has no deadline and no stream for its reply; all other fields are as they were."""
    await bury(redis, 1, call="abc")
    (letter,) = await dead.look(10)
    assert (letter.kind, letter.reason, letter.op, letter.deliveries) == ("request", "it crashed", "count.put", "3")
    assert await dead.replay([letter.id], ACTOR) == Report(done=1)
    ((_, fields),) = await redis.xrange(A)
    assert fields == {
        "op": "count.put", "request": "r-1", "from": "replica-1", "reply_to": "", "deadline": "0", "body": '{"n":1}',
        "call": "abc",
    }  # fmt: skip
    assert await redis.xlen(keys.DEAD) == 0
    assert await balance(redis) == {"accepted": 2, "dead": 1, "in_flight": 1}
    (entry,) = await audited(redis)
    assert entry == {
        "event": "dead letters replayed", "actor": "operator", "source": "192.0.2.1",
        "outcome": "1 replayed, 0 gone", "ids": letter.id,
    }  # fmt: skip


async def test_a_call_whose_answer_was_lost_changes_nothing_the_second_time(redis: Any, dead: DeadLetters) -> None:
    """The second call says that the letter is gone, and the audit log has both calls."""
    await bury(redis, 1)
    (letter,) = await dead.look(1)
    assert await dead.replay([letter.id], ACTOR) == Report(done=1)
    assert await dead.replay([letter.id], ACTOR) == Report(gone=1)
    assert await dead.discard([letter.id], ACTOR) == Report(gone=1)
    assert await redis.xlen(A) == 1
    assert [entry["outcome"] for entry in await audited(redis)] == [
        "1 replayed, 0 gone", "0 replayed, 1 gone", "0 discarded, 1 gone",
    ]  # fmt: skip


async def test_a_group_is_replayed_whole_and_alone(
    redis: Any, dead: DeadLetters, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A group is replayed in batches, however many letters lie between; letters with other reasons stay."""
    monkeypatch.setattr(letters, "MOST_PER_STEP", 4)
    monkeypatch.setattr(letters, "MOST_READ_PER_STEP", 5)
    for number in range(30):
        await bury(redis, number, "crashed" if number % 3 else "other")
    assert await dead.replay(LetterGroup("crashed", A), ACTOR) == Report(done=20)
    assert {letter.reason for letter in await dead.all()} == {"other"} and len(await dead.all()) == 10
    assert await balance(redis) == {"accepted": 50, "dead": 30, "in_flight": 20}
    entries = await audited(redis)
    assert sum(len(entry["ids"].split()) for entry in entries) == 20
    assert entries[0]["reason"] == "crashed" and entries[0]["stream"] == A
    assert await dead.replay(LetterGroup("crashed", A), ACTOR) == Report()
    assert len(await audited(redis)) == len(entries), "nothing was done"


async def test_a_group_ends_where_the_operator_saw_its_end(redis: Any, dead: DeadLetters) -> None:
    """A letter that came later was not meant; one that dies again is not replayed in a circle."""
    for number in range(3):
        await bury(redis, number)
    newest, second, _ = await dead.look(10)
    assert await dead.discard(LetterGroup("it crashed", A, second.id), ACTOR) == Report(done=2)
    assert [letter.id for letter in await dead.look(10)] == [newest.id]


async def test_a_group_has_the_letters_with_its_reason_and_its_stream(redis: Any, dead: DeadLetters) -> None:
    """The operator is told how many there are before anything is done to them."""
    await OPEN.run(redis, [keys.BOOKS, "mesh:requests:B"], 1)
    for number in range(3):
        await bury(redis, number)
    await bury(redis, 3, reason="another")
    await bury(redis, 4, stream="mesh:requests:B")
    counted = {
        (reason, stream): await dead.count(LetterGroup(reason, stream))
        for reason in ("it crashed", "another", "none")
        for stream in (A, "mesh:requests:B")
    }
    assert {group: count for group, count in counted.items() if count} == {
        ("it crashed", A): 3, ("another", A): 1, ("it crashed", "mesh:requests:B"): 1,
    }  # fmt: skip


async def test_a_group_is_named_by_its_last_letter(redis: Any, dead: DeadLetters) -> None:
    """The group has the letters up to that one, with the same reason and stream; one that is gone has no group."""
    await bury(redis, 1)
    await bury(redis, 2, "other")
    other, letter = await dead.look(10)
    assert await dead.group_like(letter.id) == LetterGroup("it crashed", A, letter.id)
    assert await dead.count(LetterGroup("it crashed", A, other.id)) == 1
    await dead.discard([letter.id], ACTOR)
    assert await dead.group_like(letter.id) is None


async def test_a_group_of_letters_without_a_reason_is_discarded(redis: Any, dead: DeadLetters) -> None:
    """A field that somebody has left out counts as empty, for the list and for the act."""
    await redis.xadd(keys.DEAD, {"op": "x", "stream": A, "body": "{}"})
    group = LetterGroup("", A)
    assert await dead.count(group) == 1
    assert await dead.discard(group, ACTOR) == Report(done=1)
    assert await redis.xlen(keys.DEAD) == 0


async def test_discarding_leaves_the_books_alone(redis: Any, dead: DeadLetters) -> None:
    """The request was given up before, and stays that in the books."""
    await bury(redis, 1)
    assert await dead.discard([letter.id for letter in await dead.look(1)], ACTOR) == Report(done=1)
    assert await balance(redis) == {"accepted": 1, "dead": 1, "in_flight": 0}
    assert (await audited(redis))[0]["event"] == "dead letters discarded"


async def test_a_full_stream_stops_a_replay(redis: Any) -> None:
    """Letters that do not fit stay dead letters, and the report says why."""
    for number in range(5):
        await bury(redis, number)
    report = await DeadLetters(redis, 3).replay(LetterGroup("it crashed", A), ACTOR)
    assert (report.done, report.problem) == (3, f"{A} is full")
    assert (await redis.xlen(A), await redis.xlen(keys.DEAD)) == (3, 2)
    assert (await audited(redis))[0]["problem"] == f"{A} is full"


async def test_an_overwritten_stream_stops_a_replay(redis: Any, dead: DeadLetters) -> None:
    """What was replayed before is counted and in the audit log."""
    other = "mesh:requests:B"
    await OPEN.run(redis, [keys.BOOKS, other, A], 1)
    await bury(redis, 1)
    await bury(redis, 2, stream=other)
    letters = await dead.look(10)
    await redis.set(other, "overwritten")
    ids = [letter.id for letter in sorted(letters, key=lambda letter: letter.stream)]
    report = await dead.replay(ids, ACTOR)
    assert report.done == 1 and report.problem.startswith(f"{other}: WRONGTYPE")
    await redis.delete(other)
    assert (await balance(redis))["accepted"] == 3
    assert (await audited(redis))[0]["outcome"] == "1 replayed, 0 gone"


@pytest.mark.parametrize("fields", [{"body": "one"}, {"b": "2", "a": "é"}, {"body": "x", "kind": "y"}])
async def test_an_event_gets_its_own_fields_back(
    backend: Backend, redis: Any, dead: DeadLetters, fields: dict[str, str]
) -> None:
    """The group that gave it up reads it again; events are not in the books."""
    connection = SerialConnection(backend.connections.connection("events"))
    reader = EventReader(connection, EVENTS, "ledger", "consumer")
    await reader.open()
    await redis.xadd(EVENTS, fields)
    ((id, deliveries, delivered),) = await reader.read(1, 100)
    assert await reader.bury(DeliveredEvent(id, fields_of(delivered), deliveries), "no such product")
    (letter,) = await dead.look(1)
    assert (letter.kind, letter.stream) == ("event", EVENTS)
    assert await dead.replay([letter.id], ACTOR) == Report(done=1)
    ((_, _, again),) = await reader.read(1, 100)
    assert fields_of(again) == fields
    await connection.aclose()
    assert await redis.hget(keys.BOOKS, "accepted") is None


async def test_letters_of_the_release_before_are_known_by_their_stream(redis: Any, dead: DeadLetters) -> None:
    """They have no kind."""
    header = {"id": "1-0", "reason": "old", "deliveries": "3"}
    await redis.xadd(keys.DEAD, {"stream": A, **header, "op": "count.put", "deadline": "7", "body": "{}"})
    await redis.xadd(keys.DEAD, {"stream": EVENTS, **header, "body": "an event"})
    assert [letter.kind for letter in await dead.look(2)] == ["event", "request"]
    assert await dead.replay([letter.id for letter in await dead.look(2)], ACTOR) == Report(done=2)
    assert [fields for _, fields in await redis.xrange(EVENTS)] == [{"body": "an event"}]
    assert [fields for _, fields in await redis.xrange(A)] == [{"op": "count.put", "deadline": "0", "body": "{}"}]


@pytest.mark.parametrize("stream", ["", "mesh:books", "shared:values:where:1"])
async def test_a_letter_is_never_replayed_to_anything_but_a_stream_of_work(
    redis: Any, dead: DeadLetters, stream: str
) -> None:
    """A letter that was written by hand may name any key."""
    id = await redis.xadd(keys.DEAD, {"kind": "request", "stream": stream, "deliveries": "1", "body": "{}"})
    report = await dead.replay([id], ACTOR)
    assert report.done == 0 and "no stream that can be replayed to" in report.problem
    assert await redis.xlen(keys.DEAD) == 1


async def test_ids_are_checked_before_anything_is_done(redis: Any, dead: DeadLetters) -> None:
    """A script that meets a wrong id would end in the middle."""
    await bury(redis, 1)
    (letter,) = await dead.look(1)
    with pytest.raises(Refused, match="not the id of a dead letter"):
        await dead.replay([letter.id, "-"], ACTOR)
    assert await redis.xlen(keys.DEAD) == 1


async def test_a_list_has_the_beginning_of_each_body_and_its_size(redis: Any, dead: DeadLetters) -> None:
    """Bytes that are not text do not spoil it."""
    await redis.xadd(keys.DEAD, {"stream": EVENTS, "deliveries": "1", "body": b"\xff" + b"x" * 5000})
    (letter,) = await dead.look(1, body=3)
    assert (letter.size, letter.body) == (5001, "\ufffdxx")


async def test_all_of_many_letters_are_found(redis: Any, dead: DeadLetters, monkeypatch: pytest.MonkeyPatch) -> None:
    """The letters are read page after page."""
    monkeypatch.setattr(letters, "MOST_READ_PER_STEP", 3)
    for number in range(8):
        await bury(redis, number)
    found = await dead.all()
    assert len(found) == 8 and found == sorted(found, key=lambda letter: letter.id, reverse=True)


async def test_full_memory_stops_a_replay_and_not_a_discard(server: Server) -> None:
    """A replay is new work."""
    async with Redis(port=server.port, decode_responses=True) as redis:
        await OPEN.run(redis, [keys.BOOKS, A], 1)
        await bury(redis, 1)
        await bury(redis, 2)
        dead = DeadLetters(redis, 10)
        one, two = await dead.look(2)
        await redis.config_set("maxmemory", "1mb")
        with pytest.raises(redis_errors.OutOfMemoryError):
            await dead.replay([one.id], ACTOR)
        assert await redis.xlen(keys.DEAD) == 2 and await redis.xlen(A) == 0
        assert await dead.discard([two.id], ACTOR) == Report(done=1)


def test_the_scripts_have_all_their_parts() -> None:
    """A part that is not put in would leave its comment."""
    for script in (REPLAY, DISCARD, LOOK):
        assert ".lua ]]" not in script.source
