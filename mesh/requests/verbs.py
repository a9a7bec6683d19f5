"""The verbs that a transaction may write with, and what each accepts.

A Redis script cannot be rolled back, so a command that fails after others were written would leave half a transaction
behind. Therefore everything that can make a command fail is checked before the first write. This module checks the verb
and its arguments when the handler writes; commit.lua checks the types of keys and the values of counters.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

#: One word of a command: text, or an integer, which Redis stores as decimal digits.
Word = str | int
#: Checks the arguments of a verb (its words after the key), and returns them as they are sent. Raises ValueError.
Check = Callable[[Sequence[Word]], Sequence[Word]]

#: The most words of one command, apart from its verb and keys. Lua can pass about 8,000 to a function. The number is
#: even, so that a pair is never divided.
MOST_COMMAND_WORDS = 4000
#: Largest value of a counter. Redis's integers have 64 bits, but Lua compares them as doubles, which near 2**63 are
#: rounded to multiples of 1,024. The bound is 4,096 below 2**63, which is more than this rounding.
MOST_INTEGER = 2**63 - 4096
#: Latest moment of an expiry, in ms since 1970: up to here Lua compares numbers exactly. Redis refuses moments that
#: overflow.
LATEST_MS = 2**53

#: The type of a key that does not exist, as Redis's command TYPE names it.
ABSENT = "none"

_SCORE = re.compile(r"[-+]?([0-9.]+(e[-+]?[0-9]+)?|inf|infinity|nan)", re.ASCII | re.IGNORECASE)
#: An integer of 64 bits has 19 digits at most.
_INTEGER = re.compile(r"-?[1-9][0-9]{0,18}|0")
#: The types of words that need no check.
_TEXT_ONLY = frozenset((str,))
#: Handlers without a type checker also pass float and bytes.
_SENDABLE = (str, int, float, bytes)
#: Python prints every integer of at most this number of bits: its limit is never below 640 digits, or 2,126 bits. It
#: refuses to print an integer beyond its limit, and the C client would then end the process. So `check_words` prints
#: each integer of more bits, and raises the error before the client meets it.
_PRINTABLE_BITS = 2000


def check_words(words: Sequence[Word]) -> None:
    """Raise TypeError or ValueError for a word that cannot be sent to Redis."""
    # This test of all types at once saves time only if there are several words.
    if len(words) > 1 and _TEXT_ONLY.issuperset(map(type, words)):
        return
    for word in words:
        if word.__class__ is str:
            continue
        if word.__class__ is not int and (isinstance(word, bool) or not isinstance(word, _SENDABLE)):
            raise TypeError(f"Redis stores text and numbers, not {type(word).__name__}: {word!r:.100}")
        if isinstance(word, int) and word.bit_length() > _PRINTABLE_BITS:
            str(word)  # raises ValueError if it has more digits than Python prints


def text_of(word: object) -> str:
    """Return the text that Redis stores for a word that passed `check_words`. ValueError: the bytes are not UTF-8."""
    if word.__class__ is int or isinstance(word, int | float):
        return str(word)
    # `str.__str__`: a subclass of str, such as an enum, may have a `__str__` that returns another text.
    return word.decode() if isinstance(word, bytes) else str.__str__(word)


def integer_of(word: Word, least: int, most: int) -> int:
    """Return a word as an integer between two bounds. Raises ValueError."""
    if isinstance(word, str):
        if not _INTEGER.fullmatch(word):  # `int` reads more texts than Redis does, such as " 1_000 "
            raise ValueError(f"{word!r:.100} is not an integer")
        word = int(word)
    if isinstance(word, bool) or not isinstance(word, int) or not least <= word <= most:
        raise ValueError(f"it takes an integer from {least} to {most}")
    return word


def score_of(word: Word | float) -> Word:
    """Return a score in a form that Redis reads. Raises ValueError if it is not a number.

    An integer of 64 bits stays as it is. A larger one is rounded to a float, as Redis itself would round it.
    """
    if type(word) is int and -(2**63) < word < 2**63:
        return word
    # Python reads more texts as numbers than Redis does.
    is_readable = _SCORE.fullmatch(word) if isinstance(word, str) else isinstance(word, int | float)
    if isinstance(word, bool) or not is_readable:
        raise ValueError(f"a score is a number, not {word!r:.100}")
    try:
        number = float(word)
    except (ValueError, OverflowError) as error:
        raise ValueError(f"a score is a number, not {word!r:.100}") from error
    if math.isnan(number):
        raise ValueError("a score is a number, not NaN")
    if math.isinf(number) and isinstance(word, str) and word[-1].isdigit():  # such as "1e999"
        raise ValueError(f"a score is a number of at most 64 bits, not {word!r:.100}")
    return repr(number)


def _unix_ms(word: Word) -> int:
    return integer_of(word, 1, LATEST_MS)


# Each function from here to `_entry_args` is a `Check`.


def _no_args(args: Sequence[Word]) -> Sequence[Word]:
    if args:
        raise ValueError("it takes a key and nothing else")
    return args


def _one_or_more_args(args: Sequence[Word]) -> Sequence[Word]:
    if not args:
        raise ValueError("it takes a key and one argument or more")
    return args


def _pairs_of_args(args: Sequence[Word]) -> Sequence[Word]:
    if not args or len(args) % 2:
        raise ValueError("it takes a key and one pair of arguments or more")
    return args


def _scored_members(args: Sequence[Word]) -> Sequence[Word]:
    _pairs_of_args(args)
    return [word if n % 2 else score_of(word) for n, word in enumerate(args)]


def _set_args(args: Sequence[Word]) -> Sequence[Word]:
    """Check the arguments of SET after its key. Conditions such as NX are refused: expectations take their place."""
    match args:
        case [value]:
            return [value]
        case [value, "KEEPTTL"]:
            return [value, "KEEPTTL"]
        case [value, "PX" | "PXAT" as unit, number]:
            return [value, unit, integer_of(number, 1, LATEST_MS)]
        case [value, "EX" | "EXAT" as unit, number]:
            return [value, unit, integer_of(number, 1, LATEST_MS // 1000)]
    raise ValueError(
        "it takes a key, a value, and one of KEEPTTL, EX, PX, EXAT, PXAT; for a condition (NX, XX) use expect()"
    )


def _expire_args(args: Sequence[Word]) -> Sequence[Word]:
    match args:
        case [moment]:
            return [_unix_ms(moment)]
        case [moment, "NX" | "XX" | "GT" | "LT" as condition]:
            return [_unix_ms(moment), condition]
    raise ValueError("it takes a key, a moment in ms, and at most one of NX, XX, GT, LT")


def _increment_args(args: Sequence[Word]) -> Sequence[Word]:
    if len(args) != 1:
        raise ValueError("it takes a key and an integer")
    return [integer_of(args[0], -MOST_INTEGER, MOST_INTEGER)]


def _field_and_increment_args(args: Sequence[Word]) -> Sequence[Word]:
    if len(args) != 2:
        raise ValueError("it takes a key, a field and an integer")
    return [args[0], integer_of(args[1], -MOST_INTEGER, MOST_INTEGER)]


def _range_args(args: Sequence[Word]) -> Sequence[Word]:
    if len(args) != 2:
        raise ValueError("it takes a key, a first and a last index")
    # All integers of 64 bits but the lowest one. No list is long enough for an index near these bounds.
    return [integer_of(index, -(2**63) + 1, 2**63 - 1) for index in args]


def _entry_args(args: Sequence[Word]) -> Sequence[Word]:
    """Check the arguments of XADD after its key. The id must be "*", so that the server chooses it."""
    match args:
        case ["MAXLEN", "~" | "=" as exactness, count, "*", *fields]:  # "~": about `count` entries, "=": exactly
            # A larger bound would trim nothing in practice: 2**31 entries take 20 GB and more.
            before_fields: list[Word] = ["MAXLEN", exactness, integer_of(count, 0, 2**31), "*"]
        case ["*", *fields]:
            before_fields = ["*"]
        case _:
            raise ValueError("it takes a key, [MAXLEN ~|= count], the id *, and pairs of field and value")
    if len(fields) > MOST_COMMAND_WORDS:
        raise ValueError(f"an entry has at most {MOST_COMMAND_WORDS // 2} fields")
    return [*before_fields, *_pairs_of_args(fields)]


@dataclass(frozen=True, slots=True)
class Verb:
    """One verb, and what must hold so that a command with it succeeds.

    `needs` has one item for each of its keys: the type that the key must have and then keeps, or another check of
    commit.lua. A verb without `needs` gives its key the type `makes`, or leaves its type as it is if `makes` is "".
    `check` checks the arguments of a verb of Redis. If such a verb `is_variadic`, it takes any number of arguments, so
    two writes in a row on the same key become one command.
    """

    needs: tuple[str, ...]
    check: Check
    makes: str = ""
    is_variadic: bool = False


def _verb_on(key_type: str, check: Check, *, is_variadic: bool = False) -> Verb:
    return Verb((key_type,), check, is_variadic=is_variadic)


#: Verbs in small letters are not Redis's, but those of commit_verbs.lua. `Writer` or `Effects` has a method for each.
#: These methods do not call `checked_args`, so the `check` of these verbs is not used.
VERBS: dict[str, Verb] = {
    "SET": Verb((), _set_args, makes="string"),
    "DEL": Verb((), _no_args, makes=ABSENT),
    "UNLINK": Verb((), _no_args, makes=ABSENT),
    "PEXPIREAT": Verb((), _expire_args),
    "PERSIST": Verb((), _no_args),
    "INCRBY": _verb_on("string", _increment_args),
    "HSET": _verb_on("hash", _pairs_of_args, is_variadic=True),
    "HDEL": _verb_on("hash", _one_or_more_args, is_variadic=True),
    "HINCRBY": _verb_on("hash", _field_and_increment_args),
    "ZADD": _verb_on("zset", _scored_members, is_variadic=True),
    "ZREM": _verb_on("zset", _one_or_more_args, is_variadic=True),
    "SADD": _verb_on("set", _one_or_more_args, is_variadic=True),
    "SREM": _verb_on("set", _one_or_more_args, is_variadic=True),
    "RPUSH": _verb_on("list", _one_or_more_args, is_variadic=True),
    "LPUSH": _verb_on("list", _one_or_more_args, is_variadic=True),
    "LTRIM": _verb_on("list", _range_args),
    "XADD": _verb_on("stream", _entry_args),
    "set-all": Verb((), _no_args, makes="string"),
    "keep": Verb((), _no_args),
    "mark": Verb((), _no_args, makes="string"),
    "later": Verb(("bounded", "hash"), _no_args),
    "place": Verb(("placed", "hash"), _no_args),
    "pass": Verb(("passable",), _no_args),
}


@dataclass(frozen=True, slots=True)
class ServiceVerbs:
    """Verbs that a service adds to those of transactions, by name in small letters. `Worker.writes_with` takes them.

    `lua` becomes a part of commit.lua; commit_verbs.lua says what it may use. `needs` has, by verb, the types of its
    keys. After its keys, a verb takes any number of words.
    """

    lua: str
    needs: Mapping[str, tuple[str, ...]]

    def table(self) -> dict[str, Verb]:
        """Return the verbs by name."""
        return {name: Verb(needs, _no_args) for name, needs in self.needs.items()}


class Comparison(StrEnum):
    """How commit.lua compares the answer of a reading command with the answer that the handler got."""

    #: element by element
    LIST = "list"
    #: in any order, because the order of a set may change while its content does not
    SET = "set"
    #: pairs of a name and a value, in any order
    HASH = "hash"


#: Verbs that read one key and change nothing, and how their answers are compared. A transaction can expect that such a
#: verb has the same answer in the commit.
GUARDABLE_READS = {
    "HGETALL": Comparison.HASH,
    "SMEMBERS": Comparison.SET,
    "SISMEMBER": Comparison.LIST,
    "ZRANGEBYSCORE": Comparison.LIST,
    "ZSCORE": Comparison.LIST,
}


def checked_args(verb: str, args: Sequence[Word]) -> Sequence[Word]:
    """Return the arguments of a command in a form that Redis certainly accepts. Raises ValueError, TypeError."""
    verb_facts = VERBS.get(verb)
    if verb_facts is None or not verb.isupper():  # a verb in small letters has a method of its own
        raise ValueError(f"{verb} is not a verb of transactions")
    check_words(args)
    try:
        return verb_facts.check(args)
    except ValueError as error:
        raise ValueError(f"{verb} cannot be written: {error}") from error
