"""No replica can touch another's database: the server refuses, whatever our code does."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import pytest
import redis

from mesh import Replica
from tests.conftest import Members, Replicas, Server

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


def refused(client: redis.Redis, *words: str) -> bool:
    """Whether the server says that this user may not."""
    try:
        client.execute_command(*words)
    except redis.exceptions.NoPermissionError:
        return True
    except redis.exceptions.ResponseError as error:
        # Within Lua and EXEC the refusal comes in other words; DEBUG is not allowed to anybody.
        words = ("permission", "discarded", "not allowed", "the user executing the script can't")
        return any(each in str(error).lower() for each in words)
    return False


def user(server: Server, replica: Replica, db: int = 0) -> redis.Redis:
    """A real connection as the user of this replica's epoch."""
    credentials = replica._grant.credentials
    assert credentials is not None
    return redis.Redis(
        port=server.port, db=db, username=credentials.username, password=credentials.password, decode_responses=True
    )


@pytest.fixture
async def members(mesh_of: Members, server: Server) -> list[Replica]:
    """Four members, each with a secret of its own; the one with database 0 is not among them."""
    members = await mesh_of(4)
    for member in members:
        with server.redis(db=member.database) as admin:
            admin.set(f"db{member.database}:secret", f"of {member.database}")
            admin.set(f"db{member.database}:own", "1")
    return members


def ordered_pairs(members: list[Replica]) -> Iterator[tuple[Replica, Replica]]:
    return itertools.permutations(members, 2)


async def test_acl_dryrun_refuses_every_command_on_anothers_keys(members: list[Replica], server: Server) -> None:
    """For every ordered pair, asked of the server itself."""
    with server.redis() as admin:
        for one, other in ordered_pairs(members):
            name = f"mesh-db{one.database}"
            for template in (*ONE_KEY, *AROUND):
                words = template.format(key=f"db{other.database}:secret", n=one.database, m=other.database).split()
                answer = admin.execute_command("ACL", "DRYRUN", name, *words)
                assert answer != "OK" and answer is not True, f"{name} may {' '.join(words)}"
            for template in ONE_KEY[:3]:
                allowed = template.format(key=f"db{one.database}:own").split()
                assert admin.execute_command("ACL", "DRYRUN", name, *allowed) in ("OK", True), "so the check can pass"


async def test_a_real_connection_is_refused_anothers_database_on_every_way(
    members: list[Replica], server: Server
) -> None:
    """As the one's user: SELECT, reads, writes, Lua, MULTI, COPY, MOVE, SWAPDB; and nothing has changed after it."""
    for one, other in ordered_pairs(members):
        n, m = one.database, other.database
        with pytest.raises(redis.exceptions.NoPermissionError), user(server, one, db=m) as there:
            there.ping()
        with user(server, one) as bus, user(server, one, db=n) as home:
            assert home.get(f"db{n}:own") == "1", "its own it may"
            for client in (bus, home):
                for template in (*ONE_KEY, *AROUND):
                    words = template.format(key=f"db{m}:secret", n=n, m=m).split()
                    assert refused(client, *words), f"the user of {n} may {words}"
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
        with server.redis(db=m) as admin:
            assert admin.get(f"db{m}:secret") == f"of {m}"
            assert sorted(admin.keys()) == sorted([f"db{m}:class", f"db{m}:own", f"db{m}:secret"])


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
