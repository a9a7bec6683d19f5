"""Durable events without a mesh, on a real server."""

from __future__ import annotations

import asyncio
import functools
import itertools
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from typing import Any

import pytest
from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError as RedisConnectionError
from structlog.testing import capture_logs

from mesh.errors import Unavailable
from mesh.events.consumer import Events, batch_size_after
from mesh.events.reader import DeliveredEvent, EventReader, SerialConnection
from mesh.groups import reader as module
from mesh.groups.reader import fields_of
from mesh.wire.clients import heeding_cancellation
from mesh.wire.connection import RedisConnection
from tests.support.server import Server

STREAM = "events:test"
GROUP = "tested"


@pytest.fixture
def url(server: Server) -> str:
    """Return the address of a real server."""
    return server.url


@pytest.fixture
def connect(url: str) -> Callable[[], Redis]:
    """Return a function that opens clients like a replica's: one connection, without retries."""

    def connect() -> Redis:
        return heeding_cancellation(
            Redis.from_url(url, decode_responses=True, protocol=2, retry=Retry(NoBackoff(), 0), max_connections=1)
        )

    return connect


@pytest.fixture
async def redis(url: str) -> AsyncIterator[Redis]:
    client = Redis.from_url(url, decode_responses=True)
    yield client
    await client.aclose()


class Handler:
    """Keeps the events that it gets. Each test sets what it does with them in `act`."""

    def __init__(self) -> None:
        self.done: list[str] = []
        self.seen: list[list[DeliveredEvent]] = []
        self.act: Callable[[Sequence[DeliveredEvent]], Awaitable[Mapping[str, str]]] = self.accept

    async def accept(self, entries: Sequence[DeliveredEvent]) -> Mapping[str, str]:
        return {}

    async def __call__(self, entries: Sequence[DeliveredEvent]) -> Mapping[str, str]:
        self.seen.append(list(entries))
        refused = await self.act(entries)
        self.done += [entry.fields["body"] for entry in entries if entry.id not in refused]
        return refused


@pytest.fixture
def handler() -> Handler:
    return Handler()


names = (f"consumer-{n}" for n in itertools.count())


def consume(connect: Callable[[], Redis], handler: Any, consumer: str | None = None, **options: Any) -> Events:
    """Return a consumer that takes events over soon."""
    options = {"claim_idle_ms": 200, **options}
    return Events(connect, STREAM, GROUP, consumer or next(names), handler, **options)


async def publish(redis: Redis, *bodies: str | bytes) -> list[str]:
    pipe = redis.pipeline()
    for body in bodies:
        pipe.xadd(STREAM, {"body": body})
    return list(await pipe.execute())


async def until(true: Callable[[], Any], within: float = 10.0) -> None:
    """Wait until a condition holds, which may be a coroutine function."""
    limit = time.monotonic() + within
    while True:
        answer = true()
        if await answer if asyncio.iscoroutine(answer) else answer:
            return
        assert time.monotonic() < limit, "it did not become true in time"
        await asyncio.sleep(0.01)


async def all_settled(redis: Redis) -> bool:
    """Return whether no event waits and none is pending."""
    groups = await redis.xinfo_groups(STREAM) if await redis.exists(STREAM) else []
    return await redis.xlen(STREAM) == 0 and all(group["pending"] == 0 for group in groups)


async def dead_letters(redis: Redis) -> list[dict[str, str]]:
    return [fields for _, fields in await redis.xrange("mesh:dead")]


async def crash(events: Events) -> None:
    """End a consumer as kill -9 would, without handing events back."""
    events._task.cancel()
    _, alive = await asyncio.wait({events._task}, timeout=10)
    assert not alive, "a cancellation was forgotten"
    await events._connection.aclose()


# The rules, bare


@pytest.mark.parametrize(("deliveries", "size"), [(0, 500), (1, 62), (2, 1), (3, 1), (9, 1)])
def test_groups_get_smaller_with_each_death(deliveries: int, size: int) -> None:
    """An event that kills its process is alone in its group before its last delivery."""
    assert batch_size_after(deliveries, 500) == size


def test_a_group_is_never_empty() -> None:
    """A group has at least one event, also with a small batch."""
    assert batch_size_after(1, 4) == 1


# What happens to events


async def test_events_are_handled_and_deleted(connect: Any, redis: Redis, handler: Handler) -> None:
    """It does not matter whether they come before or after the start. The stream holds only events that wait."""
    await publish(redis, "a", "b")
    async with consume(connect, handler):
        await until(lambda: len(handler.done) == 2)
        await publish(redis, "c")
        await until(lambda: len(handler.done) == 3)
        await until(lambda: all_settled(redis))
    assert handler.done == ["a", "b", "c"]


async def test_consumers_of_a_group_share_the_events(connect: Any, redis: Redis) -> None:
    """Each event goes to one of them."""
    first, second = Handler(), Handler()
    async with consume(connect, first, batch=5), consume(connect, second, batch=5):
        bodies = [str(n) for n in range(500)]
        await publish(redis, *bodies)
        await until(lambda: all_settled(redis))
    assert sorted(first.done + second.done) == sorted(bodies)
    assert first.done and second.done


async def test_a_refused_event_is_a_dead_letter_at_once(connect: Any, redis: Redis, handler: Handler) -> None:
    """The letter has stream, id, reason, deliveries and body. The other events of the batch are handled."""

    async def refuse_b(entries: Sequence[DeliveredEvent]) -> Mapping[str, str]:
        return {entry.id: "no b here" for entry in entries if entry.fields["body"] == "b"}

    handler.act = refuse_b
    heard: list[tuple[str, str]] = []
    ids = await publish(redis, "a", "b", "c")
    async with consume(connect, handler, on_buried=lambda entry, reason: heard.append((entry.id, reason))):
        await until(lambda: all_settled(redis))
    assert handler.done == ["a", "c"]
    letter = {
        "kind": "event", "group": GROUP, "encoded": "body", "stream": STREAM, "id": ids[1], "reason": "no b here",
        "deliveries": "1", "body": "b",
    }  # fmt: skip
    assert await dead_letters(redis) == [letter]
    assert heard == [(ids[1], "no b here")]


async def test_bytes_that_are_no_text_reach_the_dead_letters_unchanged(
    connect: Any, redis: Redis, url: str, handler: Handler
) -> None:
    """They do no harm to their batch, nor to the connection."""

    async def refuse_surrogates(entries: Sequence[DeliveredEvent]) -> Mapping[str, str]:
        return {entry.id: "bad \udcff" for entry in entries if not entry.fields["body"].isascii()}

    handler.act = refuse_surrogates
    await publish(redis, "a", b"\xff\x00\xfe", "c")
    async with consume(connect, handler):
        await until(lambda: all_settled(redis))
    assert handler.done == ["a", "c"]
    async with Redis.from_url(url) as raw:
        ((_, letter),) = await raw.xrange("mesh:dead")
    assert letter[b"body"] == b"\xff\x00\xfe"
    assert letter[b"reason"] == b"bad \\udcff"


async def test_an_event_of_several_fields_is_buried_whole(connect: Any, redis: Redis) -> None:
    """The body of the letter has all of its fields, so that none is lost or taken for a field of the letter."""

    async def refuse(entries: Sequence[DeliveredEvent]) -> Mapping[str, str]:
        return {entry.id: "no" for entry in entries}

    id = await redis.xadd(STREAM, {"id": "7", "reason": "theirs"})
    async with consume(connect, refuse):
        await until(lambda: all_settled(redis))
    (letter,) = await dead_letters(redis)
    assert (letter["id"], letter["reason"]) == (id, "no")
    assert json.loads(letter["body"]) == {"id": "7", "reason": "theirs"}


async def test_an_event_that_fails_does_not_hold_up_others(connect: Any, redis: Redis, handler: Handler) -> None:
    """The others are handled after its first failure.

    It is tried again, and then becomes a dead letter with the error.
    """

    async def fail_at_13(entries: Sequence[DeliveredEvent]) -> Mapping[str, str]:
        if any(entry.fields["body"] == "13" for entry in entries):
            raise ValueError("thirteen")
        return {}

    handler.act = fail_at_13
    bodies = [str(n) for n in range(64)]
    await publish(redis, *bodies)
    async with consume(connect, handler, claim_idle_ms=300, max_deliveries=3):
        await until(lambda: len(handler.done) == 63)
        assert await dead_letters(redis) == []
        await until(lambda: all_settled(redis))
    assert sorted(handler.done, key=int) == [body for body in bodies if body != "13"]
    (letter,) = await dead_letters(redis)
    assert (letter["body"], letter["reason"], letter["deliveries"]) == ("13", "ValueError: thirteen", "3")


async def test_an_event_that_fails_once_is_not_lost(connect: Any, redis: Redis, handler: Handler) -> None:
    """The next delivery may succeed."""

    async def fail_at_first(entries: Sequence[DeliveredEvent]) -> Mapping[str, str]:
        if entries[0].deliveries == 1:
            raise ValueError("not today")
        return {}

    handler.act = fail_at_first
    await publish(redis, "a")
    async with consume(connect, handler):
        await until(lambda: all_settled(redis))
    assert handler.done == ["a"]
    assert await dead_letters(redis) == []


async def test_nothing_is_buried_while_a_database_is_down(connect: Any, redis: Redis) -> None:
    """The consumer waits, and keeps its events alive so that no other takes them. The delivery does not count again."""
    down, patient, other = asyncio.Event(), Handler(), Handler()

    async def wait_for_database(entries: Sequence[DeliveredEvent]) -> Mapping[str, str]:
        if not down.is_set():
            raise Unavailable("the database is down")
        return {}

    patient.act = wait_for_database
    await publish(redis, "a", "b")
    async with consume(connect, patient, claim_idle_ms=600, max_deliveries=2):
        await until(lambda: patient.seen)
        async with consume(connect, other, claim_idle_ms=600):
            await asyncio.sleep(1.5)  # more than twice the idle time: this is what must not matter
            assert other.seen == []
        down.set()
        await until(lambda: all_settled(redis))
    assert patient.done == ["a", "b"]
    assert {entry.deliveries for entries in patient.seen for entry in entries} == {1}
    assert await dead_letters(redis) == []


async def test_a_handler_that_hangs_is_ended_and_tried_again(connect: Any, redis: Redis, handler: Handler) -> None:
    """The handler is cancelled after its time, and gets the event again."""

    async def hang_once(entries: Sequence[DeliveredEvent]) -> Mapping[str, str]:
        if len(handler.seen) == 1:
            await asyncio.Event().wait()
        return {}

    handler.act = hang_once
    await publish(redis, "a")
    async with consume(connect, handler, handle_timeout_ms=100):
        await until(lambda: handler.done == ["a"], within=2)


# Death


async def test_events_of_the_dead_are_taken_over(connect: Any, redis: Redis, handler: Handler) -> None:
    """Events that a consumer read and did not finish go to another one after the idle time."""
    bodies = [str(n) for n in range(100)]
    await publish(redis, *bodies)
    await redis.xgroup_create(STREAM, GROUP, id="0")
    await redis.xreadgroup(GROUP, "ghost", {STREAM: ">"}, count=60)
    async with consume(connect, handler):
        await until(lambda: all_settled(redis))
    assert sorted(handler.done, key=int) == bodies
    assert {entry.deliveries for entries in handler.seen for entry in entries} == {1, 2}


async def test_an_event_that_kills_its_process_takes_no_other_along(connect: Any, redis: Redis) -> None:
    """One event ends every process that handles it. Only this event becomes a dead letter; all others are handled."""
    done: list[str] = []
    died = asyncio.Event()

    async def die_at_77(entries: Sequence[DeliveredEvent]) -> Mapping[str, str]:
        if any(entry.fields["body"] == "77" for entry in entries):
            died.set()
            await asyncio.Event().wait()
        done.extend(entry.fields["body"] for entry in entries)
        return {}

    bodies = [str(n) for n in range(200)]
    await publish(redis, *bodies)
    deaths = await settled_by_the_dying(redis, died, lambda: consume(connect, die_at_77, max_deliveries=3))
    assert deaths == 3
    assert sorted(set(done), key=int) == [body for body in bodies if body != "77"]
    (letter,) = await dead_letters(redis)
    assert letter["body"] == "77"
    assert letter["reason"] == "3 consumers had it and none of them finished it"


async def settled_by_the_dying(redis: Redis, died: asyncio.Event, begin: Callable[[], Events]) -> int:
    """Run one consumer after the other, each until it dies or all events are settled. Return how many died."""
    deaths = 0
    while not await all_settled(redis):
        events = await begin().__aenter__()
        settled = asyncio.create_task(until(lambda: all_settled(redis)))
        dead = asyncio.create_task(died.wait())
        await asyncio.wait({settled, dead}, return_when=asyncio.FIRST_COMPLETED)
        deaths += died.is_set()
        died.clear()
        settled.cancel()
        dead.cancel()
        await crash(events)
    return deaths


async def test_an_event_whose_effect_is_there_is_no_dead_letter(connect: Any, redis: Redis) -> None:
    """Its consumers died between the effect and the acknowledgement. The event counts as done."""
    done: list[str] = []
    died = asyncio.Event()

    async def die_after_7(entries: Sequence[DeliveredEvent]) -> Mapping[str, str]:
        done.extend(entry.fields["body"] for entry in entries)
        if any(entry.fields["body"] == "7" for entry in entries):
            died.set()
            await asyncio.Event().wait()
        return {}

    async def is_done(entry: DeliveredEvent) -> bool:
        return entry.fields["body"] in done

    await publish(redis, *(str(n) for n in range(20)))
    begin = functools.partial(consume, connect, die_after_7, max_deliveries=3, is_done=is_done)
    assert await settled_by_the_dying(redis, died, begin) == 3
    assert {*done} == {str(n) for n in range(20)}
    assert await dead_letters(redis) == []


async def test_the_check_for_an_effect_runs_once(connect: Any, redis: Redis) -> None:
    """If the check for the effect kills its process, the event becomes a dead letter without a second check."""
    died = asyncio.Event()

    async def die(*_: object) -> Any:
        died.set()
        await asyncio.Event().wait()

    await publish(redis, "7")
    begin = functools.partial(consume, connect, die, max_deliveries=3, is_done=die)
    assert await settled_by_the_dying(redis, died, begin) == 4
    assert len(await dead_letters(redis)) == 1


async def test_a_consumer_begins_with_what_is_already_its_own(connect: Any, redis: Redis, handler: Handler) -> None:
    """A process that starts again under its name takes its events at once. The delivery counts."""
    await publish(redis, "a")
    await redis.xgroup_create(STREAM, GROUP, id="0")
    await redis.xreadgroup(GROUP, "phoenix", {STREAM: ">"})
    async with consume(connect, handler, "phoenix", claim_idle_ms=60_000):
        await until(lambda: handler.done == ["a"], within=3)
    assert handler.seen[0][0].deliveries == 2


async def test_a_sleeper_does_not_take_back_what_another_took_over(connect: Any, redis: Redis) -> None:
    """It did not run during the idle time. When it then keeps its events alive, it must not take them back."""
    ids = await publish(redis, "a", "b")
    connections = [SerialConnection.of(connect()), SerialConnection.of(connect())]
    sleeper = EventReader(connections[0], STREAM, GROUP, "sleeper")
    heir = EventReader(connections[1], STREAM, GROUP, "heir")
    await sleeper.open()
    await sleeper.read(10, 100)
    await heir.claim(ids[:1], 0, 2)
    assert await sleeper.keep_alive(ids) == ids[:1]
    owners = {row["message_id"]: row["consumer"] for row in await redis.xpending_range(STREAM, GROUP, "-", "+", 10)}
    assert owners == {ids[0]: "heir", ids[1]: "sleeper"}
    for connection in connections:
        await connection.aclose()


async def test_an_event_is_buried_once(connect: Any, redis: Redis) -> None:
    """A second attempt changes nothing, and an event that was handled meanwhile is not buried."""
    await publish(redis, "a", "b")
    connection = SerialConnection.of(connect())
    reader = EventReader(connection, STREAM, GROUP, "digger")
    await reader.open()
    bad, good = [DeliveredEvent(id, fields_of(flat), deliveries) for id, deliveries, flat in await reader.read(10, 100)]
    await reader.finish([good.id])
    assert [await reader.bury(one, "bad") for one in (bad, bad, good)] == [True, False, False]
    assert [letter["body"] for letter in await dead_letters(redis)] == ["a"]
    await connection.aclose()


async def test_a_buried_event_is_acknowledged_too(connect: Any, redis: Redis) -> None:
    """An event that somebody has deleted is acknowledged, or one consumer after the other would claim it."""
    gone, _ = await publish(redis, "a", "b")
    connection = SerialConnection.of(connect())
    reader = EventReader(connection, STREAM, GROUP, "digger")
    await reader.open()
    taken = [DeliveredEvent(id, fields_of(flat), deliveries) for id, deliveries, flat in await reader.read(10, 100)]
    await redis.xdel(STREAM, gone)
    assert [await reader.bury(one, "bad") for one in taken] == [False, True]
    assert (await redis.xpending(STREAM, GROUP))["pending"] == 0
    await connection.aclose()


async def test_consumers_of_the_dead_are_forgotten(
    connect: Any, redis: Redis, handler: Handler, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each process has a new name, so the group would grow without end. A consumer with pending events stays."""
    monkeypatch.setattr(module, "SILENCE_MS", 100)
    await publish(redis, "a", "b")
    await redis.xgroup_create(STREAM, GROUP, id="0")
    await redis.xreadgroup(GROUP, "busy", {STREAM: ">"}, count=1)
    await redis.xgroup_createconsumer(STREAM, GROUP, "gone")
    await asyncio.sleep(0.2)
    async with consume(connect, handler, "me", claim_idle_ms=60_000):
        await until(lambda: handler.done == ["b"])
    assert {row["name"] for row in await redis.xinfo_consumers(STREAM, GROUP)} == {"me", "busy"}


# A network that breaks


async def test_events_of_a_lost_answer_are_not_forgotten(
    connect: Any, redis: Redis, handler: Handler, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are pending for this consumer, and no later read returns them.

    It handles them at once, as their first delivery.
    """
    execute, lose = RedisConnection.execute, ["XREADGROUP", "XCLAIM"]

    async def flaky(self: RedisConnection, *command: Any) -> Any:
        answer = await execute(self, *command)
        if answer and command[0] in lose:
            lose.remove(command[0])
            raise RedisConnectionError(f"lost the answer to {command[0]}")
        return answer

    monkeypatch.setattr(RedisConnection, "execute", flaky)
    await publish(redis, "a", "b")
    async with consume(connect, handler, claim_idle_ms=60_000):
        await until(lambda: all_settled(redis), within=5)
    assert lose == []
    assert handler.done == ["a", "b"]
    assert [entry.deliveries for entry in handler.seen[0]] == [1, 1]


async def test_after_a_lost_acknowledgement_an_event_is_handled_again(
    connect: Any, redis: Redis, handler: Handler, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The handler gets the event twice, and its unique key makes that harmless."""
    finish, failures = EventReader.finish, iter([True])

    async def fail_once(self: EventReader, ids: Sequence[str]) -> None:
        if next(failures, False):
            raise RedisConnectionError("gone before the acknowledgement")
        await finish(self, ids)

    monkeypatch.setattr(EventReader, "finish", fail_once)
    await publish(redis, "a")
    async with consume(connect, handler, claim_idle_ms=60_000):
        await until(lambda: all_settled(redis), within=5)
    assert handler.done == ["a", "a"]


@pytest.mark.parametrize("harm", ["destroy", "delete", "flush"])
async def test_a_deleted_group_is_created_again(
    connect: Any, redis: Redis, handler: Handler, monkeypatch: pytest.MonkeyPatch, harm: str
) -> None:
    """The consumer creates it again soon, and does not loop fast meanwhile."""
    opened: list[float] = []
    opening = EventReader.open

    async def counted(self: EventReader) -> None:
        opened.append(time.monotonic())
        await opening(self)

    monkeypatch.setattr(EventReader, "open", counted)
    async with consume(connect, handler):
        await publish(redis, "a")
        await until(lambda: handler.done == ["a"])
        match harm:
            case "destroy":
                await redis.xgroup_destroy(STREAM, GROUP)
            case "delete":
                await redis.delete(STREAM)
            case "flush":
                await redis.flushall()
        await publish(redis, "b")
        await until(lambda: handler.done == ["a", "b"], within=2)
        await until(lambda: all_settled(redis))
    assert len(opened) <= 4


async def test_an_unreachable_redis_is_tried_with_growing_pauses(
    handler: Handler, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The pauses between two attempts grow."""
    opened: list[float] = []
    opening = EventReader.open

    async def counted(self: EventReader) -> None:
        opened.append(time.monotonic())
        await opening(self)

    monkeypatch.setattr(EventReader, "open", counted)
    async with consume(lambda: Redis.from_url("redis://127.0.0.1:9", protocol=2, retry=Retry(NoBackoff(), 0)), handler):
        await until(lambda: len(opened) == 4)
    assert opened[3] - opened[0] > 0.3


async def test_a_quiet_stream_is_no_error(redis: Redis, url: str, handler: Handler) -> None:
    """A time-out of the client that is shorter than the BLOCK causes no error."""

    def connect() -> Redis:
        return Redis.from_url(url, decode_responses=True, protocol=2, socket_timeout=0.1, retry=Retry(NoBackoff(), 0))

    with capture_logs() as said:
        async with consume(connect, handler, claim_idle_ms=2000):
            await asyncio.sleep(1.0)  # ten of its time-outs long
            await publish(redis, "a")
            await until(lambda: handler.done == ["a"])
    assert said == []


# Leaving


async def test_leaving_finishes_the_batch_in_hand(connect: Any, redis: Redis, handler: Handler) -> None:
    """The effect is made and acknowledged, so the events are not delivered again."""
    begun, go_on = asyncio.Event(), asyncio.Event()

    async def slow(entries: Sequence[DeliveredEvent]) -> Mapping[str, str]:
        begun.set()
        await go_on.wait()
        return {}

    handler.act = slow
    await publish(redis, "a")
    async with consume(connect, handler):
        await begun.wait()
        asyncio.get_running_loop().call_later(0.2, go_on.set)
    assert handler.done == ["a"]
    assert await all_settled(redis)


async def test_leaving_hands_the_rest_back(connect: Any, redis: Redis, handler: Handler) -> None:
    """Another consumer takes the whole batch over at once, as its first delivery, however long the idle time is."""

    async def never(entries: Sequence[DeliveredEvent]) -> Mapping[str, str]:
        raise Unavailable("the database is down")

    waiting, bodies = Handler(), [str(n) for n in range(100)]
    waiting.act = never
    await publish(redis, *bodies)
    async with consume(connect, waiting, claim_idle_ms=30_000):
        await until(lambda: waiting.seen)
    async with consume(connect, handler, claim_idle_ms=30_000):
        await until(lambda: all_settled(redis), within=5)
    assert handler.done == bodies
    assert [len(entries) for entries in handler.seen] == [100]
    assert handler.seen[0][0].deliveries == 1


async def test_leaving_does_not_wait_for_an_event(connect: Any, redis: Redis, handler: Handler) -> None:
    """A read blocks for a quarter of a second at most."""
    async with consume(connect, handler, drain_ms=20_000, claim_idle_ms=60_000):
        await asyncio.sleep(0.5)
        began = time.monotonic()
    assert time.monotonic() - began < 1


async def test_leaving_ends_a_handler_that_does_not(connect: Any, redis: Redis, handler: Handler) -> None:
    """The handler is cancelled after `drain_ms`, and its events go to another consumer."""

    async def hang(entries: Sequence[DeliveredEvent]) -> Mapping[str, str]:
        await asyncio.Event().wait()
        return {}

    handler.act = hang
    await publish(redis, "a")
    began = time.monotonic()
    async with consume(connect, handler, drain_ms=300, claim_idle_ms=30_000):
        await until(lambda: handler.seen)
    assert time.monotonic() - began < 5
    heir = Handler()
    async with consume(connect, heir, claim_idle_ms=30_000):
        await until(lambda: heir.done == ["a"], within=3)
