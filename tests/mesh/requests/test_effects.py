"""The words in which a transaction travels to commit.lua, and that the script applies all of it or nothing."""

from __future__ import annotations

import asyncio
import itertools
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest

from mesh import Class, Database, GivenUp, MeshError, Refused
from mesh.raw import Ask, Body, Effects, Request, Store, Worker
from mesh.requests.protocol import NEVER
from mesh.requests.verbs import MOST_COMMAND_WORDS, VERBS, ServiceVerbs
from quart_app.local.redis_program import wheel_server
from tests.support.backend import Backend
from tests.support.server import Server

#: The verbs of a worker whose service has added two.
WITH_PAIRS = VERBS | ServiceVerbs("", {"pair-all": ("hash", "zset"), "unpair-all": ("hash", "zset")}).table()


def request(**fields: Any) -> Request:
    chosen: dict[str, Any] = {
        "stream": "mesh:requests:A", "id": "1700000000000-0", "op": "x.do", "key": "k-1", "sender": "replica-1",
        "reply_to": "mesh:replies:replica-1", "deadline": 1700000005000, "body": {"n": 1}, **fields,
    }  # fmt: skip
    return Request(**chosen)


@dataclass
class Read:
    """A transaction's words, read as the script reads them."""

    entry: tuple[Any, ...]
    reply: tuple[Any, ...]
    expects: list[tuple[Any, ...]]
    writes: list[tuple[Any, ...]]
    sends: list[tuple[Any, ...]]
    #: of each write, what the keys that it begins with must hold
    types: list[list[str]] = field(default_factory=list)


def read(transaction: Effects) -> Read:
    """Decode; fails unless a transaction's size is at least the number of its words."""
    text, size, longs, _ = transaction.wire()
    words = json.loads(b"[%b]" % text)
    assert not longs and words[0] == len(words)
    _number, stream, id, reply_to, key, op, status, forwards, body, expects, writes, sends, _took, _call, *rest = words
    assert size >= len(words)
    at = iter(rest)

    def take(count: int) -> tuple[Any, ...]:
        return tuple(itertools.islice(at, count))

    found = Read((stream, id), (reply_to, key, op, status, forwards, body), [], [], [])
    for _ in range(int(expects)):
        side, hash, names, values = take(4)
        found.expects.append((int(side), hash, take(int(names)), take(int(values))))
    for _ in range(int(writes)):
        how, count = take(2)
        side, *types = str(how).split()
        found.types.append(types)
        found.writes.append((int(side), *take(int(count))))
    found.sends = [take(8)[:7] for _ in range(int(sends))]
    assert not list(at)
    return found


def test_own_keys_and_shared_keys_have_their_prefixes_and_sides() -> None:
    """Side 1 is the leased database, side 0 the bus. Every key gets the prefix of its side."""
    transaction = Effects(3, "replica-2")
    transaction.set("x:a", 5)
    transaction.shared.set("x:b", "6", "PX", 70)
    transaction.expect("x:a", None)
    transaction.shared.expect("x:h", "v", field=7)
    found = read(transaction)
    assert found.expects == [(1, "", ("db3:x:a",), ()), (0, "shared:x:h", ("7",), ("v",))]
    assert found.writes == [(1, "SET", "db3:x:a", "5"), (0, "SET", "shared:x:b", "6", "PX", "70")]
    assert (found.sends, found.entry, found.reply[0]) == ([], ("", ""), "")


def test_every_writing_verb_puts_its_key_first() -> None:
    """The script checks the key's type before it writes anything; lifetimes come last."""
    transaction = Effects(3, "replica-2")
    transaction.keep_until("k", 99)
    transaction.delete("k")
    transaction.hset("h", {"f": 1, "g": "2"})
    transaction.hdel("h", "f", 2)
    transaction.zadd("z", {"m": 1})
    transaction.zrem("z", "m")
    transaction.incrby("k", -2)
    assert [write[1:] for write in read(transaction).writes] == [
        ("DEL", "db3:k"),
        ("HSET", "db3:h", "f", "1", "g", "2"),
        ("HDEL", "db3:h", "f", "2"),
        ("ZADD", "db3:z", "1", "m"),
        ("ZREM", "db3:z", "m"),
        ("INCRBY", "db3:k", "-2"),
        ("keep", "db3:k", "99"),
    ]


def test_a_write_names_what_the_script_must_check() -> None:
    """The script checks the types of keys, unless the transaction itself sets them, and that counters hold integers."""
    transaction = Effects(3, "replica-2", verbs=WITH_PAIRS)
    transaction.set("k", 1)
    transaction.incrby("k", 1)
    transaction.incrby("n", 1)
    transaction.write("HINCRBY", "c", "f", 1)
    transaction.shared.write_with("pair-all", ("h", "z"), ["a", "1"])
    transaction.delete("was-text")
    transaction.hset("was-text", {"f": 1})
    transaction.hset("l", {"f": 1})
    transaction.hdel("l", "f")
    transaction.keep_until("k", 9)
    assert read(transaction).types == [
        [], ["any"], ["integer"], ["field"], ["hash", "zset"], [], ["any"], ["hash"], ["any"], [],
    ]  # fmt: skip


def test_the_plain_variant_of_the_commit_is_enough_for_values_and_verbs_of_redis() -> None:
    """It lacks the code for verbs of our own, for checks of more than types, for sends, and for options."""
    plain = Effects(3, "replica-2", request())
    plain.expect("k", "1")
    plain.set("k", "2")
    plain.hset("h", {"f": "1"})
    plain.shared.zadd("z", {"m": 1})
    plain.write("SADD", "s", "m")
    plain.reply({})
    assert plain.wire()[3]
    for add in (
        lambda effects: effects.incrby("k", 1),
        lambda effects: effects.write("XADD", "x", "*", "f", "v"),
        lambda effects: effects.keep_until("k", 9),
        lambda effects: effects.set_until(["k"], "v", 9),
        lambda effects: effects.expect_answer("HGETALL", "h", (), []),
        lambda effects: effects.send(Class("A"), "x.y", {}),
    ):
        effects = Effects(3, "replica-2", request())
        add(effects)
        assert not effects.wire()[3]
    assert not Effects(3, "replica-2", request(options=("limit", "l"))).wire()[3]


def test_writes_to_one_key_by_one_verb_become_one_command_and_keep_their_order() -> None:
    """Two writes become one command unless another write to the same key stands between them."""
    transaction = Effects(3, "replica-2")
    transaction.hset("h", {"a": 1})
    transaction.zadd("z", {"m": 1})
    transaction.hset("h", {"b": 2})
    transaction.hdel("h", "a")
    transaction.hset("h", {"a": 3})
    for at_ms in (5, 9, 7):
        transaction.keep_until("h", at_ms)
    assert [write[1:] for write in read(transaction).writes] == [
        ("HSET", "db3:h", "a", "1", "b", "2"),
        ("ZADD", "db3:z", "1", "m"),
        ("HDEL", "db3:h", "a"),
        ("HSET", "db3:h", "a", "3"),
        ("keep", "db3:h", "9"),
    ]


def test_each_part_of_many_words_begins_with_the_first_ones() -> None:
    """A verb of a service gets at most so many words at once, and what it needs to know each time."""
    transaction = Effects(3, "replica-2", verbs=WITH_PAIRS)
    words = [f"w{n}" for n in range(MOST_COMMAND_WORDS + 2)]
    transaction.write_with("pair-all", ("h", "z"), words, ["first", 7])
    transaction.write_with("pair-all", ("h", "z"), ["a", "1"])
    transaction.write_with("unpair-all", ("h", "y"), [])
    assert [write[1:] for write in read(transaction).writes] == [
        ("pair-all", "db3:h", "db3:z", "first", "7", *words[:MOST_COMMAND_WORDS]),
        ("pair-all", "db3:h", "db3:z", "first", "7", *words[MOST_COMMAND_WORDS:]),
        ("pair-all", "db3:h", "db3:z", "a", "1"),
    ]


def test_a_verb_of_a_service_needs_its_service_and_different_keys() -> None:
    """A verb that no service has added would fail in the script; one key cannot have two types."""
    with pytest.raises(ValueError, match="no service of this worker has added the verb pair-all"):
        Effects(3, "replica-2").write_with("pair-all", ("h", "z"), ["a", "1"])
    with pytest.raises(ValueError, match="pair-all takes different keys"):
        Effects(3, "replica-2", verbs=WITH_PAIRS).write_with("pair-all", ("h", "h"), ["a", "1"])


def test_two_keys_do_not_change_places() -> None:
    """A hash does not become a zset because the next pair names the same keys the other way round."""
    transaction = Effects(1, "replica-2", verbs=WITH_PAIRS)
    transaction.write_with("pair-all", ("a", "b"), ["f", "1"])
    with pytest.raises(ValueError, match="pair-all needs a hash, and this transaction makes db1:b a zset"):
        transaction.write_with("pair-all", ("b", "a"), ["f", "1"])


def test_one_value_for_many_keys_is_one_command() -> None:
    """All keys get the value, and one moment at which they expire."""
    transaction = Effects(3, "replica-2")
    transaction.shared.set_until(["a", "b"], "v", 99)
    transaction.shared.set_until([], "v", 99)
    assert read(transaction).writes == [(0, "set-all", "99", "v", "shared:a", "shared:b")]


def test_more_words_than_lua_hands_over_become_several_commands() -> None:
    """Pairs stay together, and a name with its value."""
    transaction = Effects(3, "replica-2")
    transaction.hset("h", {f"f{n}": n for n in range(MOST_COMMAND_WORDS)})
    for n in range(MOST_COMMAND_WORDS):
        transaction.expect("h", f"{n}", field=f"f{n}")
        transaction.expect("h", None, field=f"g{n}")
        transaction.expect("h", None, field=f"i{n}")
    found = read(transaction)
    written = [write[3:] for write in found.writes]
    absent, present = found.expects[:2], found.expects[2:]
    assert [len(words) for words in written] == [MOST_COMMAND_WORDS, MOST_COMMAND_WORDS]
    assert [(len(names), len(values)) for _, _, names, values in absent] == [(MOST_COMMAND_WORDS, 0)] * 2
    assert [(len(names), len(values)) for _, _, names, values in present] == [(MOST_COMMAND_WORDS, MOST_COMMAND_WORDS)]
    pairs = [pair for words in written for pair in zip(words[::2], words[1::2], strict=True)]
    pairs += [pair for _, _, names, values in present for pair in zip(names, values, strict=True)]
    assert all(name == f"f{value}" for name, value in pairs)


def test_nothing_to_write_is_no_command() -> None:
    """Redis takes no HSET without a field; a value without prime factors has no member for the index."""
    transaction = Effects(3, "replica-2")
    transaction.hset("h", {})
    transaction.zadd("z", {})
    transaction.hdel("h")
    transaction.zrem("z")
    assert read(transaction).writes == []


def test_the_reply_goes_where_the_request_says() -> None:
    """The reply carries the request's key, and how many replies of others are still to come."""
    transaction = Effects(3, "replica-2", request())
    transaction.forward(Database(5), {"part": 2})
    transaction.forward(Class("B"))
    transaction.reply({"done": True})
    found = read(transaction)
    assert found.entry == ("mesh:requests:A", "1700000000000-0")
    assert found.reply == ("mesh:replies:replica-1", "k-1", "x.do", "ok", 2, '{"done":true}')
    forwarded = ("x.do", "k-1", "mesh:replies:replica-1", "1700000005000")
    assert found.sends == [
        ("db5", *forwarded, '{"part":2}', "replica-1"),
        ("B", *forwarded, '{"n":1}', "replica-1"),
    ]


def test_a_send_is_waited_for_by_nobody() -> None:
    """The replica is its sender, and it has no reply stream and no deadline."""
    transaction = Effects(3, "replica-2", request(reply_to=""))
    transaction.send(Database(5), "x.tell", {})
    found = read(transaction)
    assert found.sends == [("db5", "x.tell", "", "", str(NEVER), "{}", "replica-2")]
    assert (found.reply[0], found.reply[-1]) == ("", "")


def test_a_refusal_is_all_that_is_left() -> None:
    """No write, no send, no forward, no expectation survives it."""
    transaction = Effects(3, "replica-2", request())
    transaction.set("x", 1)
    transaction.keep_until("x", 9)
    transaction.shared.set("y", 1)
    transaction.expect("x", None)
    transaction.forward(Class("B"))
    transaction.refuse(Refused("no", why="so"))
    found = read(transaction)
    assert (found.expects, found.writes, found.sends) == ([], [], [])
    assert found.reply[3:] == ("refused", 0, '{"detail":"no","why":"so"}')


def test_what_no_request_asked_for_cannot_be_forwarded() -> None:
    """A transaction without a request has no caller whom another replica could answer."""
    with pytest.raises(ValueError):
        Effects(3, "replica-2").forward(Class("A"))


async def test_many_members_are_all_written(backend: Backend) -> None:
    """There are more members than Lua can pass to one call. If a key has another type, nothing is written."""
    one = await backend.join()
    for count in (1, MOST_COMMAND_WORDS - 1, 2 * MOST_COMMAND_WORDS + 1):
        transaction = one.transaction()
        transaction.zadd(f"z{count}", {f"m{n}": 7 for n in range(count)})
        assert await one.commit(transaction)
        assert await one.store().zcard(f"z{count}") == count
    assert await one.store().zrangebyscore("z1", 7, 7, 9) == ["m0"]
    transaction = one.transaction()
    transaction.set("text", 1)
    assert await one.commit(transaction)
    transaction = one.transaction()
    transaction.zadd("z1", {"m1": 7})
    transaction.zadd("text", {"m": 7})
    with pytest.raises(MeshError, match="holds a string, not a zset"):
        await one.commit(transaction)
    assert await one.store().zcard("z1") == 1


@pytest.mark.parametrize("field", ["", "f"])
async def test_each_of_many_expectations_counts(backend: Backend, field: str) -> None:
    """Of many expected values and absences, one that does not hold refuses the transaction."""
    one = await backend.join()
    there = {f"k{n}": f"v{n}" for n in range(5)}
    transaction = one.transaction()
    for name, value in there.items():
        if field:
            transaction.shared.hset("h", {name: value})
        else:
            transaction.shared.set(name, value)
    assert await one.commit(transaction)
    right: dict[str, str | None] = {**there, **{f"gone{n}": None for n in range(5)}}
    wrong = [{**right, name: value} for name in right for value in ("other", "", None) if right[name] != value]
    for values, committed in [(right, True), *((values, False) for values in wrong)]:
        transaction = one.transaction()
        if field:
            for name, wanted in values.items():
                transaction.shared.expect("h", wanted, field=name)
        else:
            transaction.shared.expect_each(values)
        transaction.set("mark", 1)
        assert await one.commit(transaction) is committed, values


async def test_of_a_transaction_everything_becomes_true_or_nothing(backend: Backend) -> None:
    """If an expectation does not hold, neither side is written to and nothing is sent."""
    worker = Worker()

    @worker.handles("x.tell")
    async def tell(request: Request, store: Store, transaction: Effects) -> Body:
        return {}

    one = await backend.join(worker)
    client = backend.redis()
    await client.set("shared:x", "theirs")
    transaction = one.transaction()
    transaction.set("a", 1)
    transaction.shared.set("b", 1)
    transaction.send(Database(9), "x.tell", {})
    transaction.shared.expect("x", "mine")
    assert await one.commit(transaction) is False
    assert await one.store().get("a") is None and await one.store().shared.get("b") is None
    assert await client.xlen("mesh:requests:db9") == 0

    transaction.expects.clear()
    transaction.shared.expect("x", "theirs")
    transaction.expect("h", None, field="f")
    assert await one.commit(transaction) is True
    assert await one.store().get("a") == "1" and await one.store().shared.get("b") == "1"
    assert await client.xlen("mesh:requests:db9") == 1, "a database that nobody holds keeps it"
    await client.aclose()


@pytest.mark.parametrize(
    ("verb", "words", "complaint"),
    [("INCRBY", ("1",), "holds a hash, not a string"), ("ZADD", ("1", "m"), "holds a hash, not a zset")],
)
async def test_a_write_that_would_fail_half_way_is_found_out_before_the_first(
    backend: Backend, verb: str, words: tuple[str, ...], complaint: str
) -> None:
    """A script cannot be rolled back, so it checks all types before the first write."""
    one = await backend.join()
    transaction = one.transaction()
    transaction.hset("h", {"f": 1})
    assert await one.commit(transaction)
    transaction = one.transaction()
    transaction.set("first", 1)
    transaction.write(verb, "h", *words)
    with pytest.raises(MeshError, match=complaint):
        await one.commit(transaction)
    assert await one.store().get("first") is None


async def test_each_field_of_a_hash_is_a_counter_of_its_own(backend: Backend) -> None:
    """The sum of two fields may be larger than either could be; an error names the field."""
    one = await backend.join()
    transaction = one.transaction()
    transaction.hset("h", {"text": "x"})
    for name in "fg":
        transaction.write("HINCRBY", "h", name, 2**62)
    assert await one.commit(transaction)
    for name, by, complaint in (("f", 2**62, "would have more than 64 bits"), ("text", 1, "does not hold an integer")):
        transaction = one.transaction()
        transaction.write("HINCRBY", "h", name, by)
        with pytest.raises(MeshError, match=f"db1:h {name} {complaint}"):
            await one.commit(transaction)
    assert await one.store().hgetall("h") == {"text": "x", "f": str(2**62), "g": str(2**62)}


async def test_what_cannot_be_compared_is_wrong_and_ends_its_own_transaction_alone(backend: Backend) -> None:
    """To expect a field of a key that is no hash is an error. As a conflict, it would run again for ever."""
    one = await backend.join()
    transaction = one.transaction()
    transaction.set("text", 1)
    assert await one.commit(transaction)
    wrong, right = one.transaction(), one.transaction()
    wrong.expect("text", "1", field="f")
    right.set("right", 1)
    said = await asyncio.gather(one.commit(wrong), one.commit(right), return_exceptions=True)
    assert isinstance(said[0], MeshError) and "holds a string, not a hash" in said[0].detail
    assert said[1] is True and await one.store().get("right") == "1"


async def test_a_key_lives_as_long_as_the_longest_that_is_kept_in_it(backend: Backend) -> None:
    """`keep_until` moves the expiry of a key later, never earlier."""
    one = await backend.join()
    now = one.now_ms()
    for at_ms in (now + 50_000, now + 90_000, now + 20_000):
        transaction = one.transaction()
        transaction.hset("h", {str(at_ms): 1})
        transaction.keep_until("h", at_ms)
        assert await one.commit(transaction)
    client = backend.redis(db=one.database)
    assert abs(await client.pexpiretime(f"db{one.database}:h") - (now + 90_000)) <= 1
    await client.aclose()


async def test_commits_of_one_trip_keep_a_key_as_long_as_the_longest_of_them(backend: Backend) -> None:
    """This holds for each side, in any order of the commits, and no key ends earlier than before."""
    one = await backend.join()
    now = one.now_ms()
    client, own = backend.redis(), backend.redis(db=one.database)
    await own.set(f"db{one.database}:old", 1, pxat=now + 99_000)
    transactions = []
    for own_ms, shared_ms in ((50_000, 10_000), (90_000, 80_000), (20_000, 95_000), (9_000, 70_000)):
        transaction = one.transaction()
        for key in ("new", "old"):
            transaction.incrby(key, 1)
            transaction.keep_until(key, now + own_ms)
        transaction.shared.incrby("n", 1)
        transaction.shared.keep_until("n", now + shared_ms)
        transactions.append(transaction)
    assert await asyncio.gather(*map(one.commit, transactions)) == [True] * 4
    assert await own.pexpiretime(f"db{one.database}:new") == now + 90_000
    assert await own.pexpiretime(f"db{one.database}:old") == now + 99_000
    assert await client.pexpiretime("shared:n") == now + 95_000
    await client.aclose()
    await own.aclose()


async def test_a_write_that_cannot_be_done_is_a_dead_letter_and_its_neighbours_are_none_the_worse(
    backend: Backend,
) -> None:
    """A handler's mistake ends neither the replica nor the other commits of the same round trip."""
    worker = Worker()

    @worker.handles("x.wrong")
    async def wrong(request: Request, store: Store, transaction: Effects) -> Body:
        transaction.set("a", "text")
        transaction.incrby("is-text", 1)
        return {}

    @worker.handles("x.right")
    async def right(request: Request, store: Store, transaction: Effects) -> Body:
        transaction.incrby(f"n:{request.body['n']}", 1)
        return {}

    one = await backend.join(worker, claim_idle_ms=200)
    transaction = one.transaction()
    transaction.set("is-text", "text")
    assert await one.commit(transaction)
    asks = [Ask(Class("A"), "x.wrong" if n % 5 == 0 else "x.right", {"n": n}) for n in range(25)]
    answers = await one.ask(asks)
    assert [n for n, answer in enumerate(answers) if answer.error is not None] == [0, 5, 10, 15, 20]
    assert all(isinstance(answer.error, GivenUp) for answer in answers[::5])
    assert "db1:is-text does not hold an integer" in str(answers[0].error)
    assert await one.store().get("a") is None
    for n in range(25):
        assert await one.store().get(f"n:{n}") == (None if n % 5 == 0 else "1")
    books = await one.books()
    assert (books["accepted"], books["answered"], books["dead"], books["in_flight"]) == (25, 20, 5, 0)


#: A verb of a service that reads one key, as JSON.
LOOK = ServiceVerbs(
    """
verbs.look = function(first, last)
  local is_done, text = pcall(redis.call, 'GET', tx[first + 1])
  if not is_done then return {err = 'it cannot be read'} end
  tx[head + 8] = '{"' .. tx[last] .. '":"' .. (text or '') .. '"}'
end
""",
    {"look": ()},
)


def test_an_answer_that_the_commit_reads_is_a_command_of_its_own_kind() -> None:
    """It is on our own side, and the script notes no write."""
    transaction = Effects(3, "replica-2", request(), VERBS | LOOK.table())
    transaction.answer_with("look", ["k"], ["as"])
    assert read(transaction).writes == [(2, "look", "db3:k", "as")]
    with pytest.raises(TypeError):
        transaction.answer_with("look", ["k"], [None])  # type: ignore[list-item]


async def test_an_answer_is_read_at_the_commit(backend: Backend) -> None:
    """After the writes of the requests before it; what cannot be read fails its own request, and no other one."""
    worker = Worker()
    worker.writes_with(LOOK)

    @worker.handles("x.set")
    async def put(request: Request, store: Store, transaction: Effects) -> Body:
        transaction.set("k", request.body["text"])
        return {}

    @worker.handles("x.look", effect=False)
    async def look(request: Request, store: Store, transaction: Effects) -> None:
        transaction.answer_with("look", [request.body["key"]], ["found"])

    one = await backend.join(worker, claim_idle_ms=200)
    to, client = Database(one.database), backend.redis(one.database)
    assert await one.call(to, "x.look", {"key": "k"}) == {"found": ""}
    assert await client.exists(f"db{one.database}:written") == 0
    asks = [Ask(to, "x.set", {"text": "new"}), Ask(to, "x.look", {"key": "k"})]
    assert [answer.bodies for answer in await one.ask(asks)] == [[{}], [{"found": "new"}]]
    await client.rpush(f"db{one.database}:list", "a")
    answers = await one.ask([Ask(to, "x.look", {"key": "list" if n == 2 else "k"}) for n in range(5)])
    assert [str(answer.error) if answer.error else answer.bodies for answer in answers] == [
        [{"found": "new"}],
        [{"found": "new"}],
        f"the request was given up: look db{one.database}:list: it cannot be read",
        [{"found": "new"}],
        [{"found": "new"}],
    ]
    await client.aclose()


HASHES: list[dict[str, str]] = [
    {}, {"a": "1"}, {"a": "2"}, {"b": "1"}, {"1": "a"}, {"a": "1", "b": "2"}, {"a": "2", "b": "1"}, {"": "a", "a": ""},
    {"é": "\n"},
]  # fmt: skip


async def test_an_answer_is_expected_by_its_content(backend: Backend) -> None:
    """Any difference in a hash, a set or a range is a conflict, and nothing else is."""
    one = await backend.join()
    client, key = backend.redis(one.database), f"db{one.database}:it"
    store = one.store()

    async def fill(content: dict[str, str]) -> None:
        await client.delete(key, key + "s", key + "z")
        if content:
            await client.hset(key, mapping=content)
            await client.sadd(key + "s", *content)
            await client.zadd(key + "z", {name: n for n, name in enumerate(content)})

    for before, now in itertools.product(HASHES, HASHES):
        for verb, name, args, same in (
            ("HGETALL", "it", (), before == now),
            ("SMEMBERS", "its", (), set(before) == set(now)),
            ("SISMEMBER", "its", ("a",), ("a" in before) == ("a" in now)),
            ("ZRANGEBYSCORE", "itz", ("-inf", "inf", "LIMIT", 0, 1001), list(before) == list(now)),
            ("ZSCORE", "itz", ("a",), _place(before) == _place(now)),
        ):
            await fill(before)
            answer = await store.read(verb, name, *args)
            await fill(now)
            transaction = one.transaction()
            transaction.expect_answer(verb, name, args, answer)
            assert await one.commit(transaction) is same, (verb, before, now)
    await client.aclose()


def _place(content: dict[str, str]) -> int | None:
    return list(content).index("a") if "a" in content else None


async def test_a_key_of_another_type_now_is_a_conflict_and_other_verbs_are_refused(backend: Backend) -> None:
    """The handler then runs again, and meets the new type itself."""
    one = await backend.join()
    client = backend.redis(one.database)
    transaction = one.transaction()
    transaction.expect_answer("SMEMBERS", "it", (), [])
    await client.set(f"db{one.database}:it", "text")
    assert await one.commit(transaction) is False
    for verb in ("DEL", "KEYS", "GET", "SORT"):
        with pytest.raises(ValueError, match=f"{verb} is not a verb that a transaction can guard"):
            one.transaction().expect_answer(verb, "it", (), [])
        with pytest.raises(ValueError, match="can guard"):
            await one.store().read(verb, "it")
    await client.aclose()


async def test_transactions_are_committed_in_the_order_of_their_calls(backend: Backend) -> None:
    """Two that begin at the same moment go to the server together; the later one has the last word."""
    one = await backend.join()
    first, second = one.transaction(), one.transaction()
    for number, transaction in enumerate((first, second), 1):
        transaction.set("count:last", str(number))
    assert await asyncio.gather(one.commit(first), one.commit(second)) == [True, True]
    assert await one.store().get("count:last") == "2"


async def test_many_keys_are_set_by_one_command_where_the_server_has_it(make_server: Callable[..., Server]) -> None:
    """The script sets them one by one only where it has not."""
    server = make_server(program=wheel_server())
    async with Backend(server.settings) as members:
        transaction = (one := await members.join()).transaction()
        transaction.set_until([f"count:{n}" for n in range(30)], "x", 2**52)
        assert await one.commit(transaction)
    with server.redis() as admin:
        used = admin.info("commandstats")["cmdstat_msetex"]
        assert (used["calls"], used["failed_calls"]) == (1, 0)


def test_an_entry_has_as_many_fields_as_fit_into_a_command() -> None:
    """One more is refused before anything is sent."""
    fields = ["f", "v"] * (MOST_COMMAND_WORDS // 2)
    Effects(3, "replica-2").write("XADD", "stream", "*", *fields)
    with pytest.raises(ValueError, match=f"an entry has at most {MOST_COMMAND_WORDS // 2} fields"):
        Effects(3, "replica-2").write("XADD", "stream", "*", *fields, "f", "v")
