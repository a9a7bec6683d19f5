"""Batches of commands, and redis-py clients as the mesh makes them."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Sequence
from typing import Any

import pytest
from pydantic import SecretStr
from redis.asyncio import Redis
from redis.exceptions import DataError, NoScriptError

from mesh import Busy, Connections, LeaseLost, RedisSettings, Unavailable
from mesh.wire.batch import SendQueue
from mesh.wire.clients import Credentials, heeding_cancellation
from mesh.wire.connection import Command, RedisConnection, TooLarge, encode_words
from mesh.wire.link import Link
from mesh.wire.script import Script, Variants
from quart_app.local.ports import free_port
from tests.support.server import Server
from tests.support.waiting import eventually

#: A script that a link has and does not run.
UNUSED = (Variants(*[Script("return 'unused'")] * 3), ())


def _waiter() -> asyncio.Future[str]:
    return asyncio.get_running_loop().create_future()


async def test_a_batch_hands_over_in_order_and_up_to_so_many_words() -> None:
    """The oldest items go first, the rest waits for the next trip, and an item beyond the bound goes alone."""
    queue: SendQueue[str] = SendQueue()
    for words in ("aa", "bb", "cc", "ddddddddd", "e"):
        queue.add(words, _waiter(), len(words))
    assert [item for item, *_ in queue.take(5)] == ["aa", "bb"]
    assert len(queue.items) == 3
    (taken,) = queue.take(2)
    assert taken[0] == "cc"
    queue.put_first([taken])
    assert [item for item, *_ in queue.take(2)] == ["cc"]
    assert [item for item, *_ in queue.take(2)] == ["ddddddddd"]
    assert [item for item, *_ in queue.take(2)] == ["e"]


def test_long_words_count_for_several() -> None:
    """A round trip is bounded in bytes, too: a script that writes 20 MB would hold the server."""
    text, weight, longs, _ = encode_words(["1", "x" * 1280, "y"])
    assert json.loads(b"[%b]" % text) == [4, "1", "x" * 1280, "y"] and not longs
    assert weight == 4 + len(text) // 32 == 44
    text, weight, longs, _ = encode_words(["1", "x" * 128_000, 2, "y" * 70_000])
    assert json.loads(b"[%b]" % text) == [5, "1", None, 2, None] and longs == ["x" * 128_000, "y" * 70_000]
    assert weight == 5 + 198_015 // 32


def test_words_that_cannot_be_sent_are_refused() -> None:
    """What is no Unicode text has no bytes, and one round trip is bounded."""
    with pytest.raises(DataError, match="surrogates"):
        encode_words(["\udcff"])
    with pytest.raises(TooLarge, match="at most 67108864 fit in one trip"):
        encode_words(["x" * 2**26])


async def test_a_pool_that_is_used_up_is_busy(server: Server) -> None:
    """Redis answers, so this is no error of the network. The caller may try again later."""
    connections = Connections(server.settings.model_copy(update={"timeout_ms": 100}))
    client = connections.client("test")
    connection = await client.connection_pool.get_connection()
    with pytest.raises(Busy, match="connections to Redis are in use; retry after 1 s") as caught:
        await client.get("x")
    assert caught.value.retry_after == 1
    await client.connection_pool.release(connection)
    assert await client.get("x") is None
    await client.aclose()


async def test_a_batch_has_a_bound() -> None:
    """An item beyond the bound is refused at once with Busy; those that wait stay."""
    queue: SendQueue[str] = SendQueue(bound=2)
    queue.add("one", _waiter(), 1)
    queue.add("two", _waiter(), 1)
    with pytest.raises(Busy):
        queue.add("three", _waiter(), 1)
    assert len(queue.items) == 2


async def test_what_waits_in_a_batch_fails_together() -> None:
    """A waiter that was cancelled before stays cancelled."""
    queue: SendQueue[str] = SendQueue()
    waiting, given_up = _waiter(), _waiter()
    queue.add("one", waiting, 1)
    queue.add("two", given_up, 1)
    given_up.cancel()
    queue.fail(Busy("closed"))
    with pytest.raises(Busy):
        await waiting
    assert given_up.cancelled() and len(queue.items) == 0


def link_over(connection: RedisConnection, **options: Any) -> Link:
    """Return a link whose lease holds."""
    usual: dict[str, Any] = {"remembered_ms": 60_000, "submit_script": UNUSED, "scripts": ()}
    return Link(connection, bus=0, database=1, trusted=lambda: True, commit_script=None, **(usual | options))


async def test_a_link_without_a_server_refuses_requests_at_once() -> None:
    """The caller hears when to try again, and its request does not wait for a server that may stay away.

    Commands that were sent before wait, and fail when the link ends.
    """
    connection = Connections(RedisSettings(port=free_port())).connection("test")
    link = link_over(connection)
    running = asyncio.create_task(link.run())
    asked = link.shared("PING")

    async def down() -> bool:
        return link.down

    await eventually(down)
    with pytest.raises(Unavailable, match="Redis cannot be reached; retry after 1 s") as caught:
        link.submit((b"[]", 1, [], True), _waiter())
    assert caught.value.retry_after == 1
    running.cancel()
    with pytest.raises(Unavailable, match="connection to Redis was closed"):
        await asked
    await connection.aclose()


async def test_a_command_that_cannot_be_sent_fails_alone(server: Server) -> None:
    """Those beside it in the same trip are answered, in both databases."""
    connection = Connections(server.settings).connection("test")
    link = link_over(connection)
    wrong = [link.shared("SET", "key", None), link.own("SET", "key", [1])]
    right = [link.shared("SET", "key", "in 0"), link.own("SET", "key", "in 1"), link.shared("GET", "key")]
    running = asyncio.create_task(link.run())
    assert await asyncio.gather(*right) == ["OK", "OK", "in 0"]
    for error in await asyncio.gather(*wrong, return_exceptions=True):
        assert isinstance(error, DataError)
    with server.redis(1) as admin:
        assert admin.get("key") == "in 1"
    running.cancel()
    await connection.aclose()


async def test_a_link_ends_before_redis_forgets_what_it_has_done() -> None:
    """A trip that is sent again later would be done twice, although the lease may hold: others renew it."""
    connection = Connections(RedisSettings(port=free_port())).connection("test")
    link = link_over(connection, remembered_ms=400)
    asked = link.shared("PING")
    began = time.monotonic()
    with pytest.raises(LeaseLost, match="may have forgotten"):
        await link.run()
    assert 0.1 <= time.monotonic() - began < 2
    with pytest.raises(LeaseLost):
        await asked
    await connection.aclose()


class Talkative(RedisConnection):
    """A server that sends one answer too many."""

    async def send(self, commands: Sequence[Command]) -> list[Any]:
        return [*(await super().send(commands)), "nobody asked"]


async def test_an_answer_too_many_does_not_end_the_link(server: Server) -> None:
    """It belongs to no command, so nobody hears of it."""
    connection = Talkative(Connections(server.settings).client("test"), 5)
    link = link_over(connection)
    running = asyncio.create_task(link.run())
    assert await link.shared("PING") == "PONG"
    assert await link.shared("ECHO", "still there") == "still there"
    running.cancel()
    await connection.aclose()


async def test_the_plain_variant_runs_a_batch_whose_items_are_all_plain(server: Server) -> None:
    """One item that needs more has the complete variant run the whole batch."""
    variants = [Script(f"return cjson.encode({{'{name}', '{name}'}})") for name in ("complete", "plain", "full")]
    connection = Connections(server.settings).connection("test")
    submit = (Variants(*variants), (0,))
    link = link_over(connection, submit_script=submit)
    running = asyncio.create_task(link.run())
    for plain, name in ((True, "plain"), (False, "complete")):
        waiters = [_waiter(), _waiter()]
        link.submit((b"1", 1, [], True), waiters[0])
        link.submit((b"1", 1, [], plain), waiters[1])
        assert await asyncio.gather(*waiters) == [name, name]
    running.cancel()
    await connection.aclose()


async def test_a_script_is_loaded_when_it_is_needed(server: Server) -> None:
    """The others are not: Lua's collector walks through all scripts that the server has.

    A script that the link does not have fails alone.
    """
    connection = Connections(server.settings).connection("test")
    needed, other, unknown = Script("return KEYS[1]"), Script("return 'other'"), Script("return 'unknown'")
    link = link_over(connection, scripts=(needed, other))
    with server.redis() as admin:
        admin.script_flush()
        right, wrong = link.script(needed, ["a"]), link.script(unknown, [])
        running = asyncio.create_task(link.run())
        assert await right == "a"
        with pytest.raises(NoScriptError):
            await wrong
        assert not link.down
        assert admin.script_exists(needed.sha, other.sha) == [True, False]
        admin.script_flush()
        assert await asyncio.gather(link.script(needed, ["b"]), link.script(other, [])) == ["b", "other"]
    running.cancel()
    await connection.aclose()


@pytest.mark.parametrize(
    ("settings", "bus"),
    [
        (RedisSettings(db=3), 3),
        (RedisSettings(url=SecretStr("redis://h:1/5")), 5),
        (RedisSettings(url=SecretStr("redis://h:1"), db=2), 2),
        (RedisSettings(url=SecretStr("rediss://u:p@h/")), 0),
    ],
)
def test_the_bus_database_is_the_addresss_or_the_settings(settings: RedisSettings, bus: int) -> None:
    """If the address names a database, REDIS_DB does not count."""
    assert Connections(settings).bus == bus


def test_nothing_is_retried_behind_our_back_and_every_wait_has_an_end() -> None:
    """redis-py's own defaults, such as ten retries, do not hold."""
    client = Connections(RedisSettings(timeout_ms=1500)).client("t", block_ms=250)
    options = client.connection_pool.connection_kwargs
    assert options["retry"].get_retries() == 0
    assert options["socket_timeout"] == 1.75 and options["socket_connect_timeout"] == 1.0


async def test_an_epochs_user_is_used_whatever_the_settings_say(server: Server) -> None:
    """The address may have a user and a password in it."""
    with server.redis() as admin:
        admin.execute_command("ACL", "SETUSER", "mesh-db7", "on", ">own", "~*", "+@all")
    for settings in (server.settings, RedisSettings(url=SecretStr(f"redis://default:x@127.0.0.1:{server.port}/0"))):
        connections = Connections(settings).as_user(Credentials("mesh-db7", "own"))
        client = connections.client("t", db=5)
        assert await client.execute_command("ACL", "WHOAMI") == "mesh-db7"
        assert (await client.client_info())["db"] == 5
        await client.aclose()


async def cancelled_at(client: Redis, turns: int) -> bool:
    """Return whether a command that is cancelled after so many turns of the loop is cancelled, or had ended before."""
    asking = asyncio.ensure_future(client.ping())
    for _ in range(turns):
        await asyncio.sleep(0)
    if not asking.cancel():
        return True
    await asyncio.wait([asking])
    return asking.cancelled()


async def test_a_cancellation_is_never_forgotten_while_words_are_sent(server: Server) -> None:
    """A task that cancels a reader waits for its end. If the reader went on, that wait would never end."""
    client = Connections(server.settings).client("t")
    await client.ping()
    for turns in range(40):
        assert await cancelled_at(client, turns), f"forgotten after {turns} turns"
    assert await client.ping() is True, "and no answer is left over for the next command"
    await client.aclose()


def test_connections_of_every_kind_heed() -> None:
    """Plain connections, TLS, and those that sentinels name do not lose a cancellation."""
    for settings in (
        RedisSettings(),
        RedisSettings(url=SecretStr("rediss://h:1/0")),
        RedisSettings(sentinels="127.0.0.1:1"),
    ):
        made = Connections(settings).client("t").connection_pool.connection_class
        assert made.__name__.startswith("Heeding")
    assert heeding_cancellation(Redis()).connection_pool.connection_class.__name__ == "HeedingConnection"


def test_a_silent_sentinel_costs_half_a_second() -> None:
    """The next sentinel is asked then, so that a lease outlives a sentinel that is away."""
    pool = Connections(RedisSettings(sentinels="127.0.0.1:1,127.0.0.1:2")).client("t").connection_pool
    for sentinel in pool.sentinel_manager.sentinels:  # type: ignore[attr-defined]
        options = sentinel.connection_pool.connection_kwargs
        assert (options["socket_timeout"], options["socket_connect_timeout"]) == (0.5, 0.5)
        # As for the server itself: redis-py raises an error for another protocol, and would try ten times.
        assert (options["protocol"], options["retry"].get_retries()) == (2, 0)
