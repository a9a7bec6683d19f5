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
from mesh.wire.batch import Batch, Items, Waiter, fail, weight_of
from mesh.wire.codec import decode
from mesh.wire.connection import Encoded, RedisConnection, pack
from mesh.wire.failures import PASSING, Meaning, classify, is_fenced, is_passing
from mesh.wire.script import Numbered, Script

T = TypeVar("T")

#: Most words in each batch of a round trip: a script must not hold the server for longer than about 10 ms. A word is
#: one argument of a command, or one element of the list that a script gets. A long word counts for several
#: (`weight_of`), so this bounds the bytes, too.
MOST_WORDS = 20_000
#: Wait before a failed round trip is sent again. Without it the link would try at full speed while Redis is down.
RETRY_S = 0.05


class Link:
    """One connection, one round trip at a time.

    If the connection fails, the link sends the same round trip again for as long as `trusted` says that the lease
    holds; without a lease it sends nothing. Sending again is safe. Submissions and commits carry the number of the
    round trip, by which the server recognises what it has done already. All other commands have the same effect when
    they run twice.

    `submit` and `commit` are the scripts that run the two batches. Each comes with its variants and its first
    arguments. A client makes no commits, so its `commit` is None. After the first arguments the link passes the number
    of the round trip and the batch, as `batch.lua` reads it. If the plain variant can run every item of the batch, the
    link chooses it, because it is faster. If the server's memory is full and the server refuses a batch, the link sends
    that batch again to the variant for a full memory.
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
        variant_sets = [numbered[0] for numbered in (submit, commit) if numbered]
        self._source_by_sha = {
            script.sha: script.source
            for script in itertools.chain(scripts, *[variants.all for variants in variant_sets])
        }
        self._full_variant_by_sha = {
            script.sha: variants.when_full.sha for variants in variant_sets for script in variants.all
        }
        self._shared: Batch[tuple[Any, ...]] = Batch()
        self._own: Batch[tuple[Any, ...]] = Batch()
        self._submissions: Batch[Encoded] = Batch()
        self._commits: Batch[Encoded] = Batch()
        #: `_take` returns the items of the batches in this order. `_commands` and `_resolve_waiters` have their
        #: parameters in the same order.
        self._batches: tuple[Batch[Any], ...] = (self._shared, self._own, self._submissions, self._commits)
        #: the items of the batches, to see quickly whether anything waits
        self._item_queues = tuple(batch.items for batch in self._batches)
        #: done when an item waits to be sent
        self._wake: asyncio.Future[None] = self._loop.create_future()
        #: the number of the last trip; a trip that is sent again keeps its number
        self._number = 0
        #: most words in each batch of the next trip: smaller than MOST_WORDS after a trip that was too large
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
        """Submit a group of requests, all or none; the waiter gets its answer from submit.lua.

        Raises Busy; Unavailable at once while Redis does not answer.
        """
        if self._down:
            raise Unavailable("Redis cannot be reached; retry after 1 s", retry_after=1)
        if self._closed is not None:
            raise self._closed
        self._submissions.add(group, waiter, group[1])  # the second value of `Encoded` is the weight
        self._send_soon()

    def commit(self, transaction: Encoded, waiter: Waiter, *, first: bool = False) -> None:
        """Commit a transaction; the waiter gets its outcome from commit.lua.

        With `first` the transaction goes before all that wait already, because an earlier commit of it had a conflict.
        """
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
        """Whether the link has ended. A replica's membership has ended then, too."""
        return self._closed is not None

    @property
    def down(self) -> bool:
        """Whether the last attempt at a round trip failed."""
        return self._down

    async def run(self) -> None:
        """Make round trips until cancelled. Raises LeaseLost."""
        try:
            while True:
                while any(self._item_queues):
                    await self._trip()
                self._wake = self._loop.create_future()  # an asyncio.Event costs a trip 2 µs more
                await self._wake
        except LeaseLost as error:
            self.close(error)
            raise
        finally:
            self.close(Unavailable("this replica is leaving the mesh"))

    def close(self, error: MeshError) -> None:
        """End the link: all waiters and all later callers get this error."""
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
            # The runs of commit.lua and submit.lua come first, so only the first two answers can be theirs.
            if isinstance(answers[0], Exception) or isinstance(answers[min(1, len(answers) - 1)], Exception):
                await self._send_full_variants(commands, answers)
        except redis_errors.DataError:
            self._fail_unsendable(taken)
        except redis_errors.RedisError as error:
            fail(itertools.chain(*taken), error)
        except BaseException as error:
            # The lease is lost, or `run` is cancelled: this was the last round trip.
            error_for_waiters = (
                error if isinstance(error, MeshError) else Unavailable("the connection to Redis was closed")
            )
            fail(itertools.chain(*taken), error_for_waiters)
            raise
        else:
            # After `_fail_unsendable` has halved it, the bound grows again with each trip that succeeds. The 1 lets it
            # grow if it is 0.
            self._most_words = min(MOST_WORDS, 2 * self._most_words + 1)
            self._resolve_waiters(answers, *taken)

    async def _send_full_variants(self, commands: list[tuple[Any, ...]], answers: list[Any]) -> None:
        """Send each batch that the server has refused for lack of memory to its variant for a full memory."""
        refused = [
            index for index, answer in enumerate(answers[:2]) if self._is_refused_when_full(commands[index], answer)
        ]
        if refused:
            full_commands = [
                ("EVALSHA", self._full_variant_by_sha[commands[index][1]], *commands[index][2:]) for index in refused
            ]
            for index, answer in zip(refused, await self._send(full_commands), strict=True):
                answers[index] = answer

    def _is_refused_when_full(self, command: tuple[Any, ...], answer: Any) -> bool:
        if not isinstance(answer, Exception) or command[0] != "EVALSHA" or command[1] not in self._full_variant_by_sha:
            return False
        return classify(answer) is Meaning.FULL

    def _take(self) -> list[Items[Any]]:
        """Remove and return the items of the next trip: at most `_most_words` of each batch, or its first item.

        If `_most_words` is 0, the trip carries one item in all.
        """
        taken: list[Items[Any]] = []
        for batch in self._batches:
            has_room = self._most_words or not any(taken)
            taken.append(batch.take(self._most_words) if batch.items and has_room else [])
        return taken

    def _fail_unsendable(self, taken: Sequence[Items[Any]]) -> None:
        """Fail the items that cannot be encoded or are too large; put the others back into their batches.

        If each item can be sent alone, only the whole trip is too large. Then the next trip takes half as many words.
        """
        all_sendable = True
        for batch, items in zip(self._batches, taken, strict=True):
            sendable = []
            for waiting_item in items:
                try:
                    # Submissions and commits are encoded already.
                    if batch in (self._shared, self._own):
                        pack([waiting_item[0]])
                except redis_errors.DataError as error:
                    fail([waiting_item], error)
                    all_sendable = False
                else:
                    sendable.append(waiting_item)
            batch.put_first(sendable)
        if all_sendable:
            largest_weight = max(sum(weight for _, _, weight in items) for items in taken)
            self._most_words = min(self._most_words, largest_weight) // 2

    def _commands(
        self, shared: Items[Any], own: Items[Any], submissions: Items[Any], commits: Items[Any]
    ) -> list[tuple[Any, ...]]:
        """Return the commands of a round trip, in the order of the table at the top of this module."""
        commands = []
        # Commits come first: their sends and replies reach other replicas while the server still runs the rest.
        if commits and self._commit is not None:
            commands.append(self._batch_command(self._commit, commits))
        if submissions:
            commands.append(self._batch_command(self._submit, submissions))
        commands.extend(item for item, _, _ in shared)
        if own:
            commands.append(("SELECT", self._database))
            commands.extend(item for item, _, _ in own)
            commands.append(("SELECT", self._bus))
        return commands

    def _batch_command(self, script_and_arguments: Numbered, items: Items[Encoded]) -> tuple[Any, ...]:
        """Return the EVALSHA that runs a batch.

        Its arguments are the first arguments, the number of the trip, the items as one JSON list, and the long words.
        """
        variants, first_arguments = script_and_arguments
        script = variants.plain
        texts: list[bytes] = []
        long_words: list[str] = []
        # In Python 3.11 this loop takes two thirds of the time of list comprehensions.
        for (text, _, long_words_of_item, is_plain), _, _ in items:
            texts.append(text)
            long_words += long_words_of_item
            if not is_plain:
                script = variants.complete
        return "EVALSHA", script.sha, *first_arguments, self._number, b"[%b]" % b",".join(texts), *long_words

    def _resolve_waiters(
        self,
        answers: list[Any],
        shared: Items[Any],
        own: Items[Any],
        submissions: Items[Any],
        commits: Items[Any],
    ) -> None:
        remaining = iter(answers)
        for items in (commits, submissions):
            if items:
                self._resolve_batch(next(remaining), items)
        for _, waiter, _ in shared:
            _give_answer(waiter, next(remaining))
        if own:
            next(remaining)  # the answer of the SELECT before them; nobody reads that of the SELECT after them
            for _, waiter, _ in own:
                _give_answer(waiter, next(remaining))

    @staticmethod
    def _resolve_batch(answer: Any, items: Items[Any]) -> None:
        # A script answers with JSON: one result for each item. Any other answer is an error, for all items.
        if isinstance(answer, str):
            for (_, waiter, _), result in zip(items, decode(answer), strict=True):
                if not waiter.done():
                    waiter.set_result(result)
        else:
            for _, waiter, _ in items:
                _give_answer(waiter, answer)

    async def _send(self, commands: list[tuple[Any, ...]]) -> list[Any]:
        """Make one round trip; repeat it until it succeeds. Raises LeaseLost, and lasting errors of Redis."""
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
                pass  # the network failed: try again
            else:
                missing_sources, is_refused_for_now = self._reasons_to_repeat(commands, answers)
                if missing_sources and await self._load_scripts(missing_sources):
                    continue
                if not missing_sources and not is_refused_for_now:
                    self._down = False
                    return answers
            self._down = True
            await asyncio.sleep(RETRY_S)

    def _reasons_to_repeat(self, commands: list[tuple[Any, ...]], answers: list[Any]) -> tuple[list[str], bool]:
        """Return the sources of missing scripts, and whether the server cannot run a command now. Raises LeaseLost."""
        missing_sources, is_refused_for_now = [], False
        # Not strict: if a faulty server sends too many answers, the replica goes on.
        for command, answer in zip(commands, answers, strict=False):
            if not isinstance(answer, Exception):
                continue
            match classify(answer):
                case Meaning.FENCED:
                    raise LeaseLost(
                        "the lease is over: its Redis user was deleted, or another replica has it"
                    ) from answer
                case Meaning.SCRIPT if command[1] in self._source_by_sha:
                    missing_sources.append(self._source_by_sha[command[1]])
                case Meaning.PASSING:
                    is_refused_for_now = True
        return missing_sources, is_refused_for_now

    async def _load_scripts(self, sources: Iterable[str]) -> bool:
        """Let the server load scripts; return whether it has loaded all.

        Only missing scripts are loaded: Lua's garbage collector walks through every loaded one, again and again.
        """
        with contextlib.suppress(*PASSING):
            answers = await self._connection.send([("SCRIPT", "LOAD", source) for source in sources])
            return not any(isinstance(answer, Exception) for answer in answers)
        return False


def _give_answer(waiter: Waiter, answer: Any) -> None:
    if waiter.done():
        return
    if not isinstance(answer, BaseException):
        waiter.set_result(answer)
    elif classify(answer) is Meaning.FULL:
        waiter.set_exception(redis_is_full())
    else:
        waiter.set_exception(answer)
