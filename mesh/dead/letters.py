"""Dead letters: requests and events that were given up, kept on one stream with the reason.

    mesh:requests:A --bury.lua--> mesh:dead --replay.lua--> mesh:requests:A
    events:movements -^               |       -------------> events:movements
                                      +--discard.lua--> gone

Each act is a script. One step of it moves or drops up to `BATCH` letters, and records in `mesh:audit` what was
done. An act on more letters is a series of such steps. If the series stops half-way, or an answer is lost, the operator
can do the act again: it then finds only the letters that are left.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from redis.asyncio import Redis

from mesh import keys
from mesh.errors import Refused
from mesh.later.options import OPTIONS
from mesh.wire.script import Script

_COMMON_LUA = ("letter.lua", "walk.lua", "record.lua")
REPLAY = Script.beside(__file__, "replay.lua", *_COMMON_LUA, *OPTIONS)
DISCARD = Script.beside(__file__, "discard.lua", *_COMMON_LUA)
LOOK = Script.beside(__file__, "look.lua", "letter.lua")

#: Most letters that one step moves or drops. The server needs about 2 ms for so many.
BATCH = 250
#: Most letters that one step reads, to find those of its group.
MOST_READ_PER_STEP = 1000
#: Most bytes of each body that are read for a list.
MOST_BODY_SHOWN = 1000
#: Most bytes of one body that are read. The body of a request is never longer; that of an event may be.
MOST_BODY = 16 * 2**20
#: The form of the id of a stream's entry.
ID = re.compile(r"\d{1,20}-\d{1,20}")


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """One dead letter. It was given up at `at_ms`, in ms of Redis's clock. `kind` is "request" or "event".

    `body` may be only the beginning of the body; `size` is the number of bytes of the whole.
    """

    id: str
    at_ms: int
    kind: str
    stream: str
    reason: str
    op: str
    deliveries: str
    size: int
    body: str
    #: the id of the former entry on `stream`, and the name that the sender gave the request
    original: str = ""
    request: str = ""


@dataclass(frozen=True, slots=True)
class LetterGroup:
    """All dead letters with one reason, from one stream, up to the letter `until`."""

    reason: str
    stream: str
    until: str = "+"


#: Letters that are named by their ids, or all letters of a group.
Chosen = Sequence[str] | LetterGroup


@dataclass(frozen=True, slots=True)
class Actor:
    """Who acts, and from which address: for the audit log."""

    name: str
    source: str


@dataclass(slots=True)
class Report:
    """What an act did: `done` letters were moved or dropped, and `gone` of the named letters did not exist any more.

    `problem` says why the act stopped early, or is "".
    """

    done: int = 0
    gone: int = 0
    problem: str = ""


class DeadLetters:
    """The dead letters of a mesh, over a client of the bus database."""

    def __init__(self, redis: Redis, stream_bound: int) -> None:
        self._redis = redis
        self._stream_bound = stream_bound

    async def look(
        self, most: int, *, newest: str = "+", oldest: str = "-", body: int = MOST_BODY_SHOWN
    ) -> list[DeadLetter]:
        """Return letters from the id `newest` down to `oldest`; fewer than `most` where bodies are large.

        `body` is how many bytes of each body are read, at most. Raises redis-py's errors.
        """
        rows = await LOOK.run(self._redis, [keys.DEAD], newest, oldest, most, body, decode=False)
        return [_letter(row) for row in rows]

    async def all(self, *, newest: str = "+", body: int = 0) -> list[DeadLetter]:
        """Return all letters up to the id `newest`, the newest first. Raises redis-py's errors.

        Several short steps read the letters, so that none of them keeps the server from other work for long.
        """
        letters: list[DeadLetter] = []
        while page := await self.look(MOST_READ_PER_STEP, newest=newest, body=body):
            letters += page
            newest = f"({page[-1].id}"  # Redis excludes an id after "("
        return letters

    async def like(self, id: str) -> LetterGroup | None:
        """Return the group of a letter: all letters with its reason and stream, up to this one. None if it is gone."""
        found = await self.find(id, body=0)
        return LetterGroup(found.reason, found.stream, id) if found else None

    async def find(self, id: str, *, body: int = MOST_BODY) -> DeadLetter | None:
        """Return one letter, or None if it is gone. Raises Refused if `id` is not the id of an entry."""
        letters = await self.look(1, newest=_checked(id), oldest=id, body=body)
        return letters[0] if letters else None

    async def counts(self, group: LetterGroup) -> int:
        """Return how many letters a group has."""
        return sum(
            (letter.reason, letter.stream) == (group.reason, group.stream)
            for letter in await self.all(newest=group.until)
        )

    async def replay(self, chosen: Chosen, actor: Actor) -> Report:
        """Put letters back on their streams. Raises Refused for a word that is not an id, and redis-py's errors."""
        return await self._act(REPLAY, [keys.DEAD, keys.BOOKS, keys.AUDIT], chosen, [self._stream_bound], actor)

    async def discard(self, chosen: Chosen, actor: Actor) -> Report:
        """Drop letters for good. Raises Refused for a word that is not an id, and redis-py's errors."""
        return await self._act(DISCARD, [keys.DEAD, keys.AUDIT], chosen, [], actor)

    async def _act(
        self, script: Script, key_names: Sequence[str], chosen: Chosen, script_words: Sequence[int], actor: Actor
    ) -> Report:
        report = Report()
        common_words = [*script_words, actor.name, actor.source, keys.AUDIT_KEPT]
        for walk_words in await self._walks(chosen):
            after: str = walk_words[0]
            while not report.problem:
                # ARGV: the six words of walk.lua, those of the script itself, the actor, and then the named ids.
                arguments = [after, *walk_words[1:6], *common_words, *walk_words[6:]]
                done, gone, after, report.problem = await script.run(self._redis, key_names, *arguments)
                report.done += done
                report.gone += gone
                # Each step says after which letter the next one begins; "" after the last letter.
                if not after:
                    break
        return report

    async def _walks(self, chosen: Chosen) -> list[list[Any]]:
        """Return the words that choose letters: ARGV 1 to 6 of walk.lua, and then the ids of named letters.

        A group has one list, and several steps use it: each goes on where the last one stopped. Named letters have a
        list for each step.
        """
        if isinstance(chosen, LetterGroup):
            # The act ends at the letter that is the newest now. So a letter that the act replays, and that is given up
            # again meanwhile, is not replayed twice.
            until = chosen.until if chosen.until != "+" else await self._newest()
            return [["-", until, BATCH, MOST_READ_PER_STEP, chosen.reason, chosen.stream]] if until else []
        return [
            ["-", "+", BATCH, MOST_READ_PER_STEP, "", "", *ids] for ids in _batches([_checked(id) for id in chosen])
        ]

    async def _newest(self) -> str:
        newest = await self.look(1, body=0)
        return newest[0].id if newest else ""


def _checked(id: str) -> str:
    if not ID.fullmatch(id):
        raise Refused(f"{id!r:.50} is not the id of a dead letter, such as 1700000000000-0")
    return id


def _batches(ids: Sequence[str]) -> Iterator[Sequence[str]]:
    return (ids[i : i + BATCH] for i in range(0, len(ids), BATCH))


def _letter(row: Sequence[Any]) -> DeadLetter:
    *words, size, body = row
    id, kind, stream, reason, op, deliveries, original, request = (word.decode("utf-8", "replace") for word in words)
    shown, at_ms = body.decode("utf-8", "replace"), int(id.partition("-")[0])
    return DeadLetter(id, at_ms, kind, stream, reason, op, deliveries, int(size), shown, original, request)
