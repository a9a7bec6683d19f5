"""The link: the one connection over which a replica sends every command that does not block.

Commands that come while a round trip is under way share the next one. One round trip carries, in this order:

    commits          one run of commit.lua for all transactions
    submissions      one run of submit.lua for all requests
    shared           commands in the bus database
    own              commands in the leased database, between two SELECTs
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Any, TypeVar

from redis import exceptions as redis_errors

from mesh.errors import LeaseLost, MeshError, Unavailable, redis_is_full
from mesh.wire.batch import Asked, Batch, Waiter, fail, weight_of
from mesh.wire.codec import decode
from mesh.wire.connection import Encoded, RedisConnection, pack
from mesh.wire.failures import PASSING, Meaning, classify, is_fenced, is_passing
from mesh.wire.script import Numbered, Script

T = TypeVar("T")

#: Most words of one kind in one round trip: a script must not hold the server for longer than about 10 ms.
#: A long word counts for several, so that a round trip is bounded in bytes, too.
MOST_WORDS = 20_000
RETRY_S = 0.05


class Link:
    """One connection, one round trip at a time.

    A round trip that fails on the way is sent again for as long as `trusted` says that the lease holds; without a
    lease nothing is sent. Sending again is safe: submissions and commits carry the number of the trip, by which the
    server recognises what it has done already, and all other commands have the same effect when they run twice.

    `submit` and `commit` are these scripts, and the first words for them. The link adds the number of the trip, and the
    batch as `batch.lua` reads it. It runs the plain variant if that is enough for each item of the batch, and the
    variant for a full memory when the server has refused the other one.
    """

    def __init__(
        self,
        connection: RedisConnection,
        *,
        bus: int,
        database: int,
        trusted: Callable[[], bool],
        submit: Numbered,
        commit: Numbered | None,
        scripts: Sequence[Script],
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._connection = connection
        self._bus = bus
        self._database = database
        self._trusted = trusted
        self._submit = submit
        self._commit = commit
        variants = [numbered[0] for numbered in (submit, commit) if numbered]
        self._sources = {script.sha: script.source for script in itertools.chain(scripts, *[v.all for v in variants])}
        self._when_full = {script.sha: each.when_full.sha for each in variants for script in each.all}
        self._shared: Batch[tuple[Any, ...]] = Batch()
        self._own: Batch[tuple[Any, ...]] = Batch()
        self._submissions: Batch[Encoded] = Batch()
        self._commits: Batch[Encoded] = Batch()
        self._batches: tuple[Batch[Any], ...] = (self._shared, self._own, self._submissions, self._commits)
        self._queues = tuple(batch.items for batch in self._batches)
        self._wake: asyncio.Future[None] = self._loop.create_future()
        self._number = 0
        self._most_words = MOST_WORDS
        self._down = False
        self._closed: MeshError | None = None
        self.trips = 0

    def shared(self, *command: Any) -> Awaitable[Any]:
        """Run a command in the bus database."""
        return self._add(self._shared, command)

    def own(self, *command: Any) -> Awaitable[Any]:
        """Run a command in the leased database."""
        return self._add(self._own, command)

    def script(self, script: Script, keys: Sequence[str], *args: Any, own: bool = False) -> Awaitable[Any]:
        """Run a script in the bus database, or (`own`) in the leased one."""
        command = ("EVALSHA", script.sha, len(keys), *keys, *args)
        return self._add(self._own if own else self._shared, command)

    def submit(self, group: Encoded, waiter: Waiter) -> None:
        """Submit a group of requests. Raises Unavailable at once if the last round trip failed, and Busy."""
        if self._down:
            raise Unavailable("Redis cannot be reached; retry after 1 s", retry_after=1)
        if self._closed is not None:
            raise self._closed
        self._submissions.add(group, waiter, group[1])
        self._send_soon()

    def commit(self, transaction: Encoded, waiter: Waiter, *, first: bool = False) -> None:
        """Commit a transaction; the waiter receives the script's word. `first`: before all others of the trip."""
        if self._closed is not None:
            raise self._closed
        if first:
            self._commits.put_first([(transaction, waiter, transaction[1])])
        else:
            self._commits.add(transaction, waiter, transaction[1])
        self._send_soon()

    def _add(self, batch: Batch[Any], item: Any) -> asyncio.Future[Any]:
        if self._closed is not None:
            raise self._closed
        future: asyncio.Future[Any] = self._loop.create_future()
        batch.add(item, future, weight_of(item))
        self._send_soon()
        return future

    def _send_soon(self) -> None:
        if not self._wake.done():
            self._wake.set_result(None)

    @property
    def closed(self) -> bool:
        """Whether the link has ended, and with it the membership."""
        return self._closed is not None

    @property
    def down(self) -> bool:
        """Whether the last round trip failed on the way."""
        return self._down

    async def run(self) -> None:
        """Make round trips until cancelled. Raises LeaseLost."""
        try:
            while True:
                while any(self._queues):
                    await self._trip()
                self._wake = self._loop.create_future()  # an asyncio.Event costs a trip 2 µs more
                await self._wake
        except LeaseLost as error:
            self.close(error)
            raise
        finally:
            self.close(Unavailable("this replica is leaving the mesh"))

    def close(self, error: MeshError) -> None:
        """Raise an error at all waiters, and at every later caller."""
        if self._closed is None:
            self._closed = error
        for batch in self._batches:
            batch.fail(error)

    async def _trip(self) -> None:
        taken = self._take()
        self._number += 1
        try:
            commands = self._commands(*taken)
            answers = await self._send(commands)
            # The numbered commands come first, and there are two at most.
            if isinstance(answers[0], Exception) or isinstance(answers[min(1, len(answers) - 1)], Exception):
                await self._try_when_full(commands, answers)
        except redis_errors.DataError:
            self._sort_out(taken)
        except redis_errors.RedisError as error:
            fail(itertools.chain(*taken), error)
        except BaseException as error:
            gone = error if isinstance(error, MeshError) else Unavailable("the connection to Redis was closed")
            fail(itertools.chain(*taken), gone)
            raise
        else:
            self._most_words = min(MOST_WORDS, 2 * self._most_words + 1)
            self._hand_out(answers, *taken)

    async def _try_when_full(self, commands: list[tuple[Any, ...]], answers: list[Any]) -> None:
        """Send the variants of batches that the server has refused because its memory is full."""
        refused = [n for n, answer in enumerate(answers[:2]) if self._is_full(commands[n], answer)]
        if refused:
            again = [("EVALSHA", self._when_full[commands[n][1]], *commands[n][2:]) for n in refused]
            for n, answer in zip(refused, await self._send(again), strict=True):
                answers[n] = answer

    def _is_full(self, command: tuple[Any, ...], answer: Any) -> bool:
        if not isinstance(answer, Exception) or command[0] != "EVALSHA" or command[1] not in self._when_full:
            return False
        return classify(answer) is Meaning.FULL

    def _take(self) -> list[Asked[Any]]:
        """Return the items of the next trip, by batch: `_most_words` of each kind, or one item alone if that is 0."""
        taken: list[Asked[Any]] = []
        for batch in self._batches:
            has_room = self._most_words or not any(taken)
            taken.append(batch.take(self._most_words) if batch.items and has_room else [])
        return taken

    def _sort_out(self, taken: Sequence[Asked[Any]]) -> None:
        """Fail only the items that cannot be encoded or are too large; requeue the rest.

        If no single item is at fault, they are too large together, and the next trip takes half as many.
        """
        all_sendable = True
        for batch, asked in zip(self._batches, taken, strict=True):
            sendable = []
            for each in asked:
                try:
                    # Submissions and commits are encoded already.
                    if batch in (self._shared, self._own):
                        pack([each[0]])
                except redis_errors.DataError as error:
                    fail([each], error)
                    all_sendable = False
                else:
                    sendable.append(each)
            batch.put_first(sendable)
        if all_sendable:
            words = max(sum(weight for _, _, weight in asked) for asked in taken)
            self._most_words = min(self._most_words, words) // 2

    def _commands(
        self, shared: Asked[Any], own: Asked[Any], submissions: Asked[Any], commits: Asked[Any]
    ) -> list[tuple[Any, ...]]:
        commands = []
        # Commits come first: their sends and replies reach other replicas while the server still runs the rest.
        if commits and self._commit is not None:
            commands.append(self._numbered(self._commit, commits))
        if submissions:
            commands.append(self._numbered(self._submit, submissions))
        commands.extend(item for item, _, _ in shared)
        if own:
            commands.append(("SELECT", self._database))
            commands.extend(item for item, _, _ in own)
            commands.append(("SELECT", self._bus))
        return commands

    def _numbered(self, numbered: Numbered, asked: Asked[Encoded]) -> tuple[Any, ...]:
        variants, words = numbered
        script = variants.plain
        texts: list[bytes] = []
        long_words: list[str] = []
        # In Python 3.11 this loop takes two thirds of the time of list comprehensions.
        for (text, _, longs, is_plain), _, _ in asked:
            texts.append(text)
            long_words += longs
            if not is_plain:
                script = variants.complete
        return "EVALSHA", script.sha, *words, self._number, b"[%b]" % b",".join(texts), *long_words

    def _hand_out(
        self,
        answers: list[Any],
        shared: Asked[Any],
        own: Asked[Any],
        submissions: Asked[Any],
        commits: Asked[Any],
    ) -> None:
        at = iter(answers)
        for asked in (commits, submissions):
            if asked:
                self._hand_out_each(next(at), asked)
        for _, waiter, _ in shared:
            _resolve(waiter, next(at))
        if own:
            next(at)
            for _, waiter, _ in own:
                _resolve(waiter, next(at))

    @staticmethod
    def _hand_out_each(answer: Any, asked: Asked[Any]) -> None:
        if isinstance(answer, str):
            for (_, waiter, _), each in zip(asked, decode(answer), strict=True):
                if not waiter.done():
                    waiter.set_result(each)
        else:
            for _, waiter, _ in asked:
                _resolve(waiter, answer)

    async def _send(self, commands: list[tuple[Any, ...]]) -> list[Any]:
        """Make one round trip, again and again until it succeeds. Raises LeaseLost."""
        while True:
            if not self._trusted():
                raise LeaseLost()
            self.trips += 1
            try:
                answers = await self._connection.send(commands)
            except redis_errors.RedisError as error:
                if is_fenced(error):
                    raise LeaseLost("the Redis user of this lease is gone") from error
                if not is_passing(error):
                    raise
            except OSError:
                pass
            else:
                missing, passes = self._why_again(commands, answers)
                if missing and await self._load(missing):
                    continue
                if not missing and not passes:
                    self._down = False
                    return answers
            self._down = True
            await asyncio.sleep(RETRY_S)

    def _why_again(self, commands: list[tuple[Any, ...]], answers: list[Any]) -> tuple[list[str], bool]:
        """Return the scripts that the server lacks, and whether it refused a command for now only. Raises LeaseLost."""
        missing, passes = [], False
        # A server that sends more answers than it was asked for does not end the replica.
        for command, answer in zip(commands, answers, strict=False):
            if not isinstance(answer, Exception):
                continue
            match classify(answer):
                case Meaning.FENCED:
                    raise LeaseLost(
                        "the lease is over: its Redis user was deleted, or another replica has it"
                    ) from answer
                case Meaning.SCRIPT if command[1] in self._sources:
                    missing.append(self._sources[command[1]])
                case Meaning.PASSING:
                    passes = True
        return missing, passes

    async def _load(self, sources: Iterable[str]) -> bool:
        """Have the server load scripts; return whether it did. Lua's collector walks through all that are loaded."""
        with contextlib.suppress(*PASSING):
            answers = await self._connection.send([("SCRIPT", "LOAD", source) for source in sources])
            return not any(isinstance(answer, Exception) for answer in answers)
        return False


def _resolve(waiter: Waiter, answer: Any) -> None:
    if waiter.done():
        return
    if not isinstance(answer, BaseException):
        waiter.set_result(answer)
    elif classify(answer) is Meaning.FULL:
        waiter.set_exception(redis_is_full())
    else:
        waiter.set_exception(answer)
