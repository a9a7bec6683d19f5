"""The expectations and the writes of one transaction, as the words that commit.lua reads."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from mesh.requests.verbs import (
    ABSENT,
    GUARDABLE_READS,
    LATEST_MS,
    MOST_COMMAND_WORDS,
    MOST_INTEGER,
    VERBS,
    Verb,
    Word,
    check_words,
    checked_args,
    integer_of,
)


class Expectations:
    """What must be unchanged at the commit: keys, fields of hashes, and the answers of reading commands.

    A `side` is 1 for our own database and 0 for the shared keys. Keys and fields that must be absent have lists of
    their own, without values, so that no value can be mistaken for an absent one.
    """

    __slots__ = ("_absent", "_answer_groups", "_present")

    def __init__(self) -> None:
        #: by side and hash ("" for keys): the fields or keys that must have a value, and these values
        self._present: dict[tuple[int, str], tuple[list[str], list[str]]] = {}
        #: by side and hash ("" for keys): the fields or keys that must be absent
        self._absent: dict[tuple[int, str], list[str]] = {}
        #: for each reading command whose answer must be the same: its group of words, with the answer
        self._answer_groups: list[list[Word]] = []

    def add(self, side: int, hash_key: str, name: str, value: str | None) -> None:
        """Expect that a field of a hash, or a key if `hash_key` is "", has this value; None: that it is absent."""
        if value is None:
            self.add_absent(side, hash_key, [name])
            return
        names, values = self._present.setdefault((side, hash_key), ([], []))
        names.append(name)
        values.append(value)

    def add_absent(self, side: int, hash_key: str, names: Iterable[str]) -> None:
        """Expect that all of these fields or keys are absent."""
        self._absent.setdefault((side, hash_key), []).extend(names)

    def add_answer(self, side: int, verb: str, key: str, args: Sequence[Word], answer: Any) -> None:
        """Expect this answer (a list, one element, or None) of a reading command. Raises ValueError for other verbs."""
        if verb not in GUARDABLE_READS:
            raise ValueError(f"{verb} is not a verb that a transaction can guard")
        elements = answer if isinstance(answer, list) else [] if answer is None else [answer]
        words: list[Word] = [verb, key, *args]
        # Both numbers come before the words and the elements: commit_answers.lua reads them in this order.
        self._answer_groups.append([f"{side}r", GUARDABLE_READS[verb], len(elements), len(words), *words, *elements])

    @property
    def are_plain(self) -> bool:
        """Whether the plain variant of commit.lua can compare the expectations.

        That variant compares values, but not answers of commands.
        """
        return not self._answer_groups

    def clear(self) -> None:
        """Remove all expectations."""
        self._answer_groups.clear()
        self._present.clear()
        self._absent.clear()

    def groups(self) -> list[list[Word]]:
        """Return all groups of expectations. The head of commit.lua says which words a group has."""
        if not self._absent and not self._present:
            return self._answer_groups
        groups: list[list[Word]] = [
            *self._answer_groups,
            *(
                [side, hash_key, len(some_absent), 0, *some_absent]  # 0: no values follow
                for (side, hash_key), names in self._absent.items()
                for some_absent in chunks(names)
            ),
        ]
        for (side, hash_key), (names, values) in self._present.items():
            for some_names, their_values in zip(chunks(names), chunks(values), strict=True):
                groups.append([side, hash_key, len(some_names), len(their_values), *some_names, *their_values])
        return groups


#: The word of each side: the shared keys, and our own database.
_SIDE_WORDS = ("0", "1")
#: Stands in place of the side in a command of a service's verb that only reads our own database, for the reply.
#: Expectations are no commands: a reading command that is guarded has the word "0r" or "1r".
_READ_FOR_REPLY_WORD = "2"
#: Verbs whose key or field must hold an integer, and the name of this check in commit.lua.
_COUNTER_CHECKS = {"INCRBY": "integer", "HINCRBY": "field"}
#: The check of a key whose type this transaction itself decides, with an earlier write: there is nothing to check.
_NO_CHECK = "any"
#: Checks that are no type. "bounded": `mesh:later` has room. "placed": the limit and the idempotency key of the request
#: that the command sends allow it now. "passable": the request of the transaction may run in place. commit.lua makes
#: these checks for each command, even if the transaction has written the key before.
_CHECKS_BEYOND_TYPES = frozenset(("bounded", "placed", "passable"))

#: A command: its first word (the side, and the checks of its keys), the number of all later words, its verb, its keys,
#: its arguments.
WriteCommand = list[Word]

#: The first words of commands that the plain variant of commit.lua can check: they name types only. The check "stream"
#: is not among them, because it looks at more than the type: a stream may take no more entries.
_PLAIN_FIRST_WORDS = frozenset(
    [
        *_SIDE_WORDS,
        *(f"{word} {key_type}" for word in _SIDE_WORDS for key_type in ("string", "hash", "list", "set", "zset")),
    ]
)


def commands_are_plain(commands: Iterable[WriteCommand]) -> bool:
    """Return whether the plain variant of commit.lua can run these commands.

    That variant lacks most checks and our own verbs.
    """
    for command in commands:  # noqa: SIM110 - a generator costs three times as much
        # Our own verbs are in small letters.
        if command[0] not in _PLAIN_FIRST_WORDS or str(command[2]).islower():
            return False
    return True


class CounterBounds:
    """Bounds for the counters at one key, after the writes of one transaction so far.

    A field is "" if the key itself is the counter. A bound is the value that was set, plus all later changes, each
    without its sign. So the bound is never too small. It holds even if a PEXPIREAT between two writes deletes the key,
    because its moment has passed: then the counter begins again at 0.
    """

    def __init__(self, history: Iterable[WriteCommand]) -> None:
        #: by field: the largest absolute value; None if the transaction has written text there that is no integer
        self._bounds: dict[str, int | None] = {}
        #: whether the transaction deletes or replaces the key, so that its former value does not matter
        self._replaced = False
        for _, _, verb, _, *args in history:
            self.note(str(verb), args)

    def note(self, verb: str, args: Sequence[Word]) -> None:
        """Take one more command into account."""
        match verb:
            case "SET":
                self._replaced, self._bounds = True, {"": _magnitude(args[0])}
            case "DEL" | "UNLINK":
                self._replaced, self._bounds = True, {}
            case "HSET":
                self._bounds.update(zip(map(str, args[::2]), map(_magnitude, args[1::2]), strict=True))
            case "HDEL":
                self._bounds.update((str(field), 0) for field in args)
            case "INCRBY" | "HINCRBY":
                *field_if_hash, by = args  # INCRBY has no field
                self._increase(str(field_if_hash[0]) if field_if_hash else "", int(by))

    def _increase(self, field: str, by: int) -> None:
        # A counter that the transaction has not written gets no bound: commit.lua adds up all changes of such a one.
        bound = self._bounds.get(field, 0)
        if self.knows(field) and bound is not None:
            self._bounds[field] = bound + abs(by)

    def knows(self, field: str) -> bool:
        """Return whether this transaction has written the field. Then the value in the database does not matter."""
        return self._replaced or field in self._bounds

    def check(self, field: str, by: int) -> None:
        """Raise ValueError if the field cannot be increased by this much. Call this only if `knows` is true for it."""
        bound = self._bounds.get(field, 0)  # 0: the transaction deletes the key or the field, and sets no value there
        if bound is None:
            raise ValueError("this transaction writes something there that is not an integer")
        if bound + abs(by) > MOST_INTEGER:
            raise ValueError("it adds up to more than 64 bits")


def _magnitude(word: Word) -> int | None:
    """Return the absolute value of an integer; None for text that Redis does not read as an integer."""
    try:
        return abs(integer_of(word, -(2**63), 2**63 - 1))
    except ValueError:
        return None


class Writes:
    """The writing commands of a transaction, as few as possible.

    If a verb takes any number of words, two writes with it to the same keys become one command. Another command on one
    of these keys between them prevents this. Commands on other keys do not matter.

    A command that Redis would never accept is refused here. Other checks need the database: the type of a key, or the
    value of a counter. The first word of a command names these, and commit.lua makes them before it writes.
    """

    __slots__ = ("_commands", "_counter_bounds", "_earliest_expiries", "_histories", "_set_all_keys", "verbs")

    def __init__(self, verbs: Mapping[str, Verb] = VERBS) -> None:
        #: the verbs that it takes; after the handler has ended, `Effects.end` replaces them, so that each write fails
        self.verbs = verbs
        self._commands: list[WriteCommand] = []
        #: by side and key: its commands, oldest first
        self._histories: dict[tuple[int, str], list[WriteCommand]] = {}
        #: by side and key: the moment (ms) until which it lives at least, the latest that `keep_until` got
        self._earliest_expiries: dict[tuple[int, str], int] = {}
        #: by side: the keys that `set_all` has set
        self._set_all_keys: tuple[set[str], set[str]] = (set(), set())
        #: by side and key: the bounds of its counters, from its first INCRBY or HINCRBY on
        self._counter_bounds: dict[tuple[int, str], CounterBounds] = {}

    def write(self, side: int, verb: str, key: str, args: Sequence[Word]) -> None:
        """Add a command of Redis on one key. Raises ValueError or TypeError if Redis would not accept it."""
        args = checked_args(verb, args)
        if VERBS[verb].is_variadic:
            self.add_or_extend(side, verb, (key,), args)
        else:
            self.add(side, verb, (key,), args)

    def add(self, side: int, verb: str, keys: Sequence[str], args: Sequence[Word]) -> None:
        """Add a command. Raises ValueError if it must fail because of what this transaction has written before."""
        command: WriteCommand = [
            self._first_word(side, verb, keys, args),
            len(keys) + len(args) + 1,
            verb,
            *keys,
            *args,
        ]
        self._commands.append(command)
        for key in keys:
            history = self._histories.get((side, key))
            if history is None:
                self._histories[side, key] = [command]
            else:
                history.append(command)
        # `_check_of_counter` makes the bounds of a key at its first INCRBY or HINCRBY, from the earlier commands.
        # From then on each further command is noted here.
        if self._counter_bounds:
            self._note_for_counters(side, verb, keys, args)

    def add_or_extend(self, side: int, verb: str, keys: Sequence[str], args: Sequence[Word]) -> None:
        """Add fields or members with a verb that takes any number of them. If possible, an earlier command takes them.

        Raises ValueError or TypeError for words that cannot be sent, and ValueError for a key that has another type
        because of this transaction.
        """
        check_words(args)
        for chunk in chunks(args):
            extended = self._command_to_extend(side, keys)
            if extended is not None and extended[2] == verb and len(extended) + len(chunk) <= MOST_COMMAND_WORDS:
                extended.extend(chunk)
                extended[1] = len(extended) - 2  # the number of later words, as in `WriteCommand`
                if self._counter_bounds:
                    self._note_for_counters(side, verb, keys, chunk)
            else:
                self.add(side, verb, keys, chunk)

    def add_read(self, verb: str, keys: Sequence[str], args: Sequence[Word]) -> None:
        """Add a command that only reads our own database. Raises ValueError as `add` does."""
        self.add(1, verb, keys, args)
        command = self._commands[-1]
        command[0] = _READ_FOR_REPLY_WORD + str(command[0])[1:]

    def set_all(self, side: int, keys: Sequence[str], value: Word, at_ms: int) -> None:
        """Set each of these keys to one value that expires at `at_ms` (ms since 1970). Raises ValueError, TypeError."""
        check_words((value,))
        until = str(integer_of(at_ms, 1, LATEST_MS))
        for chunk in chunks(keys):
            # The verb `set-all` has the expiry where other verbs have their key, and its keys come after the value.
            self.add(side, "set-all", (until,), [value, *chunk])
        self._set_all_keys[side].update(keys)

    def keep_until(self, side: int, key: str, at_ms: int) -> None:
        """Let a key live at least until `at_ms`, or until a later moment of another call. Raises ValueError."""
        at_ms = integer_of(at_ms, 1, LATEST_MS)
        self._earliest_expiries[side, key] = max(at_ms, self._earliest_expiries.get((side, key), 0))

    def clear(self) -> None:
        """Remove all commands."""
        for collection in (
            self._commands,
            self._histories,
            self._earliest_expiries,
            *self._set_all_keys,
            self._counter_bounds,
        ):
            collection.clear()

    def commands(self) -> list[WriteCommand]:
        """Return all commands. Those that set lifetimes come last, because their keys must exist by then."""
        if not self._earliest_expiries:
            return self._commands
        keep_commands: list[WriteCommand] = [
            [_SIDE_WORDS[side], 3, "keep", key, at_ms] for (side, key), at_ms in self._earliest_expiries.items()
        ]
        return self._commands + keep_commands

    def _command_to_extend(self, side: int, keys: Sequence[str]) -> WriteCommand | None:
        """Return the command that is the last one on each of these keys.

        Return None if there is no such command, or if it has the keys in another order.
        """
        latest: WriteCommand | None = None
        for key in keys:
            history = self._histories.get((side, key))
            if history is None or key in self._set_all_keys[side] or (latest is not None and history[-1] is not latest):
                return None
            latest = history[-1]
        # In a `WriteCommand` the keys come after the first three words.
        if len(keys) > 1 and latest is not None and latest[3 : 3 + len(keys)] != [*keys]:
            return None
        return latest

    def _note_for_counters(self, side: int, verb: str, keys: Sequence[str], args: Sequence[Word]) -> None:
        for key in keys:
            if (side, key) in self._counter_bounds:
                self._counter_bounds[side, key].note(verb, args)

    def _first_word(self, side: int, verb: str, keys: Sequence[str], args: Sequence[Word]) -> str:
        """Return a command's first word: its side, and the check of each of its keys. Raises ValueError."""
        needs = self.verbs[verb].needs
        if not needs:
            return _SIDE_WORDS[side]
        if verb in _COUNTER_CHECKS:
            return f"{_SIDE_WORDS[side]} {self._check_of_counter(side, verb, keys[0], args)}"
        # If the transaction has not written the keys before, the first word depends only on the verb. The first test
        # finds this out faster than the second one, which would be enough.
        if not (self._histories or self._set_all_keys[side]):
            return _first_word_for_unwritten_keys(side, needs)
        if not self._set_all_keys[side] and self._histories.keys().isdisjoint([(side, key) for key in keys]):
            return _first_word_for_unwritten_keys(side, needs)
        return " ".join([_SIDE_WORDS[side], *map(functools.partial(self._check_of_key, side, verb), keys, needs)])

    def _check_of_key(self, side: int, verb: str, key: str, needed: str) -> str:
        """Return the check of a key: the type that it needs, or "any" if this transaction decides its type.

        Raises ValueError if this transaction gives the key another type.
        """
        if needed in _CHECKS_BEYOND_TYPES:
            return needed
        given_type = self._type_given(side, key)
        if given_type in (needed, ABSENT):
            return _NO_CHECK
        if given_type:
            raise ValueError(f"{verb} needs a {needed}, and this transaction makes {key} a {given_type}")
        return needed

    def _type_given(self, side: int, key: str) -> str:
        """Return the type that this transaction has given a key so far; ABSENT if it deletes the key; "" if neither."""
        # The histories lack the keys of `set-all` (`Writer.set_until` of effects.py). For such a key a text stands in
        # place of the type. So `_check_of_key` refuses each verb that needs a type, and its error ends with this text.
        if key in self._set_all_keys[side]:
            return "text by set_until()"
        for command in reversed(self._histories.get((side, key), ())):
            verb_facts = self.verbs[str(command[2])]  # the keys begin at command[3]
            given_type = verb_facts.needs[command.index(key, 3) - 3] if verb_facts.needs else verb_facts.makes
            if given_type:
                return given_type
        return ""

    def _check_of_counter(self, side: int, verb: str, key: str, args: Sequence[Word]) -> str:
        """Return the check of a counter. Raises ValueError if the command would fail whatever the database holds."""
        type_check = self._check_of_key(side, verb, key, VERBS[verb].needs[0])
        *field_if_hash, by = args  # INCRBY has no field
        field = str(field_if_hash[0]) if field_if_hash else ""
        bounds = self._counter_bounds.get((side, key))
        if bounds is None:
            bounds = self._counter_bounds[side, key] = CounterBounds(self._histories.get((side, key), ()))
        if not bounds.knows(field):  # the present value is known only in Redis, so commit.lua checks the sum
            return _COUNTER_CHECKS[verb]
        try:
            bounds.check(field, int(by))
        except ValueError as error:
            raise ValueError(f"{verb} of {key} {field}: {error}") from error
        return type_check  # the sum is checked here, so commit.lua only checks the type


@functools.cache
def _first_word_for_unwritten_keys(side: int, needs: tuple[str, ...]) -> str:
    """Return the first word of a command on keys that this transaction has not written: the side, and `needs`."""
    return " ".join([_SIDE_WORDS[side], *needs])


def chunks(words: Sequence[Word]) -> Iterator[Sequence[Word]]:
    """Yield the words in chunks of at most MOST_COMMAND_WORDS. This number is even, so pairs stay together."""
    return (words[i : i + MOST_COMMAND_WORDS] for i in range(0, len(words), MOST_COMMAND_WORDS))
