"""The writing commands of a transaction: how many there are, and what is refused before anything is sent."""

from __future__ import annotations

from typing import Any

import pytest

from mesh.requests.verbs import LATEST_MS, MOST_INTEGER, VERBS
from mesh.requests.writes import Writes

#: By verb: arguments that are valid.
ARGUMENTS: dict[str, list[Any]] = {
    "SET": ["v"], "DEL": [], "UNLINK": [], "PEXPIREAT": [9], "PERSIST": [], "INCRBY": [1], "HSET": ["f", "v"],
    "HDEL": ["f"], "HINCRBY": ["f", 1], "ZADD": [1, "m"], "ZREM": ["m"], "SADD": ["m"], "SREM": ["m"], "RPUSH": ["m"],
    "LPUSH": ["m"], "LTRIM": [0, 1], "XADD": ["*", "f", "v"],
}  # fmt: skip
#: Redis takes any number of arguments for these.
GROWING = {"HSET", "HDEL", "ZADD", "ZREM", "SADD", "SREM", "RPUSH", "LPUSH"}

#: By verb: its arguments around one integer, and the least and the most that this integer may be.
BOUNDS: list[tuple[str, list[Any], int, int]] = [
    ("SET", ["v", "PX", ...], 1, LATEST_MS),
    ("SET", ["v", "PXAT", ...], 1, LATEST_MS),
    ("SET", ["v", "EX", ...], 1, LATEST_MS // 1000),
    ("SET", ["v", "EXAT", ...], 1, LATEST_MS // 1000),
    ("PEXPIREAT", [...], 1, LATEST_MS),
    ("PEXPIREAT", [..., "GT"], 1, LATEST_MS),
    ("INCRBY", [...], -MOST_INTEGER, MOST_INTEGER),
    ("HINCRBY", ["f", ...], -MOST_INTEGER, MOST_INTEGER),
    ("LTRIM", [0, ...], -(2**63) + 1, 2**63 - 1),
    ("LTRIM", [..., 0], -(2**63) + 1, 2**63 - 1),
    ("XADD", ["MAXLEN", "~", ..., "*", "f", "v"], 0, 2**31),
]


def test_every_verb_that_a_handler_writes_has_arguments_here() -> None:
    """A verb that is added gets its tests, too."""
    assert ARGUMENTS.keys() == {verb for verb in VERBS if verb.isupper()}


@pytest.mark.parametrize("verb", ARGUMENTS)
def test_two_writes_of_a_verb_are_one_command_where_redis_takes_both(verb: str) -> None:
    """Fewer commands keep the server for less time; a verb with a fixed number of arguments is written twice."""
    writes = Writes()
    for _ in range(2):
        writes.write(1, verb, "k", ARGUMENTS[verb])
    commands = [command[2:] for command in writes.commands()]
    twice = [verb, "k", *ARGUMENTS[verb]]
    assert commands == ([[*twice, *ARGUMENTS[verb]]] if verb in GROWING else [twice, twice])


@pytest.mark.parametrize(("verb", "args", "least", "most"), BOUNDS)
def test_an_integer_between_its_bounds_is_written_and_no_other(
    verb: str, args: list[Any], least: int, most: int
) -> None:
    """Redis would refuse another one in the middle of the commit, or Lua could not compare it exactly."""
    for number in (least, most):
        Writes().write(1, verb, "k", [number if arg is ... else arg for arg in args])
    for number in (least - 1, most + 1):
        with pytest.raises(ValueError, match=f"{verb} cannot be written: it takes an integer from {least} to {most}"):
            Writes().write(1, verb, "k", [number if arg is ... else arg for arg in args])


@pytest.mark.parametrize(
    ("score", "written"),
    [
        (7, 7), (-(2**63) + 1, -(2**63) + 1), (2**63, "9.223372036854776e+18"), (1.5, "1.5"), ("2", "2.0"),
        ("-inf", "-inf"), (float("inf"), "inf"),
    ],
)  # fmt: skip
def test_a_score_is_any_number(score: object, written: object) -> None:
    """What Redis cannot read as an integer is written as it writes numbers itself."""
    writes = Writes()
    writes.write(1, "ZADD", "z", [score, "m"])  # type: ignore[list-item]
    assert writes.commands()[0][3:] == ["z", written, "m"]


@pytest.mark.parametrize(
    "score",
    [
        "text", "", "nan", float("nan"), 10**400, True, None, b"1", " 1", "1 ", "1_0", "1e400",
        "\N{ARABIC-INDIC DIGIT ONE}",
    ],
)  # fmt: skip
def test_what_is_no_number_is_no_score(score: object) -> None:
    """Redis would refuse it in the middle of the commit."""
    with pytest.raises((ValueError, TypeError), match=r"a score is a number|Redis stores text and numbers"):
        Writes().write(1, "ZADD", "z", [score, "m"])  # type: ignore[list-item]


@pytest.mark.parametrize("sign", [1, -1])
def test_what_one_transaction_adds_to_a_counter_stays_below_64_bits(sign: int) -> None:
    """Each sum may become true only in the server, so the transaction adds up the magnitudes itself."""
    writes = Writes()
    writes.write(1, "SET", "k", [sign * (MOST_INTEGER - 10)])
    writes.write(1, "INCRBY", "k", [sign * 6])
    with pytest.raises(ValueError, match="INCRBY of k : it adds up to more than 64 bits"):
        writes.write(1, "INCRBY", "k", [sign * 5])
    writes.write(1, "INCRBY", "k", [sign * 4])
    writes.write(1, "HSET", "h", ["f", MOST_INTEGER - 1])
    writes.write(1, "HINCRBY", "h", ["f", 1])
    with pytest.raises(ValueError, match="HINCRBY of h f: it adds up"):
        writes.write(1, "HINCRBY", "h", ["f", 1])


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (2**63 - 1, "adds up to more than 64 bits"),
        (-(2**63), "adds up to more than 64 bits"),
        (2**63, "something there that is not an integer"),
        (-(2**63) - 1, "something there that is not an integer"),
        ("text", "something there that is not an integer"),
        ("007", "something there that is not an integer"),
    ],
)
def test_a_value_that_redis_does_not_count_with_is_not_added_to(value: int | str, reason: str) -> None:
    """The transaction knows what it has written itself, and says why the sum cannot be."""
    writes = Writes()
    writes.write(1, "SET", "k", [value])
    with pytest.raises(ValueError, match=reason):
        writes.write(1, "INCRBY", "k", [1])
