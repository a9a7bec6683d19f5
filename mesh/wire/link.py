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
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Any, TypeVar

from redis import exceptions as redis_errors

from mesh.errors import LeaseLost, MeshError, Unavailable, redis_is_full
from mesh.wire.batch import Items, SendQueue, Waiter, fail, weight_of
from mesh.wire.codec import decode
from mesh.wire.connection import Encoded, RedisConnection, pack
from mesh.wire.failures import PASSING, Meaning, classify, is_fenced, is_passing
from mesh.wire.script import BatchScript, Script

T = TypeVar("T")

#: The most words in each batch of a round trip: a script must not hold the server for longer than about 10 ms. A word
#: is one argument of a command, or one element of the list that a script gets. A long word counts for several
#: (`weight_of`), so this bounds the bytes, too.
MOST_WORDS = 20_000
#: Wait, in seconds, before a failed round trip is sent again. With a shorter wait, the link would try more often while
#: Redis is down; with a longer one, its callers would wait longer once Redis is back.
RETRY_S = 0.05


class Link:
    """One connection, one round trip at a time.

    If the connection fails, the link sends the same round trip again for as long as `trusted` says that the lease
    holds; without a lease it sends nothing. Sending again is safe. Submissions and commits carry the number of the
    round trip, by which the server recognises what it has done already. It remembers that for `remembered_ms`; a link
    whose attempts have failed for half as long ends, as if the lease were lost. Other commands can safely run twice.

    `submit_script` and `commit_script` run the two batches. A client makes no commits, so its `commit_script` is None.
    After the first arguments of a script the link passes the number of the round trip and the batch, as `batch.lua`
    reads it. If the plain variant can run every item of the batch, the link chooses it, because it is faster. If the
    server's memory is full and the server refuses a batch, the link sends that batch again to the variant for a full
    memory. `scripts` are all other scripts that `script` runs: the link loads one when the server lacks it.
    """

    def __init__(
        self,
        connection: RedisConnection,
        *,
        bus: int,
        database: int,
        trusted: Callable[[], bool],
        remembered_ms: int,
        submit_script: BatchScript,
        commit_script: BatchScript | None,
        scripts: Sequence[Script],
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._connection = connection
        self._bus = bus
        self._database = database
        self._trusted = trusted
        self._repeat_s = remembered_ms / 2000  # half of it, in s: the last attempt may reach Redis later
        self._submit_script = submit_script
        self._commit_script = commit_script
        variant_sets = [batch_script[0] for batch_script in (submit_script, commit_script) if batch_script]
        self._source_by_sha = {
            script.sha: script.source
            for script in itertools.chain(scripts, *[variants.all for variants in variant_sets])
        }
        #: the hash of any variant of a batch's script -> the hash of its variant for a full memory
        self._full_variant_by_sha = {
            script.sha: variants.when_full.sha for variants in variant_sets for script in variants.all
        }
        # An item of the first two queues is a command: its name and its words.
        self._shared: SendQueue[tuple[Any, ...]] = SendQueue()
        self._own: SendQueue[tuple[Any, ...]] = SendQueue()
        self._submissions: SendQueue[Encoded] = SendQueue()
        self._commits: SendQueue[Encoded] = SendQueue()
        #: in the order of what `_take` returns, and of the parameters of `_commands_of_trip` and `_resolve_waiters`
        self._queues: tuple[SendQueue[Any], ...] = (self._shared, self._own, self._submissions, self._commits)
        #: the items of the queues, to see quickly whether anything is to be sent
        self._item_deques = tuple(queue.items for queue in self._queues)
        #: done when a queue has an item
        self._wake_future: asyncio.Future[None] = self._loop.create_future()
        #: the number of the last trip; a trip that is sent again keeps its number
        self._number = 0
        #: most words in each batch of the next trip: smaller than MOST_WORDS after a trip that was too large
        self._most_words = MOST_WORDS
        #: whether the last attempt at a round trip failed
        self._down = False
        #: why the link has ended; None while it runs
        self._end_error: MeshError | None = None
        #: how many attempts at a round trip were made
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

    def submit(self, requests: Encoded, waiter: Waiter) -> None:
        """Submit requests, all or none; the waiter gets their result from submit.lua.

        Raises Busy, the error of a link that has ended, and Unavailable at once while Redis does not answer.
        """
        if self._down:
            raise Unavailable("Redis cannot be reached; retry after 1 s", retry_after=1)
        if self._end_error is not None:
            raise self._end_error
        self._submissions.add(requests, waiter, requests[1])  # the second value of `Encoded` is the weight
        self._send_soon()

    def commit(self, transaction: Encoded, waiter: Waiter, *, first: bool = False) -> None:
        """Commit a transaction; the waiter gets its outcome from commit.lua.

        `first`: an earlier commit of it had a conflict, so it goes before all transactions that wait already. Commits
        and commands, unlike submissions, also queue while Redis does not answer: the lease may outlast that.
        """
        if self._end_error is not None:
            raise self._end_error
        if first:  # as in `submit`, `transaction[1]` is the weight
            self._commits.put_first([(transaction, waiter, transaction[1])])
        else:
            self._commits.add(transaction, waiter, transaction[1])
        self._send_soon()

    def _add(self, queue: SendQueue[Any], item: Any) -> asyncio.Future[Any]:
        if self._end_error is not None:
            raise self._end_error
        waiter: asyncio.Future[Any] = self._loop.create_future()
        queue.add(item, waiter, weight_of(item))
        self._send_soon()
        return waiter

    def _send_soon(self) -> None:
        if not self._wake_future.done():
            self._wake_future.set_result(None)

    @property
    def closed(self) -> bool:
        """Whether the link has ended. Then the membership or the presence has ended, too."""
        return self._end_error is not None

    @property
    def down(self) -> bool:
        """Whether the last attempt at a round trip failed."""
        return self._down

    async def run(self) -> None:
        """Make round trips until cancelled. Raises LeaseLost."""
        try:
            while True:
                while any(self._item_deques):
                    await self._trip()
                self._wake_future = self._loop.create_future()  # an asyncio.Event costs a trip 2 µs more
                await self._wake_future
        except LeaseLost as error:
            self.close(error)
            raise
        finally:
            self.close(Unavailable("this replica is leaving the mesh"))

    def close(self, error: MeshError) -> None:
        """End the link: all waiters and all later callers get this error."""
        if self._end_error is None:
            self._end_error = error
        for queue in self._queues:
            queue.fail(error)

    async def _trip(self) -> None:
        """Send what the queues hold in one trip, and give each waiter its result or an error."""
        taken = self._take()
        self._number += 1
        try:
            commands = self._commands_of_trip(*taken)
            replies = await self._send(commands)
            # The runs of commit.lua and submit.lua come first, so only the first two replies can be theirs.
            if isinstance(replies[0], Exception) or isinstance(replies[min(1, len(replies) - 1)], Exception):
                await self._send_full_variants(commands, replies)
        except redis_errors.DataError:  # from `pack`, before anything was sent
            self._fail_unsendable(taken)
        except redis_errors.RedisError as error:  # a lasting one: only this trip fails, and the link goes on
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
            self._resolve_waiters(replies, *taken)

    async def _send_full_variants(self, commands: list[tuple[Any, ...]], replies: list[Any]) -> None:
        """Send each batch that the server has refused for lack of memory to its variant for a full memory."""
        refused_indexes = [
            index for index, reply in enumerate(replies[:2]) if self._is_refused_for_memory(commands[index], reply)
        ]
        if refused_indexes:
            commands_for_full = [
                ("EVALSHA", self._full_variant_by_sha[commands[index][1]], *commands[index][2:])
                for index in refused_indexes
            ]
            for index, reply in zip(refused_indexes, await self._send(commands_for_full), strict=True):
                replies[index] = reply

    def _is_refused_for_memory(self, command: tuple[Any, ...], reply: Any) -> bool:
        if not isinstance(reply, Exception) or command[0] != "EVALSHA" or command[1] not in self._full_variant_by_sha:
            return False  # no error, or no batch: `command[1]` is the hash of a script
        return classify(reply) is Meaning.FULL

    def _take(self) -> list[Items[Any]]:
        """Remove and return the items of the next trip: at most `_most_words` of each batch, or its first item.

        If `_most_words` is 0, the trip carries one item in all.
        """
        taken: list[Items[Any]] = []
        for queue in self._queues:
            has_room = self._most_words or not any(taken)
            taken.append(queue.take(self._most_words) if queue.items and has_room else [])
        return taken

    def _fail_unsendable(self, taken: Sequence[Items[Any]]) -> None:
        """Fail the items that cannot be encoded or are too large; put the others back into their queues.

        If each item can be sent alone, only the whole trip is too large. Then the next trip takes half as many words.
        """
        all_sendable = True
        for queue, items in zip(self._queues, taken, strict=True):
            sendable = []
            for queued_item in items:
                try:
                    # Submissions and commits are encoded already.
                    if queue in (self._shared, self._own):
                        pack([queued_item[0]])
                except redis_errors.DataError as error:
                    fail([queued_item], error)
                    all_sendable = False
                else:
                    sendable.append(queued_item)
            queue.put_first(sendable)
        if all_sendable:
            largest_weight = max(sum(weight for _, _, weight in items) for items in taken)
            self._most_words = min(self._most_words, largest_weight) // 2

    def _commands_of_trip(
        self, shared: Items[Any], own: Items[Any], submissions: Items[Any], commits: Items[Any]
    ) -> list[tuple[Any, ...]]:
        """Return the commands of a round trip, in the order of the table at the top of this module."""
        commands = []
        # Commits come first: their sends and replies reach other replicas while the server still runs the rest.
        if commits and self._commit_script is not None:
            commands.append(self._batch_command(self._commit_script, commits))
        if submissions:
            commands.append(self._batch_command(self._submit_script, submissions))
        commands.extend(item for item, _, _ in shared)
        if own:
            commands.append(("SELECT", self._database))
            commands.extend(item for item, _, _ in own)
            commands.append(("SELECT", self._bus))
        return commands

    def _batch_command(self, batch_script: BatchScript, items: Items[Encoded]) -> tuple[Any, ...]:
        """Return the EVALSHA that runs a batch.

        Its arguments are the first arguments, the number of the trip, the items as one JSON list, and the long words.
        """
        variants, first_arguments = batch_script
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
        replies: list[Any],
        shared: Items[Any],
        own: Items[Any],
        submissions: Items[Any],
        commits: Items[Any],
    ) -> None:
        """Give the waiters of a trip their results: the replies come in the order of `_commands_of_trip`."""
        remaining = iter(replies)
        for items in (commits, submissions):
            if items:
                self._resolve_items(next(remaining), items)
        for _, waiter, _ in shared:
            _give_reply(waiter, next(remaining))
        if own:
            next(remaining)  # the reply to the SELECT before them; nobody reads that to the SELECT after them
            for _, waiter, _ in own:
                _give_reply(waiter, next(remaining))

    @staticmethod
    def _resolve_items(reply: Any, items: Items[Any]) -> None:
        """Give the waiters of one batch their results, from the one reply of the script that ran the batch."""
        # A script replies with JSON: one result for each item. Any other reply is an error, for all items.
        if isinstance(reply, str):
            for (_, waiter, _), result in zip(items, decode(reply), strict=True):
                if not waiter.done():
                    waiter.set_result(result)
        else:
            for _, waiter, _ in items:
                _give_reply(waiter, reply)

    async def _send(self, commands: list[tuple[Any, ...]]) -> list[Any]:
        """Make one round trip; repeat it until it succeeds. Raises LeaseLost, and lasting errors of Redis."""
        spent_s = 0.0  # on attempts that failed
        while True:
            if not self._trusted():
                raise LeaseLost()
            self.trips, began_at = self.trips + 1, time.monotonic()
            try:
                replies = await self._connection.send(commands)
            except redis_errors.RedisError as error:
                if is_fenced(error):
                    raise LeaseLost("the Redis user of this lease is gone") from error
                if not is_passing(error):
                    raise
            except OSError:
                pass  # the network failed: try again
            else:
                missing_sources, is_refused_for_now = self._reasons_to_repeat(commands, replies)
                if missing_sources and await self._load_scripts(missing_sources):
                    continue  # without a pause: the server has the scripts now
                if not missing_sources and not is_refused_for_now:
                    self._down = False
                    return replies
            self._down = True
            spent_s += time.monotonic() - began_at + RETRY_S
            if spent_s > self._repeat_s:
                raise LeaseLost("Redis did not answer for so long that it may have forgotten the last requests")
            await asyncio.sleep(RETRY_S)

    def _reasons_to_repeat(self, commands: list[tuple[Any, ...]], replies: list[Any]) -> tuple[list[str], bool]:
        """Return the sources of missing scripts, and whether the server cannot run a command now. Raises LeaseLost."""
        missing_sources, is_refused_for_now = [], False
        # Without `strict`, the replica goes on if a faulty server sends too many replies.
        for command, reply in zip(commands, replies, strict=False):
            if not isinstance(reply, Exception):
                continue
            match classify(reply):
                case Meaning.FENCED:
                    raise LeaseLost(
                        "the lease is over: its Redis user was deleted, or another replica has it"
                    ) from reply
                case Meaning.UNKNOWN_SCRIPT if command[1] in self._source_by_sha:
                    missing_sources.append(self._source_by_sha[command[1]])
                case Meaning.PASSING:
                    is_refused_for_now = True
        return missing_sources, is_refused_for_now

    async def _load_scripts(self, sources: Iterable[str]) -> bool:
        """Let the server load scripts; return whether it has loaded all.

        Only missing scripts are loaded: Lua's garbage collector walks through every loaded one, again and again.
        """
        with contextlib.suppress(*PASSING):
            replies = await self._connection.send([("SCRIPT", "LOAD", source) for source in sources])
            return not any(isinstance(reply, Exception) for reply in replies)
        return False


def _give_reply(waiter: Waiter, reply: Any) -> None:
    """Give a waiter the reply to its command, or the error in place of the reply."""
    if waiter.done():
        return
    if not isinstance(reply, BaseException):
        waiter.set_result(reply)
    elif classify(reply) is Meaning.FULL:
        waiter.set_exception(redis_is_full())
    else:
        waiter.set_exception(reply)
