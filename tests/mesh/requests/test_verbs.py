"""A transaction is applied as a whole or not at all: random ones, valid or not, with every verb."""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import fakeredis
import pytest
import redis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mesh import Class, Database
from mesh.raw import Effects
from mesh.requests.scripts import commit_with, variants
from mesh.requests.settlement import CONFLICT
from mesh.requests.verbs import VERBS, ServiceVerbs
from mesh.testing.fake_server import without_flags
from tests.support.server import Server, server_programs

#: A verb as a service may add it.
NOTE = """
verbs['note-all'] = function(first, last)
  redis.call('HSET', tx[first + 1], unpack(tx, first + 3, last))
  for k = first + 3, last, 2 do redis.call('ZADD', tx[first + 2], 0, tx[k]) end
end
"""
ADDED = ServiceVerbs(NOTE, {"note-all": ("hash", "zset")})
COMMIT = variants(commit_with([ADDED.lua]))

NAMES = ["a", "b", "c"]
END = "18446744073709551615-18446744073709551615"
NEAR_THE_END = 2**63 - 5000
LATER = 4_000_000_000_000
#: What keys hold before: one command each.
BEFORE = [
    None,
    ("SET", "5"),
    ("SET", "text"),
    ("SET", str(NEAR_THE_END)),
    ("SET", "0005"),
    ("HSET", "f", "1", "g", "text", "h", str(-NEAR_THE_END)),
    ("ZADD", "1", "m"),
    ("SADD", "m"),
    ("RPUSH", "m", "n"),
    ("XADD", "1-1", "f", "v"),
    ("XADD", END, "f", "v"),
]
WORDS: list[Any] = [
    "f", "g", "h", "m", "text", "", "*", "0", "1", "-1", "+1", " 1", "1.5", "1e400", "nan", "inf", "-inf", "0x10",
    "1_0", "NX", "XX", "GT", "LT", "KEEPTTL", "GET", "PX", "EX", "PXAT", "EXAT", "MAXLEN", "~", "MINID", "CH", "INCR",
    "FOO", 0, 1, -7, 10**13, 2**62, 2**63 - 1, -(2**63), 2**64, 1.5, float("nan"), float("inf"), str(NEAR_THE_END),
]  # fmt: skip
VALID: dict[str, st.SearchStrategy[list[Any]]] = {
    "SET": st.one_of(
        st.tuples(st.sampled_from(["7", "text", NEAR_THE_END])).map(list),
        st.sampled_from([["1", "PX", 10**9], ["1", "KEEPTTL"], ["text", "PXAT", LATER], ["2", "PXAT", 1]]),
    ),
    "DEL": st.just([]),
    "UNLINK": st.just([]),
    "PERSIST": st.just([]),
    "PEXPIREAT": st.sampled_from([[LATER], [1], [LATER, "NX"], [LATER, "GT"]]),
    "INCRBY": st.sampled_from([1, -3, 2**62, -(2**62), 5000]).map(lambda n: [n]),
    "HINCRBY": st.tuples(st.sampled_from("fgh"), st.sampled_from([1, -3, 2**62, 5000])).map(list),
    "HSET": st.lists(st.sampled_from([["f", "2"], ["g", "text"], ["h", NEAR_THE_END]]), min_size=1).map(
        lambda pairs: [word for pair in pairs for word in pair]
    ),
    "HDEL": st.lists(st.sampled_from("fgh"), min_size=1),
    "ZADD": st.sampled_from([["1", "m"], ["inf", "n", "-2.5", "m"], [7, "m"]]),
    "ZREM": st.just(["m"]),
    "SADD": st.just(["m", "n"]),
    "SREM": st.just(["m"]),
    "RPUSH": st.just(["m"]),
    "LPUSH": st.just(["m", "n"]),
    "LTRIM": st.sampled_from([[0, 1], ["-1", "-1"], [5, 2]]),
    "XADD": st.sampled_from([["*", "f", "v"], ["MAXLEN", "~", 10, "*", "f", "v"]]),
}
side = st.sampled_from(["own", "shared"])
name = st.sampled_from(NAMES)
RAW = sorted(verb for verb in VERBS if verb.isupper())
valid_write = st.sampled_from(RAW).flatmap(
    lambda verb: st.tuples(st.just("write"), side, name, st.just(verb), VALID[verb])
)
any_write = st.tuples(
    st.just("write"),
    side,
    name,
    st.sampled_from([*RAW, "GETDEL", "APPEND", "set"]),
    st.lists(st.sampled_from(WORDS), max_size=5),
)
others = st.one_of(
    st.tuples(st.just("set_until"), side, st.lists(name, min_size=1, max_size=3), st.sampled_from([LATER, 0, "x"])),
    st.tuples(st.just("note-all"), side, name, name, st.sampled_from([["f", "1"], ["f", "1", "g", "2"]])),
    st.tuples(st.just("keep_until"), side, name, st.sampled_from([LATER, -1])),
    st.tuples(st.just("send"), st.sampled_from([Class("A"), Class("B"), Database(3), "A"])),
    st.tuples(st.just("expect"), side, name, st.sampled_from([None, "5", "text"])),
)
operation = st.one_of(valid_write, valid_write, valid_write, any_write, others)
Say = Callable[..., Any]


class Databases:
    """A server with the databases of one replica (bus 0, own 1), and a copy of them (2 and 3) for the comparison."""

    def __init__(self, connect: Callable[[int], redis.Redis], source_of: Callable[[str], str] = str) -> None:
        self.clients = [connect(n) for n in range(4)]
        self.complete, self.plain = source_of(COMMIT.complete.source), source_of(COMMIT.plain.source)

    def prepare(self, before: dict[tuple[str, str], Any]) -> None:
        for number, client in enumerate(self.clients):
            client.flushdb()
            for (where, key), command in before.items():
                if command is not None and (where == "own") == (number % 2 == 1):
                    self.say(number, command[0], key, *command[1:])
        self.clients[0].set("lease", "me")
        for number in (0, 2):
            self.say(number, "SET", "mesh:requests:B", "not a stream")

    def say(self, database: int, *words: Any) -> Any:
        return self.clients[database].execute_command(*words)

    def commit(self, transaction: Effects) -> str:
        text, _, longs, plain = transaction.wire()
        words = ("lease", "books", "committed", "me", 60_000, 1, 0, "replica-2", 1, b"[%b]" % text, *longs)
        (word,) = json.loads(self.clients[0].eval(self.plain if plain else self.complete, 3, *words))
        return str(word)

    def state(self, database: int) -> dict[str, Any]:
        """Return the type, content and expiry of every key of a database."""
        client, found = self.clients[database], {}
        for key in client.scan_iter():
            if key not in {"lease", "books", "committed", "db1:written", "mesh:written", "mesh:clock"}:
                kind = client.type(key)
                # An expiry that counts from now is not the same twice.
                expiry = client.pexpiretime(key)
                found[key] = (kind, _content(client, kind, key), expiry if expiry in (-1, LATER) else "some day")
        return found

    def check_count(self, taken: Sequence[Any]) -> None:
        """The keys that were written to are counted, each until its end, and no others."""
        own, counted = self.clients[1], dict(self.clients[1].zrange("db1:written", 0, -1, withscores=True))
        ends = {key: own.pexpiretime(key) for key in own.scan_iter() if key != "db1:written"}
        for key, end in counted.items():
            assert key == "*" or end == (ends[key] if ends[key] > 0 else math.inf), taken
        touched = {f"db1:{each[2]}" for each in taken if each[0] == "write" and each[1] == "own"}
        assert touched & ends.keys() <= counted.keys(), taken
        last = self.clients[0].zscore("mesh:written", "1")
        assert last == (max(counted.values()) if counted else None), taken


def _content(client: redis.Redis, kind: str, key: str) -> Any:
    match kind:
        case "string":
            return client.get(key)
        case "hash":
            return client.hgetall(key)
        case "zset":
            return client.zrange(key, 0, -1, withscores=True)
        case "set":
            return client.smembers(key)
        case "list":
            return client.lrange(key, 0, -1)
    return [fields for _, fields in client.xrange(key)]


def apply(transaction: Effects, operation: Sequence[Any]) -> None:
    """Add one operation to a transaction, as a handler does."""
    match operation:
        case "write", side, key, verb, args:
            _writer(transaction, side).write(verb, key, *args)
        case "set_until", side, names, at_ms:
            _writer(transaction, side).set_until(names, "5", at_ms)
        case "note-all", side, hash, zset, pairs:
            _writer(transaction, side).write_with("note-all", (hash, zset), pairs)
        case "keep_until", side, key, at_ms:
            _writer(transaction, side).keep_until(key, at_ms)
        case "send", to:
            transaction.send(to, "x.y", {})
        case "expect", side, key, value:
            _writer(transaction, side).expect(key, value)


def _writer(transaction: Effects, side: str) -> Any:
    return transaction if side == "own" else transaction.shared


def repeat(databases: Databases, operation: Sequence[Any]) -> None:
    """Run the same operation on the copy, command by command. Raises if Redis refuses a command."""
    match operation:
        case "write", side, key, verb, args:
            _on_copy(databases, side, verb, key, *args)
        case "set_until", side, names, at_ms:
            for each in names:
                _on_copy(databases, side, "SET", each, "5", "PXAT", at_ms)
        case "note-all", side, hash, zset, pairs:
            for field, text in zip(pairs[::2], pairs[1::2], strict=True):
                _on_copy(databases, side, "HSET", hash, field, text)
                _on_copy(databases, side, "ZADD", zset, 0, field)
        case "send", to:
            databases.say(2, "XADD", to.stream, "*", "op", "x.y", "request", "", "from", "replica-2",
                          "reply_to", "", "deadline", "0", "body", "{}")  # fmt: skip


def _on_copy(databases: Databases, side: str, verb: str, key: str, *args: Any) -> Any:
    database, prefix = (3, "db1:") if side == "own" else (2, "shared:")
    return databases.say(database, verb, prefix + key, *args)


@pytest.fixture(params=["fake", *server_programs()])
def databases(request: pytest.FixtureRequest, make_server: Callable[..., Server]) -> Iterator[Databases]:
    """Return the databases of fakeredis, and of each real server."""
    with contextlib.ExitStack() as stack:
        if request.param == "fake":
            fake = fakeredis.FakeServer(version=(7,))
            made = Databases(lambda n: fakeredis.FakeRedis(server=fake, db=n, decode_responses=True), without_flags)
        else:
            server = make_server(program=request.param)
            made = Databases(lambda n: stack.enter_context(server.redis(n)))
        yield made


before = st.fixed_dictionaries(
    {("own", f"db1:{key}"): st.sampled_from(BEFORE) for key in NAMES}
    | {("shared", f"shared:{key}"): st.sampled_from(BEFORE) for key in NAMES}
)


@settings(max_examples=250, deadline=None, suppress_health_check=list(HealthCheck))
@given(before=before, operations=st.lists(operation, min_size=1, max_size=8))
def test_all_of_a_transaction_becomes_true_or_none(
    databases: Databases, before: dict[tuple[str, str], Any], operations: list[Any]
) -> None:
    """Applied as command by command would be, each of them accepted; or refused, and every database as before.

    What the transaction refuses itself (a handler may catch that) has left nothing in it.
    """
    databases.prepare(before)
    transaction, taken = Effects(1, "replica-2", verbs=VERBS | ADDED.table()), []
    for each in operations:
        with contextlib.suppress(ValueError, TypeError):
            apply(transaction, each)
            taken.append(each)
    states = [databases.state(n) for n in range(2)]
    word = databases.commit(transaction)
    if word == "done":
        for each in taken:
            repeat(databases, each)
        for side, key, at_ms in [each[1:] for each in taken if each[0] == "keep_until"]:
            for condition in ("NX", "GT"):
                _on_copy(databases, side, "PEXPIREAT", key, at_ms, condition)
        assert databases.state(1) == databases.state(3), taken
        assert databases.state(0) == databases.state(2), taken
        databases.check_count(taken)
    else:
        assert [databases.state(n) for n in range(2)] == states, (word, taken)
        assert word.startswith(CONFLICT) or any(says in word for says in ("holds", "integer", "64 bits", "entries"))
