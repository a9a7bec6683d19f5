"""What handlers read with: one reader for the replica's own database, one for the keys that replicas share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mesh import keys
from mesh.requests.verbs import GUARDABLE_READS, Word, check_words
from mesh.wire.link import Link
from mesh.wire.script import Script


def _sendable(*words: Word) -> Sequence[Word]:
    """Return the words. Raises TypeError or ValueError for a word that cannot be sent to Redis."""
    check_words(words)
    return words


class Reader:
    """Read-only commands on keys that all begin with one prefix.

    `key` and `names` are names of Redis keys without this prefix. `is_own`: the keys are in the replica's own database,
    and else in the bus database.
    """

    def __init__(self, link: Link, prefix: str, is_own: bool) -> None:
        #: sends one command to the database of these keys
        self._run = link.own if is_own else link.shared
        self._link = link
        self._is_own = is_own
        self.prefix = prefix

    async def get(self, key: str) -> str | None:
        value: str | None = await self._run("GET", self.prefix + key)
        return value

    async def mget(self, *names: str) -> list[str | None]:
        values: list[str | None] = await self._run("MGET", *(self.prefix + name for name in names)) if names else []
        return values

    async def exists(self, key: str) -> bool:
        return bool(await self._run("EXISTS", self.prefix + key))

    async def hget(self, key: str, field: Word) -> str | None:
        value: str | None = await self._run("HGET", self.prefix + key, *_sendable(field))
        return value

    async def hmget(self, key: str, *fields: Word) -> list[str | None]:
        values: list[str | None] = await self._run("HMGET", self.prefix + key, *_sendable(*fields)) if fields else []
        return values

    async def hgetall(self, key: str) -> dict[str, str]:
        flat = await self._run("HGETALL", self.prefix + key)
        return dict(zip(flat[::2], flat[1::2], strict=True))

    async def read(self, verb: str, key: str, *args: Word) -> Any:
        """Read with a verb that a transaction can guard: see `mesh.requests.verbs.GUARDABLE_READS`."""
        if verb not in GUARDABLE_READS:
            raise ValueError(f"{verb} is not a verb that a transaction can guard")
        return await self._run(verb, self.prefix + key, *_sendable(*args))

    async def zrangebyscore(self, key: str, least: Word, most: Word, count: int) -> list[str]:
        """Return at most `count` members between two scores, which are written as in Redis (`-inf`, `(5`)."""
        members: list[str] = await self._run(
            "ZRANGEBYSCORE", self.prefix + key, *_sendable(least, most), "LIMIT", 0, count
        )
        return members

    async def zcard(self, key: str) -> int:
        return int(await self._run("ZCARD", self.prefix + key))

    async def script(self, script: Script, names: list[str], *args: Word) -> Any:
        """Run a script that only reads; `names` become its KEYS."""
        return await self._link.script(
            script, [self.prefix + name for name in names], *_sendable(*args), own=self._is_own
        )


class Store(Reader):
    """Reads the replica's own database; it writes nothing. `shared` reads the keys that replicas share."""

    def __init__(self, link: Link, database: int, cls: str) -> None:
        super().__init__(link, keys.own(database), is_own=True)
        self.cls = cls
        self.shared = Reader(link, keys.SHARED, is_own=False)
        self.database = database

    async def is_held(self, database: int) -> bool:
        """Return whether a replica holds a database now."""
        return bool(await self._link.shared("EXISTS", keys.lease(database)))
