"""The reads of queries and of snapshots. The module `transaction` adds the guards for the reads of commands."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, TypeVar

from mesh.errors import UsageError
from mesh.operations.state import Hash, KeyOrField, Readable, Set, SortedSet
from mesh.requests.protocol import Request
from mesh.requests.store import Reader, Store

T = TypeVar("T")
R = TypeVar("R")
K = TypeVar("K", str, int)

#: The most elements that a guarded read may return, because the commit reads and compares all of them again. With a
#: larger number, one commit may hold the server for longer.
MOST_ELEMENTS = 1000
#: Methods of a transaction that queries and snapshots do not have.
_WRITES = frozenset({"set", "add", "delete", "insert", "put", "remove", "send", "forward"})

#: The type of `KeyOrField.location`: whether the key is shared, the key, and the field (None for no field).
_Location = tuple[bool, str, str | None]


class Reads:
    """Reads of the replica's own database and of shared keys. Each read shows what is stored at that moment."""

    __slots__ = ("_store", "request")

    def __init__(self, store: Store, request: Request) -> None:
        self._store = store
        #: the request itself: `id`, `sender`, `deadline`, `deliveries`
        self.request = request

    @property
    def database(self) -> int:
        """The number of the replica's database."""
        return self._store.database

    @property
    def cls(self) -> str:
        """The class of the replica's database."""
        return self._store.cls

    @property
    def at(self) -> datetime:
        """The time at which the request was sent, on Redis's clock. If the handler runs again, it is the same."""
        return datetime.fromtimestamp(self.request.at_ms / 1000, UTC)

    def _reader(self, shared: bool) -> Reader:
        return self._store.shared if shared else self._store

    async def get(self, key: Readable[R]) -> R:
        """Return a value. If nothing is stored, return the default of a `Key`, or None for a `Field`."""
        checked = checked_key(key)
        return key.read(await self._read_text(checked))

    async def many(self, keys: Sequence[Readable[R]]) -> list[R]:
        """Return several values, in the order of `keys`.

        One command reads all keys of our own database, one reads all shared keys, and one reads all fields of each
        hash. Values that one command reads were stored at the same moment.
        """
        check_type(keys, (list, tuple), "many() takes a list of values and fields of hashes")
        texts = await self._read_texts([checked_key(key) for key in keys])
        return [key.read(text) for key, text in zip(keys, texts, strict=True)]

    async def items(self, hash: Hash[K, T]) -> dict[K, T]:
        """Return all fields of a hash."""
        check_type(hash, Hash, "items() reads a hash")
        return hash.read(await self._read_answer("HGETALL", hash.shared, hash.name))

    async def members(self, of: Set[T]) -> list[T]:
        """Return the members of a set."""
        check_type(of, Set, "members() reads a set")
        return [of.decode(text) for text in await self._read_answer("SMEMBERS", of.shared, of.name)]

    async def contains(self, of: Set[T], member: T) -> bool:
        """Return whether a set has a member."""
        check_type(of, Set, "contains() asks a set")
        return bool(await self._read_answer("SISMEMBER", of.shared, of.name, of.encode(member)))

    async def range(
        self, of: SortedSet[T], least: float = float("-inf"), most: float = float("inf"), *, count: int | None = None
    ) -> list[T]:
        """Return members with scores from `least` to `most`, lowest first, at most `count` of them (default: 1001)."""
        check_type(of, SortedSet, "range() reads a sorted set")
        check_type(least, (int, float), "a range begins at a number")
        check_type(most, (int, float), "a range ends at a number")
        if count is not None and (type(count) is not int or count < 0):
            raise UsageError(f"count= is a number of members, not {count!r:.100}")
        # One more than a guarded read may return, so that a longer range raises GuardTooLarge and is not cut silently.
        most_members = MOST_ELEMENTS + 1 if count is None else count
        command = ("ZRANGEBYSCORE", of.shared, of.name, repr(float(least)), repr(float(most)), "LIMIT", 0, most_members)
        return [of.decode(text) for text in await self._read_answer(*command)]

    async def score(self, of: SortedSet[T], member: T) -> float | None:
        """Return the score of a member; None if the sorted set does not have the member."""
        check_type(of, SortedSet, "score() asks a sorted set")
        text = await self._read_answer("ZSCORE", of.shared, of.name, of.encode(member))
        return None if text is None else float(text)

    if not TYPE_CHECKING:  # a type checker reports these mistakes only if it does not see the method

        def __getattr__(self, name: str) -> Any:
            if name in _WRITES:
                raise UsageError(f"{name}() is not for a query or a snapshot: call it on the transaction of a command")
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")

    # `Transaction` overrides `_read_text`, `_read_texts` and `_read_answer`, to guard what they read.

    async def _read_text(self, key: KeyOrField[Any]) -> str | None:
        shared, name, field = key.location
        reader = self._reader(shared)
        return await (reader.get(name) if field is None else reader.hget(name, field))

    async def _read_texts(self, keys: Sequence[KeyOrField[Any]]) -> list[str | None]:
        """Read several keys and fields: all own keys with one command, all shared keys with one, each hash with one."""
        # The names that one command reads together: keys by (is shared, None), fields of a hash by (is shared, hash).
        names_of: defaultdict[tuple[bool, str | None], list[str]] = defaultdict(list)
        for shared, name, field in dict.fromkeys(key.location for key in keys):
            names_of[shared, None if field is None else name].append(name if field is None else field)
        text_lists = await asyncio.gather(
            *(self._read_together(*keys_or_hash, names) for keys_or_hash, names in names_of.items())
        )
        text_at: dict[_Location, str | None] = {}
        for (shared, hash_name), texts in zip(names_of, text_lists, strict=True):
            for name, text in zip(names_of[shared, hash_name], texts, strict=True):
                text_at[(shared, name, None) if hash_name is None else (shared, hash_name, name)] = text
        return [text_at[key.location] for key in keys]

    # Without a `hash_name` the `names` are keys, else fields of this hash.
    async def _read_together(self, shared: bool, hash_name: str | None, names: Sequence[str]) -> list[str | None]:
        reader = self._reader(shared)
        return await (reader.mget(*names) if hash_name is None else reader.hmget(hash_name, *names))

    async def _read_answer(self, verb: str, shared: bool, name: str, *args: Any) -> Any:
        """Return what Redis answers to a reading command on one key. `verb` is the command, such as HGETALL."""
        return await self._reader(shared).read(verb, name, *args)


class Query(Reads):
    """What the handler of a query gets. It has no way to write."""

    __slots__ = ()


def checked_key(key: Any) -> KeyOrField[Any]:
    """Return `key` if it names a value or a field of a hash. Raises UsageError for anything else."""
    if not isinstance(key, KeyOrField):
        raise UsageError(f"get(), many() and add() take a value or the field of a hash, not {key!r:.100}")
    return key


def check_type(argument: object, types: Any, error_start: str) -> None:
    """Raise UsageError if an argument is of none of these `types`. The error's text begins with `error_start`."""
    if not isinstance(argument, types):
        raise UsageError(f"{error_start}, not {argument!r:.100}")
