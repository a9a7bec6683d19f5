"""What a handler wants to become true, as it is said to the server."""

from __future__ import annotations

import pytest

from mesh.transaction import MOST_WORDS, Transaction


def commands(transaction: Transaction) -> list[list[object]]:
    """The writes that leave, without side and length."""
    return [command[2:] for command in transaction.writes.commands()]


def test_fields_of_one_hash_leave_as_one_command() -> None:
    """A thousand records are one HSET, whatever else is written between them."""
    transaction = Transaction(3, "me")
    transaction.hset("h", {"a": 1})
    transaction.zadd("z", {"m": 5})
    transaction.hset("h", {"b": 2})
    transaction.zadd("z", {"n": 6})
    assert commands(transaction) == [["HSET", "db3:h", "a", 1, "b", 2], ["ZADD", "db3:z", 5, "m", 6, "n"]]


def test_another_verb_on_the_key_keeps_its_place() -> None:
    """What is removed and written again is there in the end, and the other way round."""
    transaction = Transaction(3, "me")
    transaction.hset("h", {"a": 1})
    transaction.hdel("h", "a")
    transaction.hset("h", {"a": 2})
    assert [command[0] for command in commands(transaction)] == ["HSET", "HDEL", "HSET"]


def test_a_command_with_options_is_left_alone() -> None:
    """Only what is known to take any number of members grows."""
    transaction = Transaction(3, "me")
    transaction.write("ZADD", "z", "GT", 1, "m")
    transaction.write("ZADD", "z", "GT", 2, "m")
    assert len(commands(transaction)) == 2


def test_a_key_of_the_same_name_on_the_other_side_is_another_key() -> None:
    """Own and shared keys do not mix."""
    transaction = Transaction(3, "me")
    transaction.hset("h", {"a": 1})
    transaction.shared.hset("h", {"b": 2})
    assert commands(transaction) == [["HSET", "db3:h", "a", 1], ["HSET", "shared:h", "b", 2]]


def test_of_all_lifetimes_of_a_key_the_longest_counts() -> None:
    """One pair of commands, after the writes: the key must be there."""
    transaction = Transaction(3, "me")
    transaction.keep_until("h", 500)
    transaction.hset("h", {"a": 1})
    transaction.keep_until("h", 900)
    transaction.keep_until("h", 700)
    assert commands(transaction) == [
        ["HSET", "db3:h", "a", 1],
        ["PEXPIREAT", "db3:h", 900, "NX"],
        ["PEXPIREAT", "db3:h", 900, "GT"],
    ]


def test_no_command_grows_beyond_what_lua_hands_over() -> None:
    """Very many fields are several commands, and none is lost."""
    transaction = Transaction(3, "me")
    for number in range(MOST_WORDS):
        transaction.hset("h", {str(number): number})
    found = commands(transaction)
    assert len(found) == 3
    assert max(map(len, found)) <= MOST_WORDS
    assert sum(len(command) - 2 for command in found) == 2 * MOST_WORDS


def test_a_refusal_forgets_every_effect() -> None:
    """Lifetimes too."""
    from mesh import Refused

    transaction = Transaction(3, "me")
    transaction.hset("h", {"a": 1})
    transaction.keep_until("h", 500)
    transaction.refuse(Refused("no"))
    transaction.hset("h", {"b": 2})
    assert commands(transaction) == [["HSET", "db3:h", "b", 2]]


@pytest.mark.parametrize("count", [1, 3000])
async def test_it_becomes_true_as_it_was_said(backend, count: int) -> None:
    """On a server: every field, every member, and a life as long as the longest."""
    replica = await backend.join()
    transaction = replica.transaction()
    for number in range(count):
        transaction.hset("h", {str(number): number})
        transaction.zadd("z", {str(number): number})
        transaction.keep_until("h", replica.now_ms() + 60_000 + number)
    assert await replica.commit(transaction)
    redis = backend.redis(replica.database)
    prefix = f"db{replica.database}:"
    assert await redis.hlen(prefix + "h") == await redis.zcard(prefix + "z") == count
    assert await redis.pttl(prefix + "h") > 50_000
    await redis.aclose()
