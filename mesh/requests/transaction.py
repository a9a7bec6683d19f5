"""What a handler wants to become true, and its view of what is true now.

A `Store` reads; a `Transaction` collects writes, sends and the reply. Nothing happens before the commit, which takes
all of it or none. Each has two sides: the replica's own database, and (`.shared`) the keys that replicas share.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from mesh import keys
from mesh.errors import MeshError
from mesh.requests.protocol import NEVER, OK, Address, Body, Request, failure_body
from mesh.wire.clients import Link
from mesh.wire.codec import encode
from mesh.wire.script import Script

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


#: Longest command that may grow: Lua hands over some 8000 words at once.
MOST_WORDS = 4000


class Expectations:
    """What must still be as it was read, by the hash it is in, and the keys by themselves.

    What must be absent goes by itself, without values: no value is mistaken for none.
    """

    def __init__(self) -> None:
        self._present: dict[tuple[int, str], tuple[list[str], list[str]]] = {}
        self._absent: dict[tuple[int, str], list[str]] = {}

    def add(self, side: int, hash: str, name: str, value: str | None) -> None:
        """The field of a hash, or the key where `hash` is "", has this value; None: is absent."""
        if value is None:
            self.add_absent(side, hash, [name])
            return
        names, values = self._present.setdefault((side, hash), ([], []))
        names.append(name)
        values.append(value)

    def add_absent(self, side: int, hash: str, names: Iterable[str]) -> None:
        """All of these are absent."""
        self._absent.setdefault((side, hash), []).extend(names)

    def clear(self) -> None:
        """Forget all of it."""
        self._present.clear()
        self._absent.clear()

    def groups(self) -> list[list[Text]]:
        """All of it: side, hash, number of names, number of values, the names, the values."""
        if not self._absent and not self._present:
            return []
        groups: list[list[Text]] = [
            [side, hash, len(part), 0, *part] for (side, hash), names in self._absent.items() for part in _parts(names)
        ]
        for (side, hash), (names, values) in self._present.items():
            for some, theirs in zip(_parts(names), _parts(values), strict=True):
                groups.append([side, hash, len(some), len(theirs), *some, *theirs])
        return groups


#: The verbs a transaction may write with, and what types the keys that they begin with must be of, where it matters: a
#: script cannot be rolled back, so it looks before it writes. Those in small letters are told of in commit.lua.
VERBS: dict[str, str] = {
    **dict.fromkeys(("SET", "DEL", "UNLINK", "PEXPIREAT", "PERSIST", "set-all", "keep"), ""),
    "INCRBY": "string",
    **dict.fromkeys(("HSET", "HDEL", "HINCRBY"), "hash"),
    **dict.fromkeys(("ZADD", "ZREM", "zadd-all"), "zset"),
    **dict.fromkeys(("SADD", "SREM"), "set"),
    **dict.fromkeys(("RPUSH", "LPUSH", "LTRIM"), "list"),
    "XADD": "stream",
    **dict.fromkeys(("pair-all", "unpair-all"), "hash zset"),
}
_HOW = {(side, verb): f"{side} {types}".strip() for side in (0, 1) for verb, types in VERBS.items()}


class Writes:
    """Writing commands, as few as say the same: what is written to one key by one verb in a row becomes one command.

    Commands on different keys do not touch each other, so "in a row" is meant for each key by itself, or for both keys
    of a verb that has two.
    """

    def __init__(self) -> None:
        self._commands: list[list[Text]] = []
        self._latest: dict[tuple[int, str], list[Text]] = {}
        self._kept: dict[tuple[int, str], int] = {}

    def add(self, side: int, verb: str, keys: Sequence[str], args: Iterable[Text]) -> None:
        """One command more. A command is its side and the types of its keys, its number of words, and these.

        Raises ValueError for a verb that is not one of VERBS.
        """
        how = _HOW.get((side, verb))
        if how is None:
            raise ValueError(f"{verb} is not a verb of transactions")
        command = [how, 0, verb, *keys, *args]
        self._commands.append(command)
        for key in keys:
            self._latest[side, key] = command

    def grow(self, side: int, verb: str, keys: Sequence[str], args: Sequence[Text]) -> None:
        """The same for a verb that takes any number of fields or members, and no options."""
        for part in _parts(args):
            latest = self._latest.get((side, keys[0]))
            undisturbed = latest and all(self._latest.get((side, key)) is latest for key in keys)
            if latest and undisturbed and latest[2] == verb and len(latest) + len(part) <= MOST_WORDS:
                latest.extend(part)
            else:
                self.add(side, verb, keys, part)

    def keep_until(self, side: int, key: str, at_ms: int) -> None:
        """Let a key live at least until then; the latest of all that is said of it counts."""
        self._kept[side, key] = max(at_ms, self._kept.get((side, key), 0))

    def clear(self) -> None:
        """Forget all of it."""
        self._commands.clear()
        self._latest.clear()
        self._kept.clear()

    def commands(self) -> list[list[Text]]:
        """All of it; lifetimes come last, when their keys are there."""
        commands = list(self._commands)
        for (side, key), at_ms in self._kept.items():
            commands.append([_HOW[side, "keep"], 0, "keep", key, at_ms])
        for command in commands:
            command[1] = len(command) - 2
        return commands


def _parts(words: Sequence[Text]) -> Iterator[Sequence[Text]]:
    """Pairs stay pairs: the bound is even."""
    return (words[i : i + MOST_WORDS] for i in range(0, len(words), MOST_WORDS))


class Writer:
    """Collects writes and expectations on keys that all begin with one prefix."""

    def __init__(self, prefix: str, own: int, expects: Expectations, writes: Writes) -> None:
        self._prefix = prefix
        self._side = own
        self._expects = expects
        self._writes = writes

    def expect(self, key: str, value: str | None, field: Text = "") -> None:
        """Commit only if the key (or hash field) still has the value that was read; None: is absent."""
        key = self._prefix + key
        hash, name = (key, str(field)) if field != "" else ("", key)
        self._expects.add(self._side, hash, name, value)

    def write(self, verb: str, key: str, *args: Text) -> None:
        """Any writing command whose one key comes first."""
        self._writes.add(self._side, verb, (self._prefix + key,), args)

    def expect_each(self, values: Mapping[str, str | None]) -> None:
        """The same of many keys."""
        prefix = self._prefix
        self._expects.add_absent(self._side, "", [prefix + key for key, value in values.items() if value is None])
        for key, value in values.items():
            if value is not None:
                self._expects.add(self._side, "", prefix + key, value)

    def _grow(self, verb: str, key: str, args: Sequence[Text]) -> None:
        if args:
            self._writes.grow(self._side, verb, (self._prefix + key,), args)

    def set(self, key: str, value: Text, *options: Text) -> None:
        self.write("SET", key, value, *options)

    def set_until(self, names: Iterable[str], value: Text, at_ms: int) -> None:
        """One value for many keys, which end at that moment."""
        for part in _parts([self._prefix + key for key in names]):
            self._writes.add(self._side, "set-all", (str(at_ms),), [value, *part])

    def delete(self, key: str) -> None:
        self.write("DEL", key)

    def hset(self, key: str, fields: Mapping[str, Text]) -> None:
        self._grow("HSET", key, [word for pair in fields.items() for word in pair])

    def hdel(self, key: str, *fields: Text) -> None:
        self._grow("HDEL", key, fields)

    def zadd(self, key: str, scores: Mapping[str, Text]) -> None:
        self._grow("ZADD", key, [word for member, score in scores.items() for word in (score, member)])

    def zadd_all(self, key: str, members: Sequence[str], score: Text) -> None:
        """Many members of one score."""
        for part in _parts(members):
            self._writes.add(self._side, "zadd-all", (self._prefix + key,), [score, *part])

    def pair_all(self, hash: str, zset: str, pairs: Sequence[str]) -> None:
        """Names and texts in turn, for names that mostly have one text: the first becomes a field of the hash, which is
        cheap, any other a member "name:text" of the zset, with score 0."""
        self._pairs("pair-all", hash, zset, pairs)

    def unpair_all(self, hash: str, zset: str, pairs: Sequence[str]) -> None:
        """Take such pairs away, wherever they are."""
        self._pairs("unpair-all", hash, zset, pairs)

    def _pairs(self, verb: str, hash: str, zset: str, pairs: Sequence[str]) -> None:
        self._writes.grow(self._side, verb, (self._prefix + hash, self._prefix + zset), pairs)

    def zrem(self, key: str, *members: Text) -> None:
        self._grow("ZREM", key, members)

    def incrby(self, key: str, by: int) -> None:
        self.write("INCRBY", key, by)

    def keep_until(self, key: str, at_ms: int) -> None:
        """Let a key live at least until then, once all is written: its expiry moves later, never earlier."""
        self._writes.keep_until(self._side, self._prefix + key, at_ms)


class Transaction(Writer):
    """What is to become true with the commit of one request (or, without one, of the replica's own doing)."""

    def __init__(self, database: int, replica: str, request: Request | None = None) -> None:
        self._request = request
        self._replica = replica
        self.expects = Expectations()
        self.writes = Writes()
        self.sends: list[Any] = []
        self._forwards = 0
        self._answer: tuple[str, Body] | None = None
        super().__init__(keys.own(database), 1, self.expects, self.writes)
        self._shared: Writer | None = None

    @property
    def shared(self) -> Writer:
        """The side of the keys that replicas share."""
        if self._shared is None:
            self._shared = Writer(keys.SHARED, 0, self.expects, self.writes)
        return self._shared

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
        self.sends.append((to.target, op, key, reply_to, deadline, encode(body), sender or self._replica))

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
        stream, id, reply_to, key, op = "", "", "", "", ""
        if self._request is not None:
            stream, id, op, key, _, reply_to, *_ = self._request
        status, body = self._answer or (OK, {})
        expects, writes, sends = self.expects.groups(), self.writes.commands(), self.sends
        words: list[Text] = [
            0, stream, id, reply_to, key, op, status, self._forwards, encode(body) if reply_to else "",
            len(expects), len(writes), len(sends),
        ]  # fmt: skip
        for parts in (expects, writes, sends):
            for part in parts:
                words += part
        words[0] = len(words)
        return words
