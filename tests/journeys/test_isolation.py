"""No replica can touch another's database: the server refuses, whatever our code does."""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator, Callable, Iterator

import pytest
import redis

from mesh.lease import acl
from mesh.raw import Replica
from tests.support.backend import Backend
from tests.support.replicas import Replicas
from tests.support.server import Server, server_programs

#: One key each, as `{key}`; each is a command of another family, reads and writes.
ONE_KEY = (
    "GET {key}", "SET {key} x", "DEL {key}", "UNLINK {key}", "EXISTS {key}", "TYPE {key}", "TTL {key}",
    "EXPIRE {key} 1", "PERSIST {key}", "APPEND {key} x", "INCR {key}", "GETDEL {key}", "GETEX {key}",
    "SETRANGE {key} 0 x", "HGET {key} f", "HSET {key} f x", "HGETALL {key}", "HDEL {key} f", "HSCAN {key} 0",
    "LPUSH {key} x", "LRANGE {key} 0 -1", "SADD {key} x", "SMEMBERS {key}", "ZADD {key} 1 x", "ZRANGE {key} 0 -1",
    "XADD {key} * f x", "XRANGE {key} - +", "XREAD STREAMS {key} 0", "XLEN {key}", "XTRIM {key} MAXLEN 0",
)  # fmt: skip

#: What would go from our own database to the other's, or around key names altogether.
AROUND = (
    "SELECT {m}", "MOVE db{n}:own {m}", "COPY db{n}:own db{n}:copy DB {m}", "COPY db{m}:secret db{n}:copy",
    "SWAPDB {n} {m}", "RENAME db{m}:secret db{n}:mine", "RENAME db{n}:own db{m}:secret",
    "SORT db{n}:own STORE db{m}:secret", "KEYS *", "SCAN 0", "RANDOMKEY", "DBSIZE", "FLUSHDB", "FLUSHALL",
    "DUMP db{m}:secret", "RESTORE db{m}:secret 0 x", "OBJECT ENCODING db{m}:secret",
    "MIGRATE 127.0.0.1 1 db{m}:secret {m} 10", "CONFIG GET *", "CONFIG SET databases 1", "ACL LIST",
    "ACL SETUSER mesh-db{n} allkeys", "ACL WHOAMI", "DEBUG SLEEP 0", "MONITOR", "CLIENT LIST", "CLIENT KILL ID 1",
    "SCRIPT FLUSH", "FUNCTION LIST", "SHUTDOWN NOSAVE", "REPLICAOF NO ONE", "SAVE", "BGREWRITEAOF",
    "MEMORY USAGE db{m}:secret", "SUBSCRIBE x", "PUBLISH x y", "DEL mesh:lease:{m}", "SET mesh:lease:{m} x",
    "HSET mesh:replica:{m} class A", "GET mesh:epoch",
)  # fmt: skip

#: From a script, which may change the database as it goes.
IN_A_SCRIPT = (
    "redis.call('SELECT', {m}) return redis.call('GET', 'db{m}:secret')",
    "redis.call('SELECT', {m}) return redis.call('SET', 'db{n}:own', 'x')",
    "redis.call('SELECT', {n}) return redis.call('MOVE', 'db{n}:own', {m})",
    "redis.call('SELECT', {n}) return redis.call('COPY', 'db{n}:own', 'db{n}:copy', 'DB', {m})",
)

#: Keys of our own prefix in the bus database, where nobody reads them. Redis has no rule that could refuse this: its
#: key patterns hold in every database that the user may select. Valkey 9.1 has one.
OWN_PREFIX_IN_THE_BUS = "SET db{n}:own x"


def refused(client: redis.Redis, *words: str) -> bool:
    """Whether the server says that this user may not."""
    try:
        client.execute_command(*words)
    except redis.exceptions.NoPermissionError:
        return True
    except redis.exceptions.ResponseError as error:
        # Within Lua and EXEC the refusal comes in other words; DEBUG is not allowed to anybody.
        phrases = ("permission", "discarded", "not allowed", "the user executing the script can't", "acl failure")
        return any(phrase in str(error).lower() for phrase in phrases)
    return False


def user(server: Server, replica: Replica, db: int = 0) -> redis.Redis:
    """A real connection as the user of this replica's epoch."""
    credentials = replica._grant.credentials
    assert credentials is not None
    return redis.Redis(
        port=server.port, db=db, username=credentials.username, password=credentials.password, decode_responses=True
    )


@pytest.fixture(params=server_programs())
def server(request: pytest.FixtureRequest, make_server: Callable[..., Server]) -> Server:
    """One server of each kind that this machine has."""
    return make_server(program=request.param)


@pytest.fixture
def databases_have_rules(server: Server) -> bool:
    """Whether the server has access rules per database."""
    with server.redis() as admin:
        try:
            return bool(admin.execute_command("ACL", "SETUSER", "asked", "reset", "(db=1)"))
        except redis.exceptions.ResponseError:
            return False
        finally:
            admin.execute_command("ACL", "DELUSER", "asked")


@pytest.fixture
async def members(server: Server) -> AsyncIterator[list[Replica]]:
    """Three members, each with a secret of its own; the one with database 0 is not among them."""
    async with Backend(server.settings) as mesh:
        members = await mesh(3)
        for member in members:
            with server.redis(db=member.database) as admin:
                admin.set(f"db{member.database}:secret", f"of {member.database}")
                admin.set(f"db{member.database}:own", "1")
        yield members


def ordered_pairs(members: list[Replica]) -> Iterator[tuple[Replica, Replica]]:
    return itertools.permutations(members, 2)


def breaches(server: Server, one: Replica, other: Replica) -> set[str]:
    """Return each attempt to reach the other's database that the server permits to the user of `one`."""
    n, m = one.database, other.database
    found: set[str] = set()
    attempts = [template.format(key=f"db{m}:secret", n=n, m=m) for template in (*ONE_KEY, *AROUND)]
    with user(server, one) as bus, user(server, one, db=n) as home:
        for client in (bus, home):
            for attempt in attempts:
                if not refused(client, *attempt.split()):
                    found.add(attempt)
            for template in IN_A_SCRIPT:
                if not refused(client, "EVAL", template.format(n=n, m=m), "0"):
                    found.add(template)
        if not refused(bus, *OWN_PREFIX_IN_THE_BUS.format(n=n).split()):
            found.add(OWN_PREFIX_IN_THE_BUS)
    return found


async def test_the_probe_has_no_breach_where_the_server_has_rules_per_database(
    members: list[Replica], server: Server, databases_have_rules: bool
) -> None:
    """Of 75 attempts for every ordered pair, Redis leaves one open: the own prefix in the bus database."""
    assert len(ONE_KEY) + len(AROUND) + len(IN_A_SCRIPT) + 1 >= 75
    for one, other in ordered_pairs(members):
        expected = set() if databases_have_rules else {OWN_PREFIX_IN_THE_BUS}
        assert breaches(server, one, other) == expected
    for member in members:
        with server.redis(db=member.database) as admin:
            assert admin.get(f"db{member.database}:secret") == f"of {member.database}"
            assert admin.get(f"db{member.database}:own") == "1"
            assert len(admin.keys()) == 4


async def test_each_key_is_open_only_in_the_database_where_it_belongs(
    members: list[Replica], server: Server, databases_have_rules: bool
) -> None:
    """The own prefix in its database, shared keys in the bus; without rules per database both are open in both."""
    (one, *_) = members
    n = one.database
    with user(server, one) as bus, user(server, one, db=n) as home:
        assert home.set(f"db{n}:x", "1") and bus.set("shared:x", "1")
        assert not refused(bus, "SELECT", str(n)) and not refused(bus, "SELECT", "0")
        assert not refused(bus, "EVAL", f"redis.call('SELECT', {n}) return redis.call('GET', 'db{n}:x')", "0")
        assert refused(bus, "SET", f"db{n}:x", "1") is databases_have_rules
        assert refused(home, "SET", "shared:x", "1") is databases_have_rules


async def test_the_grant_uses_no_first_argument_rule_where_the_server_has_rules_per_database(
    members: list[Replica], server: Server, databases_have_rules: bool
) -> None:
    """Valkey logs a warning for each such rule, and its rules per database make them unnecessary."""
    with server.redis() as admin:
        for line in admin.execute_command("ACL", "LIST"):
            assert ("+select|" in line) is (not databases_have_rules and line.startswith("user mesh-db"))
    assert "first-arg" not in (server.folder / "server.log").read_text().lower()


async def test_the_holder_of_the_bus_database_has_both_kinds_of_keys_there(server: Server) -> None:
    """With 16 replicas database 0 is leased, too."""
    async with Backend(server.settings, databases=1) as mesh:
        (one,) = await mesh(1)
        assert one.database == 0
        with user(server, one) as client:
            assert client.set("db0:x", "1") and client.set("shared:x", "1")
            assert refused(client, "GET", "db1:x") and refused(client, "SELECT", "1")


async def test_a_bus_in_another_database_than_0_can_be_used(server: Server) -> None:
    """Each connection begins in database 0, and selects the bus before it uses a key."""
    async with Backend(server.settings.model_copy(update={"db": 5})) as mesh:
        (one,) = await mesh(1)
        assert [member.database for member in await one.roster()] == [one.database] == [0]


async def test_acl_dryrun_refuses_every_command_on_anothers_keys(members: list[Replica], server: Server) -> None:
    """The server itself refuses the commands, for every ordered pair of databases."""
    with server.redis() as admin:
        for one, other in ordered_pairs(members):
            name = acl.username(one.database)
            assert admin.execute_command("ACL", "DRYRUN", name, "GET", "shared:x") in ("OK", True), "it can pass"
            for template in (*ONE_KEY, *AROUND):
                words = template.format(key=f"db{other.database}:secret", n=one.database, m=other.database).split()
                answer = admin.execute_command("ACL", "DRYRUN", name, *words)
                assert answer != "OK" and answer is not True, f"{name} may {' '.join(words)}"


async def test_what_is_refused_outside_is_refused_in_a_transaction_and_in_lua(
    members: list[Replica], server: Server
) -> None:
    """For the user of each replica, MULTI is discarded as a whole, and a script fails at its first command."""
    for one, other in ordered_pairs(members):
        n, m = one.database, other.database
        with pytest.raises(redis.exceptions.NoPermissionError), user(server, one, db=m) as there:
            there.ping()
        with user(server, one) as bus, user(server, one, db=n) as home:
            assert home.get(f"db{n}:own") == "1", "its own it may"
            for client in (bus, home):
                for template in (
                    "SELECT {m}",
                    "GET db{m}:secret",
                    "SET db{m}:secret x",
                    "SWAPDB {n} {m}",
                    "MOVE db{n}:own {m}",
                ):
                    words = template.format(n=n, m=m).split()
                    text = ",".join(f"'{word}'" for word in words)
                    assert refused(client, "EVAL", f"return redis.call({text})", "0"), f"Lua may {words}"
                    client.execute_command("MULTI")
                    assert refused(client, *words), f"MULTI may {words}"
                    assert refused(client, "EXEC"), "the whole of it is discarded"
                assert refused(client, "EVAL", "return redis.call('GET', KEYS[1])", "1", f"db{m}:secret")


async def test_no_connection_is_left_as_the_shared_user_after_the_lease(replicas: Replicas) -> None:
    """From the grant on a replica is the user of its epoch and nobody else, whatever it is busy with."""
    with replicas.server.redis() as admin:
        admin.execute_command("ACL", "SETUSER", "everybody", "on", ">secret", "~*", "&*", "+@all")
    url = f"redis://everybody:secret@127.0.0.1:{replicas.server.port}/0"
    processes = await replicas(2, {"REDIS_URL": url})
    await replicas.client.post(f"{processes[0].public}/values", json=[{"value": 6, "ttl": 60, "cls": "B"}])
    await replicas.client.get(f"{processes[1].public}/values/3")
    holders = {f"mesh-db{member.database}": member.replica for member in await replicas.roster()}
    with replicas.server.redis() as admin:
        mine = admin.client_id()
        clients = [client for client in admin.client_list() if int(client["id"]) != mine]
    assert {client["user"] for client in clients} == set(holders)
    for client in clients:
        assert client["name"].endswith(holders[client["user"]]), "nobody uses another's user"
    assert len(clients) >= 5 * len(processes)
