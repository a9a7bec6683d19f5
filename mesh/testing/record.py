"""What became of the requests of a kit: commits and sends that the server confirmed, and dead letters."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from mesh import keys
from mesh.later.due import Due
from mesh.requests.protocol import OK, Address, Class, Database
from mesh.requests.settlement import DONE
from mesh.testing.workers import Runs
from mesh.wire.codec import decode
from mesh.wire.connection import Command

#: Positions in a command that runs commit.lua: the number of the batch, and the transactions as one JSON text. The long
#: words of the transactions follow this text.
BATCH, TRANSACTIONS = 11, 12
#: Number of words of each send at the end of a transaction: to, op, key, reply stream, deadline, body, from, further
#: fields.
WORDS_PER_SEND = 8


@dataclass(frozen=True, slots=True)
class Committed:
    """A transaction that the server applied. `op` is "" for one that belongs to no request."""

    op: str
    database: int
    #: the id of the request on its stream
    id: str
    #: the reply, of the operation's own type; None if no caller waits, or if other replicas answer
    reply: Any


@dataclass(frozen=True, slots=True)
class Sent:
    """A request that a handler sent or forwarded with its commit."""

    op: str
    to: Address
    body: Any
    #: when it is due; None for at once
    due: Due | None = None


@dataclass(frozen=True, slots=True)
class Buried:
    """A request that was given up."""

    op: str
    body: Any
    reason: str
    deliveries: int

    @classmethod
    def from_entry(cls, fields: dict[str, str], body_of: Callable[[str, str], Any]) -> Buried:
        """Read an entry of the stream of dead letters."""
        op = fields.get("op", "")
        return cls(op, body_of(op, fields.get("body", "{}")), fields["reason"], int(fields["deliveries"]))


def is_commit(command: Command) -> bool:
    """Return whether a command runs commit.lua. The script differs with the verbs of services; its keys do not.

    The words of the command are EVALSHA, a hash, the number of keys and the keys: `command[5]` is the third key.
    """
    return command[0] == "EVALSHA" and command[2] == 3 and str(command[5]).startswith(keys.committed(""))


def is_numbered(command: Command) -> bool:
    """Return whether a command carries a batch of commits or of submissions, whose effect must happen only once."""
    return is_commit(command) or (
        command[0] == "EVALSHA" and command[2] == 3 and str(command[5]).startswith(keys.submitted(""))
    )


def transactions(commit: Sequence[Any]) -> list[list[Any]]:
    """Return the words of each transaction of a batch; the order of the words is in commit.lua.

    In the batch, a number before each transaction says how many words it has, this number included. A null stands for
    a long word.
    """
    long_words = iter(commit[TRANSACTIONS + 1 :])
    words = [next(long_words) if word is None else word for word in decode(commit[TRANSACTIONS])]
    split, start = [], 0
    while start < len(words):
        split.append(words[start + 1 : start + words[start]])
        start += words[start]
    return split


def op_of(transaction: Sequence[Any]) -> str:
    """Return the operation whose handler made a transaction, or ""."""
    return str(transaction[4])


class Observed:
    """Collects what the commits of all replicas did, in the order of the server."""

    def __init__(self, runs: Runs) -> None:
        self._runs = runs
        #: batches that are noted already: the key that holds the results, and the number of the batch
        self._noted_batches: set[tuple[str, int]] = set()
        #: one future for each trip with commits that is under way
        self._trips: set[asyncio.Future[None]] = set()
        self.committed: list[Committed] = []
        self.sent: list[Sent] = []

    @contextlib.contextmanager
    def trip(self) -> Iterator[None]:
        """Count a trip with commits as under way, until its answers are noted or lost."""
        trip_ended = asyncio.get_running_loop().create_future()
        self._trips.add(trip_ended)
        try:
            yield
        finally:
            self._trips.discard(trip_ended)
            trip_ended.set_result(None)

    async def up_to_date(self) -> None:
        """Wait until the trips that are under way have ended.

        Another connection may see the effect of a commit before the commit is answered. After this wait the commit is
        noted here.
        """
        if self._trips:
            await asyncio.wait(self._trips)

    def take(self, commit: Sequence[Any], answer: Any) -> None:
        """Note the commits of a batch that the server has applied. A batch that was sent again counts once."""
        batch = (str(commit[5]), int(commit[BATCH]))
        if not isinstance(answer, str) or batch in self._noted_batches:
            return
        self._noted_batches.add(batch)
        for transaction, result in zip(transactions(commit), decode(answer), strict=True):
            if result == DONE and transaction[5] == OK:
                self._note(transaction, database=int(commit[8]))

    def _note(self, words: Sequence[Any], database: int) -> None:
        op = op_of(words)
        if not op or op in self._runs.effects:
            # The words 1, 2 and 7 are the id of the request, the stream for the reply, and the body of the reply.
            reply = self._runs.reply_of(op, words[7]) if words[2] and words[7] else None
            self.committed.append(Committed(op, database, str(words[1]), reply))
        self.sent.extend(sent_of(words, self._runs.body_of))


def sent_of(words: Sequence[Any], body_of: Callable[[str, str], Any]) -> Iterator[Sent]:
    """Yield the requests that a transaction sends.

    Requests that begin at once are the last words of a transaction, and its word 10 is their number. A request for
    later, or with an idempotency key or a limit, is a write with the verb `later` or `place`.
    """
    for start in range(len(words) - WORDS_PER_SEND * int(words[10]), len(words), WORDS_PER_SEND):
        to, op, _, _, _, body, *_ = words[start : start + WORDS_PER_SEND]
        yield Sent(op, _address(to), body_of(op, body))
    for start, (verb, key) in enumerate(pairwise(words)):
        if (verb, key) == ("later", keys.LATER):
            due, _, to, op, _, _, body = words[start + 4 : start + 11]
            yield Sent(op, _address(to), body_of(op, body), Due(due))
        elif (verb, key) == ("place", keys.LATER):
            options, _, to, op, _, body = words[start + 4 : start + 10]
            due = decode(options).get("due")
            yield Sent(op, _address(to), body_of(op, body), due and Due(due))


def _address(target: str) -> Address:
    return Database(int(target[2:])) if target.startswith("db") else Class(target)
