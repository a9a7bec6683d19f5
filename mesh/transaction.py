"""What a handler wants to become true, and its view of what is true now.

A `Store` reads; a `Transaction` collects writes, sends and the reply. Nothing happens before the commit, which takes
all of it or none. Each has two sides: the replica's own database, and (`.shared`) the keys that replicas share.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mesh import keys
from mesh.connections import Link
from mesh.errors import MeshError
from mesh.messages import NEVER, OK, Address, Body, Request, encode, failure_body
from mesh.scripts import Script

Text = str | int


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
        value: str | None = await self._say("HGET", self.prefix + key, field)
        return value

    async def hmget(self, key: str, *fields: Text) -> list[str | None]:
        values: list[str | None] = await self._say("HMGET", self.prefix + key, *fields) if fields else []
        return values

    async def hgetall(self, key: str) -> dict[str, str]:
        flat = await self._say("HGETALL", self.prefix + key)
        return dict(zip(flat[::2], flat[1::2], strict=True))

    async def zrangebyscore(self, key: str, least: Text, most: Text, count: int) -> list[str]:
        """At most `count` members by score; bounds as Redis writes them (`-inf`, `(5`)."""
        found: list[str] = await self._say("ZRANGEBYSCORE", self.prefix + key, least, most, "LIMIT", 0, count)
        return found

    async def zcard(self, key: str) -> int:
        return int(await self._say("ZCARD", self.prefix + key))

    async def script(self, script: Script, names: list[str], *args: Text) -> Any:
        """Run a script that only reads; `names` become its KEYS."""
        return await self._link.script(script, [self.prefix + name for name in names], *args, own=self._own)


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


class Writer:
    """Collects writes and expectations on keys that all begin with one prefix."""

    def __init__(self, prefix: str, own: int, expects: list[Any], writes: list[Any]) -> None:
        self._prefix = prefix
        self._side = own
        self._expects = expects
        self._writes = writes

    def expect(self, key: str, value: str | None, field: Text = "") -> None:
        """Commit only if the key (or hash field) still has the value that was read; None: is absent."""
        self._expects.append((self._side, self._prefix + key, str(field), int(value is not None), value or ""))

    def write(self, verb: str, key: str, *args: Text) -> None:
        """Any writing command whose one key comes first."""
        self._writes.append((self._side, len(args) + 2, verb, self._prefix + key, *args))

    def set(self, key: str, value: Text, *options: Text) -> None:
        self.write("SET", key, value, *options)

    def delete(self, key: str) -> None:
        self.write("DEL", key)

    def hset(self, key: str, fields: Mapping[str, Text]) -> None:
        self.write("HSET", key, *(word for pair in fields.items() for word in pair))

    def hdel(self, key: str, *fields: Text) -> None:
        self.write("HDEL", key, *fields)

    def zadd(self, key: str, scores: Mapping[str, Text]) -> None:
        self.write("ZADD", key, *(word for member, score in scores.items() for word in (score, member)))

    def zrem(self, key: str, *members: Text) -> None:
        self.write("ZREM", key, *members)

    def incrby(self, key: str, by: int) -> None:
        self.write("INCRBY", key, by)

    def keep_until(self, key: str, at_ms: int) -> None:
        """Let a key live at least until then: its expiry moves later, never earlier."""
        self.write("PEXPIREAT", key, at_ms, "NX")
        self.write("PEXPIREAT", key, at_ms, "GT")


class Transaction(Writer):
    """What is to become true with the commit of one request (or, without one, of the replica's own doing)."""

    def __init__(self, database: int, replica: str, request: Request | None = None) -> None:
        self._request = request
        self._replica = replica
        self.expects: list[Any] = []
        self.writes: list[Any] = []
        self.sends: list[Any] = []
        self._forwards = 0
        self._answer: tuple[str, Body] | None = None
        super().__init__(keys.own(database), 1, self.expects, self.writes)
        self.shared = Writer(keys.SHARED, 0, self.expects, self.writes)

    def send(self, to: Address, op: str, body: Body, *, deadline: int = NEVER) -> None:
        """Send a request nobody waits for; the holder of the database gets to it however late it comes."""
        self._send(to, op, body, key="", reply_to="", deadline=deadline)

    def forward(self, to: Address, body: Body | None = None) -> None:
        """Let another replica answer this request, or the part of it that `body` says."""
        request = self._request
        if request is None:
            raise ValueError("there is no request to forward")
        self._forwards += 1
        self._send(
            to,
            request.op,
            request.body if body is None else body,
            key=request.key,
            reply_to=request.reply_to,
            deadline=request.deadline,
            sender=request.sender,
        )

    def _send(
        self,
        to: Address,
        op: str,
        body: Body,
        *,
        key: str,
        reply_to: str,
        deadline: int,
        sender: str | None = None,
    ) -> None:
        target = to.stream.removeprefix(keys.REQUESTS)
        self.sends.append((target, op, key, reply_to, deadline, encode(body), sender or self._replica))

    def reply(self, body: Body) -> None:
        """Answer the request."""
        self._answer = (OK, body)

    def refuse(self, error: MeshError) -> None:
        """Answer the request with an error, and have no other effect."""
        for collected in (self.expects, self.writes, self.sends):
            collected.clear()
        self._forwards = 0
        self._answer = (error.code, failure_body(error))

    def wire(self) -> list[Text]:
        """The words that the commit script reads."""
        request = self._request
        stream, id, reply_to, key, op = "", "", "", "", ""
        if request is not None:
            stream, id, reply_to, key, op = request.stream, request.id, request.reply_to, request.key, request.op
        status, body = self._answer or (OK, {})
        words: list[Text] = [
            0, stream, id, reply_to, key, op, status, self._forwards, encode(body) if reply_to else "",
            len(self.expects), len(self.writes), len(self.sends),
        ]  # fmt: skip
        for part in (*self.expects, *self.writes, *self.sends):
            words.extend(part)
        words[0] = len(words)
        return words
