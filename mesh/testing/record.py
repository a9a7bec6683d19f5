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

#: Two positions in a command that runs commit.lua: of the number of the batch, and of one JSON text with all
#: transactions of the batch. Their long words follow the text. The words before both are EVALSHA, hash, number of keys,
#: three keys, holder, how long the result is kept, database, bus and consumer: positions 0 to 10.
BATCH_POSITION, TRANSACTIONS_POSITION = 11, 12
#: Number of words of each send at the end of a transaction. They are: to, op, key, reply stream, deadline, body, from,
#: further fields.
WORDS_PER_SEND = 8


@dataclass(frozen=True, slots=True)
class Committed:
    """A transaction that the server applied. If it belongs to no request, its `op` is ""."""

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
    """Return whether a command runs commit.lua.

    Services add verbs to this script, so its hash differs, but its keys do not: `command[2]` is their number, and
    `command[5]` the third one.
    """
    return command[0] == "EVALSHA" and command[2] == 3 and str(command[5]).startswith(keys.committed(""))


def carries_batch(command: Command) -> bool:
    """Return whether a command carries a batch of commits or of submissions, which has an effect only once."""
    return is_commit(command) or (
        command[0] == "EVALSHA" and command[2] == 3 and str(command[5]).startswith(keys.submitted(""))
    )


def transactions_of(command: Sequence[Any]) -> list[list[Any]]:
    """Return the words of each transaction that a command carries to commit.lua. That file explains their order.

    In the batch, a number before each transaction says how many words it has, this number included. A null stands for
    a long word. The lists here are without the number: word 0 is the stream of the request, and word 1 its id.
    """
    long_words = iter(command[TRANSACTIONS_POSITION + 1 :])
    words = [next(long_words) if word is None else word for word in decode(command[TRANSACTIONS_POSITION])]
    word_lists, start = [], 0
    while start < len(words):
        word_lists.append(words[start + 1 : start + words[start]])
        start += words[start]
    return word_lists


def op_of(words: Sequence[Any]) -> str:
    """Return the operation of a transaction's request; "" if it belongs to none. The transaction has `words`."""
    return str(words[4])  # words 2, 3 and 4: reply stream, name and operation


class Observed:
    """What the commits of all replicas did, in the order in which the server applied them."""

    def __init__(self, runs: Runs) -> None:
        self._runs = runs
        #: batches that are noted already: the key with the replica's results, and the number of the batch
        self._noted_batches: set[tuple[str, int]] = set()
        #: one future for each trip with commits that is under way, done when the trip has ended
        self._trip_futures: set[asyncio.Future[None]] = set()
        self.committed: list[Committed] = []
        self.sent: list[Sent] = []

    @contextlib.contextmanager
    def trip(self) -> Iterator[None]:
        """Count a trip with commits as under way, until its answers are noted or lost."""
        trip_ended = asyncio.get_running_loop().create_future()
        self._trip_futures.add(trip_ended)
        try:
            yield
        finally:
            self._trip_futures.discard(trip_ended)
            trip_ended.set_result(None)

    async def wait_until_noted(self) -> None:
        """Wait until the trips with commits that are under way have ended, and their commits are noted here.

        Another connection may see the effect of a commit before the commit is answered. So each answer waits here: a
        test that sees an effect finds its commit in `MeshKit.committed`.
        """
        if self._trip_futures:
            await asyncio.wait(self._trip_futures)

    def note_batch(self, command: Sequence[Any], answer: Any) -> None:
        """Note the transactions of a batch that the server has applied. A batch that was sent again counts once."""
        replica_and_number = (str(command[5]), int(command[BATCH_POSITION]))
        # An error in place of the answer does not say which transactions were applied.
        if not isinstance(answer, str) or replica_and_number in self._noted_batches:
            return
        self._noted_batches.add(replica_and_number)
        for words, result in zip(transactions_of(command), decode(answer), strict=True):
            # Word 5 is the status of the reply: a refusal is applied, too, but has no effect. Position 8 of the command
            # is the database: see BATCH_POSITION.
            if result == DONE and words[5] == OK:
                self._note_transaction(words, database=int(command[8]))

    def _note_transaction(self, words: Sequence[Any], database: int) -> None:
        """Note a transaction that had an effect, and what it sent."""
        op = op_of(words)
        if not op or op in self._runs.operations_with_effect:
            # The words 1, 2 and 7 are the id of the request, the stream for the reply, and the body of the reply. The
            # last two are "" if there is no reply.
            reply = self._runs.reply_of(op, words[7]) if words[2] and words[7] else None
            self.committed.append(Committed(op, database, str(words[1]), reply))
        self.sent.extend(sent_of(words, self._runs.body_of))


def sent_of(words: Sequence[Any], body_of: Callable[[str, str], Any]) -> Iterator[Sent]:
    """Yield the requests that a transaction sends; `words` are its words.

    Requests that begin at once are the last words of a transaction, and its word 10 is their number. A request for
    later, or with an idempotency key or a limit, is a write with the verb `later` or `place`. After the verb come two
    keys and a bound, and then what commit_verbs.lua reads.
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
    """Return the address that a word such as "A" or "db3" names."""
    return Database(int(target[2:])) if target.startswith("db") else Class(target)
