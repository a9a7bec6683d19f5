"""A handler's view of what is stored: reads of the replica's own database, and of the keys that replicas share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mesh import keys
from mesh.requests.verbs import ANSWERS, Text, check_words
from mesh.wire.link import Link
from mesh.wire.script import Script


def _sendable(*words: Text) -> Sequence[Text]:
    """The words, checked. Raises TypeError or ValueError for those that cannot be sent to Redis."""
    check_words(words)
    return words


class Reader:
    """Read-only commands on keys that all begin with one prefix."""

    def __init__(self, link: Link, prefix: str, own: bool) -> None:
        self._say = link.own if own else link.shared
        self._link = link
        self._own = own
        self.prefix = prefix

    async def get(self, key: str) -> str | None:
        value: str | None = await self._say("GET", self.prefix + key)
        return value

    async def mget(self, *names: str) -> list[str | None]:
        values: list[str | None] = await self._say("MGET", *(self.prefix + name for name in names)) if names else []
        return values

    async def exists(self, key: str) -> bool:
        return bool(await self._say("EXISTS", self.prefix + key))

    async def hget(self, key: str, field: Text) -> str | None:
        value: str | None = await self._say("HGET", self.prefix + key, *_sendable(field))
        return value

    async def hmget(self, key: str, *fields: Text) -> list[str | None]:
        values: list[str | None] = await self._say("HMGET", self.prefix + key, *_sendable(*fields)) if fields else []
        return values

    async def hgetall(self, key: str) -> dict[str, str]:
        flat = await self._say("HGETALL", self.prefix + key)
        return dict(zip(flat[::2], flat[1::2], strict=True))

    async def read(self, verb: str, key: str, *args: Text) -> Any:
        """Read with a verb that a transaction can guard: see `mesh.requests.verbs.ANSWERS`."""
        if verb not in ANSWERS:
            raise ValueError(f"{verb} is not a verb that a transaction can guard")
        return await self._say(verb, self.prefix + key, *_sendable(*args))

    async def zrangebyscore(self, key: str, least: Text, most: Text, count: int) -> list[str]:
        """At most `count` members by score; bounds as Redis writes them (`-inf`, `(5`)."""
        found: list[str] = await self._say(
            "ZRANGEBYSCORE", self.prefix + key, *_sendable(least, most), "LIMIT", 0, count
        )
        return found

    async def zcard(self, key: str) -> int:
        return int(await self._say("ZCARD", self.prefix + key))

    async def script(self, script: Script, names: list[str], *args: Text) -> Any:
        """Run a script that only reads; `names` become its KEYS."""
        return await self._link.script(script, [self.prefix + name for name in names], *_sendable(*args), own=self._own)


class Store(Reader):
    """A handler's view of its own database; `shared` is the view of the keys that replicas share."""

    def __init__(self, link: Link, database: int, cls: str) -> None:
        super().__init__(link, keys.own(database), own=True)
        self.cls = cls
        self.shared = Reader(link, keys.SHARED, own=False)
        self.database = database

    async def is_held(self, database: int) -> bool:
        """Whether somebody holds a database now."""
        return bool(await self._link.shared("EXISTS", keys.lease(database)))
