"""Dead letters: requests and events that were given up, kept on one stream with the reason.

    mesh:requests:A --bury.lua--> mesh:dead --replay.lua--> mesh:requests:A
    events:movements -^               |       -------------> events:movements
                                      +--discard.lua--> deleted

An act (replay, discard) is a series of steps. Each step is one run of a script: it moves or drops up to `MOST_PER_STEP`
letters, and records in `mesh:audit` what was done. If the series stops half-way, or an answer is lost, the operator can
do the act again: it then finds only the letters that are left.

Of the two scripts only replay.lua can stop at a letter, because it cannot put every letter back: the stream may have
`stream_bound` requests, a later request may have used the letter's idempotency key, or the stream cannot be written.
Each repeat stops at the same letter, until the obstacle is gone or an operator discards the letter.
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

#: The Lua that both acts share: to read a letter, to walk over the letters, and to record the act in the audit log.
_COMMON_LUA = ("letter.lua", "walk.lua", "record.lua")
#: A replayed request takes its idempotency key again, so REPLAY needs the functions for options. A dead letter holds no
#: idempotency key and no place in a lane: bury.lua has freed both. So DISCARD has nothing to free. The files of OPTIONS
#: are in mesh/requests: each name is a path from a folder such as this one.
REPLAY = Script.beside(__file__, "replay.lua", *_COMMON_LUA, *OPTIONS)
DISCARD = Script.beside(__file__, "discard.lua", *_COMMON_LUA)
#: Reads letters, with the beginnings of their bodies.
LOOK = Script.beside(__file__, "look.lua", "letter.lua")

#: The most letters that one step moves or drops. The server needs about 2 ms for so many. More would hold up other work
#: for longer; fewer need more trips.
MOST_PER_STEP = 250
#: The most letters that one step reads to find those of its group. Without this bound, a step would read all letters if
#: few of them are of the group, and the server does nothing else meanwhile.
MOST_READ_PER_STEP = 1000
#: The most bytes of each body that are read for a list of letters. More would show more of a long body, and make the
#: list larger.
MOST_BODY_BYTES_SHOWN = 1000
#: The most bytes of a body that are read for one letter; a longer body is cut. Only two kinds of bodies can be longer:
#: those of events, and those of requests with many characters beyond ASCII (`MOST_BODY` in mesh/requests counts
#: characters). With a larger number, one read would keep the server and this process busy for longer.
MOST_BODY_BYTES = 16 * 2**20
#: Matches the id of a stream's entry.
ID = re.compile(r"\d{1,20}-\d{1,20}")


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """One dead letter. It was given up at `at_ms`, in ms of Redis's clock. `kind` is "request" or "event".

    `body` may be only the beginning of the body; `size` is the number of bytes of the whole body. `deliveries` is the
    text of a number. Fields that a letter lacks are "".
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
    #: the id of the former entry on `stream`
    original: str = ""
    #: the name that the sender gave the request
    request: str = ""


@dataclass(frozen=True, slots=True)
class LetterGroup:
    """All dead letters with one reason, from one stream, up to the letter with the id `until` ("+": the newest)."""

    reason: str
    stream: str
    until: str = "+"


#: Letters that are named by their ids, or all letters of a group.
ChosenLetters = Sequence[str] | LetterGroup


@dataclass(frozen=True, slots=True)
class Actor:
    """Who acts, and from which address: for the audit log."""

    name: str
    source: str


@dataclass(slots=True)
class Report:
    """What an act did.

    An act may stop early: then `problem` says at which letter and why, and this letter and the chosen ones after it
    are still dead letters. Otherwise `problem` is "".
    """

    #: how many letters were moved or dropped
    done: int = 0
    #: how many of the letters that the operator named by their ids did not exist any more
    gone: int = 0
    problem: str = ""


class DeadLetters:
    """The dead letters of a mesh, over a redis-py client of the bus database.

    A replay refuses to put more than `stream_bound` requests on a stream.

    The parameter `body` of its methods is a number: at most so many bytes of each body are read. With 0, letters come
    without their bodies; `DeadLetter.size` is right all the same.
    """

    def __init__(self, redis: Redis, stream_bound: int) -> None:
        self._redis = redis
        self._stream_bound = stream_bound

    async def look(
        self, most: int, *, newest: str = "+", oldest: str = "-", body: int = MOST_BODY_BYTES_SHOWN
    ) -> list[DeadLetter]:
        """Return letters from the id `newest` ("+": the last) down to `oldest` ("-": the first).

        There are at most `most` letters, and fewer where bodies are large. `body` is the most bytes of each body.
        Raises redis-py's errors.
        """
        value_lists = await LOOK.run(self._redis, [keys.DEAD], newest, oldest, most, body, decode=False)
        return [_parse_letter(values) for values in value_lists]

    async def all(self, *, newest: str = "+", body: int = 0) -> list[DeadLetter]:
        """Return all letters up to the id `newest`, the newest first. Raises redis-py's errors.

        `body` is the most bytes of each body; with 0, letters come without their bodies. Several short steps read the
        letters, so that none of them keeps the server from other work for long.
        """
        letters: list[DeadLetter] = []
        while page := await self.look(MOST_READ_PER_STEP, newest=newest, body=body):
            letters += page
            newest = f"({page[-1].id}"  # Redis excludes an id after "("
        return letters

    async def group_like(self, id: str) -> LetterGroup | None:
        """Return the group of a letter: all letters with its reason and stream, up to this one.

        None if no letter has this id.
        """
        found = await self.find(id, body=0)
        return LetterGroup(found.reason, found.stream, id) if found else None

    async def find(self, id: str, *, body: int = MOST_BODY_BYTES) -> DeadLetter | None:
        """Return one letter with at most `body` bytes of its body, or None. Raises Refused for a text that is no id."""
        letters = await self.look(1, newest=_checked_id(id), oldest=id, body=body)
        return letters[0] if letters else None

    async def count(self, group: LetterGroup) -> int:
        """Return how many letters a group has."""
        return sum(
            (letter.reason, letter.stream) == (group.reason, group.stream)
            for letter in await self.all(newest=group.until)
        )

    async def replay(self, chosen: ChosenLetters, actor: Actor) -> Report:
        """Put letters back on their streams. Raises Refused for a text that is not an id, and redis-py's errors."""
        return await self._act(REPLAY, [keys.DEAD, keys.BOOKS, keys.AUDIT], chosen, [self._stream_bound], actor)

    async def discard(self, chosen: ChosenLetters, actor: Actor) -> Report:
        """Drop letters for good. Raises Refused for a text that is not an id, and redis-py's errors."""
        return await self._act(DISCARD, [keys.DEAD, keys.AUDIT], chosen, [], actor)

    async def _act(
        self, script: Script, key_names: Sequence[str], chosen: ChosenLetters, script_words: Sequence[int], actor: Actor
    ) -> Report:
        """Run the steps of an act until no letters are left or a step meets a problem. `script_words` follow ARGV 6."""
        report = Report()
        words_after_walk = [*script_words, actor.name, actor.source, keys.AUDIT_KEPT]
        for walk_words in await self._walks(chosen):
            after_id: str = walk_words[0]
            while not report.problem:
                # ARGV: the six words of walk.lua, those of the script itself, the actor, and then the named ids.
                arguments = [after_id, *walk_words[1:6], *words_after_walk, *walk_words[6:]]
                done, gone, after_id, report.problem = await script.run(self._redis, key_names, *arguments)
                report.done += done
                report.gone += gone
                # Each step says after which letter the next one begins; "" after the last letter.
                if not after_id:
                    break
        return report

    async def _walks(self, chosen: ChosenLetters) -> list[list[Any]]:
        """Return the words that choose letters: ARGV 1 to 6 of walk.lua, and then the ids of named letters.

        For a group, the result is one list of words. All steps of the act use it, and each step goes on where the step
        before it stopped. For named letters, the result has one list for each step.
        """
        if isinstance(chosen, LetterGroup):
            # The act ends at the letter that is the newest now. So a letter that the act replays, and that is given up
            # again meanwhile, is not replayed twice.
            until = chosen.until if chosen.until != "+" else await self._newest_id()
            return [["-", until, MOST_PER_STEP, MOST_READ_PER_STEP, chosen.reason, chosen.stream]] if until else []
        # walk.lua takes the named letters without a look at their reason and stream. The two "" let record.lua, which
        # adds the entry to the audit log, leave out the fields `reason` and `stream`.
        return [
            ["-", "+", MOST_PER_STEP, MOST_READ_PER_STEP, "", "", *ids]
            for ids in _ids_by_step([_checked_id(id) for id in chosen])
        ]

    async def _newest_id(self) -> str:
        """Return the id of the newest letter; "" if there are no letters."""
        newest = await self.look(1, body=0)  # a list of at most one letter
        return newest[0].id if newest else ""


def _checked_id(id: str) -> str:
    """Return the id. Raises Refused for a text that is not an id."""
    if not ID.fullmatch(id):
        raise Refused(f"{id!r:.50} is not the id of a dead letter, such as 1700000000000-0")
    return id


def _ids_by_step(ids: Sequence[str]) -> Iterator[Sequence[str]]:
    return (ids[start : start + MOST_PER_STEP] for start in range(0, len(ids), MOST_PER_STEP))


def _parse_letter(values: Sequence[Any]) -> DeadLetter:
    """Return the letter whose values look.lua has returned. All but the size are bytes, as the body may be cut."""
    *texts, size, body_bytes = values
    id, kind, stream, reason, op, deliveries, original, request = (text.decode("utf-8", "replace") for text in texts)
    body, at_ms = body_bytes.decode("utf-8", "replace"), int(id.partition("-")[0])
    return DeadLetter(id, at_ms, kind, stream, reason, op, deliveries, int(size), body, original, request)
