"""The table of everything that Redis and Valkey can answer, and errors of real servers of each kind."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable

import pytest
from redis import exceptions as redis_errors
from redis._parsers.base import BaseParser
from redis.asyncio import Redis

from mesh.errors import Busy, LeaseLost, SetupError, Unavailable
from mesh.wire.failures import CODES, PHRASES, REMEDIES, Meaning, classify, code_of, translate
from tests.support.server import Server, server_programs

#: Every code in the sources of Redis 7.0 to 8 and Valkey 7.2 to 9.1 (`git grep '"-[A-Z]{3,} '`).
KNOWN_TO_THE_SERVERS = {
    "ASK", "BUSY", "BUSYGROUP", "BUSYKEY", "CLUSTERDOWN", "CROSSSLOT", "DENIED", "ERR", "EXECABORT", "INPROG",
    "INVALIDOBJ", "IOERR", "LOADING", "MASTERDOWN", "MISCONF", "MOVED", "NOAUTH", "NOGOODSLAVE", "NOGROUP",
    "NOMASTERLINK", "NOPERM", "NOPROTO", "NOQUORUM", "NOREPLICAS", "NOSCRIPT", "NOSUB", "NOTBUSY", "OOM", "READONLY",
    "REDIRECT", "TRYAGAIN", "UNBLOCKED", "UNKILLABLE", "WRONGPASS", "WRONGTYPE",
}  # fmt: skip


def answer(text: str) -> Exception:
    """An error of a server, as redis-py raises it."""
    return BaseParser.parse_error(text)


def words_of(code: str) -> str:
    """An error with this code; redis-py reads a slot and an address in two of them."""
    return f"{code} 3999 127.0.0.1:6381" if code in {"ASK", "MOVED"} else f"{code} some words"


def test_the_table_has_every_code_of_the_servers_and_of_our_scripts() -> None:
    """No error is met for the first time in operation."""
    assert set(CODES) == {*KNOWN_TO_THE_SERVERS, "LEASEGONE", "LEASELOST"}


@pytest.mark.parametrize("code", sorted(CODES))
def test_a_code_means_the_same_however_it_arrives(code: str) -> None:
    """A code may come as redis-py's own class, as plain text, or from a script, with text of the server behind it."""
    meaning = CODES[code]
    text = words_of(code)
    assert classify(answer(text)) is meaning
    assert code_of(answer(text)) == code
    in_a_pipeline = f"Command # 1 (EVAL return 1) of pipeline caused error: ('{text}',)"
    assert classify(redis_errors.ResponseError(in_a_pipeline)) is meaning
    in_a_script = f"{text} script: 0123abcd, on @user_script:3."
    assert classify(redis_errors.ResponseError(in_a_script)) is meaning


@pytest.mark.parametrize("phrase", sorted(PHRASES))
def test_a_phrase_tells_errors_of_one_code_apart(phrase: str) -> None:
    """Most errors have the code ERR."""
    assert classify(answer(f"ERR it says: {phrase} and more")) is PHRASES[phrase]


def test_every_fatal_error_has_a_remedy() -> None:
    """A replica that ends says what to do."""
    fatal = {key for key, meaning in {**CODES, **PHRASES}.items() if meaning is Meaning.FATAL}
    assert fatal == set(REMEDIES)


@pytest.mark.parametrize(
    ("error", "meaning"),
    [
        (redis_errors.ConnectionError("closed"), Meaning.PASSING),
        (redis_errors.TimeoutError("slow"), Meaning.PASSING),
        (OSError("reset"), Meaning.PASSING),
        (TimeoutError(), Meaning.PASSING),
        (redis_errors.AuthenticationError("invalid username or password"), Meaning.FENCED),
        (redis_errors.NoPermissionError("User has no permissions"), Meaning.FENCED),
        (answer("EXECABORT Transaction discarded because of: OOM command not allowed"), Meaning.FULL),
        (answer("EXECABORT Transaction discarded because of: MISCONF no disk"), Meaning.PASSING),
        (answer("EXECABORT Transaction discarded because of previous errors."), Meaning.OURS),
        (answer("ERR value is not an integer or out of range"), Meaning.OURS),
        (answer("SOMETHING that a module says"), Meaning.OURS),
        (redis_errors.DataError("cannot be encoded"), Meaning.OURS),
        (Unavailable(), Meaning.PASSING),
    ],
)
def test_errors_without_a_code_are_told_by_their_class(error: Exception, meaning: Meaning) -> None:
    """An AuthenticationError is a ConnectionError, too: repeating it would go on after the fence."""
    assert classify(error) is meaning


@pytest.mark.parametrize(
    ("meaning", "told"),
    [
        (Meaning.PASSING, Unavailable), (Meaning.FULL, Busy), (Meaning.FENCED, LeaseLost), (Meaning.FATAL, SetupError),
        (Meaning.OURS, type(None)), (Meaning.UNKNOWN_SCRIPT, type(None)),
    ],
)  # fmt: skip
def test_callers_are_told_what_they_can_act_on(meaning: Meaning, told: type) -> None:
    """503 with Retry-After for what passes; an error of ours stays what it is."""
    for code in (code for code, each in CODES.items() if each is meaning):
        assert type(translate(answer(words_of(code)))) is told
    if meaning in {Meaning.PASSING, Meaning.FULL}:
        code = next(code for code, each in CODES.items() if each is meaning)
        error = translate(answer(words_of(code)))
        assert error is not None and error.retry_after


@pytest.fixture(params=server_programs())
def server(request: pytest.FixtureRequest, make_server: Callable[..., Server]) -> Server:
    """One server of each kind that this machine has."""
    return make_server(program=request.param)


@pytest.fixture
async def client(server: Server) -> AsyncIterator[Redis]:
    client = Redis(port=server.port, decode_responses=True, socket_timeout=5)
    yield client
    await client.aclose()


async def refused(client: Redis, *command: str) -> Meaning:
    """What the error means that the server answers."""
    with pytest.raises(redis_errors.RedisError) as caught:
        await client.execute_command(*command)
    return classify(caught.value)


WRITES = [("SET", "k", "v"), ("EVAL", "return redis.call('SET', 'k', 'v')", "0")]


@pytest.mark.parametrize("write", WRITES, ids=["command", "script"])
async def test_a_real_server_refuses_writes_for_now(client: Redis, server: Server, write: tuple[str, ...]) -> None:
    """The server answers NOREPLICAS, READONLY and OOM, to a command and to a script."""
    await client.config_set("min-replicas-to-write", 1)
    assert await refused(client, *write) is Meaning.PASSING
    await client.config_set("min-replicas-to-write", 0)
    await client.config_set("maxmemory", 1)
    assert await refused(client, *write) is Meaning.FULL
    await client.config_set("maxmemory", 0)
    await client.execute_command("REPLICAOF", "127.0.0.1", "1")
    assert await refused(client, *write) is Meaning.PASSING
    await client.config_set("replica-serve-stale-data", "no")
    assert await refused(client, "GET", "k") is Meaning.PASSING, "MASTERDOWN"
    await client.execute_command("REPLICAOF", "NO", "ONE")
    await client.execute_command(*write)


@pytest.mark.parametrize("write", WRITES, ids=["command", "script"])
async def test_a_real_server_that_cannot_save_refuses_writes_for_now(
    client: Redis, server: Server, write: tuple[str, ...]
) -> None:
    """MISCONF: the snapshot goes to a folder where nothing can be written."""
    await client.config_set("save", "3600 1")
    (server.folder / "dump.rdb").mkdir()
    await client.execute_command("SET", "k", "v")
    with contextlib.suppress(redis_errors.ResponseError):
        await client.execute_command("BGSAVE")
    for _ in range(200):
        if (await client.info("persistence"))["rdb_last_bgsave_status"] == "err":
            break
        await asyncio.sleep(0.02)
    assert await refused(client, *write) is Meaning.PASSING


async def test_a_real_server_in_an_endless_script_is_busy_for_now(client: Redis, server: Server) -> None:
    """BUSY, until somebody kills the script."""
    await client.config_set("busy-reply-threshold", 10)
    other = Redis(port=server.port)
    endless = asyncio.create_task(other.execute_command("EVAL", "while true do end", "0"))
    await asyncio.sleep(0.2)
    assert await refused(client, "GET", "k") is Meaning.PASSING
    await client.execute_command("SCRIPT", "KILL")
    with pytest.raises(redis_errors.ResponseError):
        await endless
    await other.aclose()


async def test_a_real_server_refuses_a_user_that_is_gone_or_has_no_right(client: Redis, server: Server) -> None:
    """WRONGPASS, NOPERM and NOAUTH end a lease."""
    await client.execute_command("ACL", "SETUSER", "u", "on", ">p", "+ping")
    for password, command in (("p", "GET"), ("wrong", "PING")):
        user = Redis(port=server.port, username="u", password=password)
        assert await refused(user, command, *(["k"] if command == "GET" else [])) is Meaning.FENCED
        await user.aclose()
    await client.config_set("requirepass", "secret")
    stranger = Redis(port=server.port)
    assert await refused(stranger, "GET", "k") is Meaning.FENCED
    await stranger.aclose()


async def test_a_real_server_has_answers_that_are_ours(client: Redis) -> None:
    """Our mistakes are wrong types and numbers, an unknown script, a missing group, and an aborted transaction."""
    await client.set("k", "v")
    assert await refused(client, "LPUSH", "k", "v") is Meaning.OVERWRITTEN
    assert await refused(client, "INCR", "k") is Meaning.OURS
    assert await refused(client, "EVALSHA", "0" * 40, "0") is Meaning.UNKNOWN_SCRIPT
    assert await refused(client, "XREADGROUP", "GROUP", "g", "c", "STREAMS", "s", ">") is Meaning.OURS
    assert await refused(client, "SELECT", "99") is Meaning.FATAL
    assert await refused(client, "NOSUCHCOMMAND") is Meaning.FATAL


async def test_a_real_server_with_too_many_clients_is_full_for_now(client: Redis, server: Server) -> None:
    """The server says that it has too many clients, and closes the connection."""
    await client.config_set("maxclients", 1)
    other = Redis(port=server.port)
    assert await refused(other, "PING") is Meaning.PASSING
    await other.aclose()
