"""The calls and gathers of one process: it submits their requests, and collects the replies.

In this module a call is what one caller waits for: a request, several requests that are sent together, or a gather.
A group is the words of one submission, as submit.lua reads them. `deadline_ms` is the time from now until the deadline.

One atomic step puts all requests of a call on their streams; it also reads the roster. A call is complete when all of
its requests are answered. If a handler forwards a request, the field `forwards` of its reply says how many more replies
follow.

No call waits for an address that is no longer live. A gather goes on without such a database, unless the database holds
data and is expected back. All other calls fail.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Awaitable, Callable, Collection, Coroutine, Mapping, Sequence
from typing import Any

import structlog
from redis import exceptions as redis_errors

from mesh import keys, roster
from mesh.errors import (
    Busy,
    DeadlineExceeded,
    Incomplete,
    InvalidBody,
    MeshError,
    Unavailable,
    UsageError,
)
from mesh.later.due import Due
from mesh.requests import streams, tracing
from mesh.requests.answers import Answer, Ask, CallInProgress, Replies
from mesh.requests.deadlines import Deadlines
from mesh.requests.filters import Among
from mesh.requests.in_place import InPlace
from mesh.requests.protocol import Address, Decode, Reply, decode_object, encode_body
from mesh.requests.refusals import incomplete_error, refusal
from mesh.requests.streams import ReplyReader
from mesh.roster import Missing
from mesh.wire.connection import Encoded, encode_words
from mesh.wire.durability import Durability
from mesh.wire.link import Link

log = structlog.get_logger(__name__)

#: While calls take longer than this, the roster is read at this interval, to see whether their addresses are live. Most
#: calls are faster, so they cost no read. With a longer interval, callers of a lost replica get their error later.
WATCH_AFTER_S = 0.25
#: Stands for every live database at once, in place of the name of an address.
EVERY = "*"
#: The most requests of one process that wait for replies. This bounds the memory; no process can serve nearly as many.
MOST_AWAITED = 50_000


class Calls:
    """All calls in progress of one replica or client. `run` reads replies until cancelled."""

    def __init__(
        self,
        link: Link,
        reader: ReplyReader,
        sender: str,
        durability: Durability | None,
        only_reads: Callable[[str], bool] = lambda _: False,
        later_bound: int = 0,
        in_place: InPlace | None = None,
    ) -> None:
        self._link = link
        self._reader = reader
        #: the id of this replica or client: the keys of its requests begin with it
        self._sender = sender
        self._durability = durability
        #: returns whether an operation is known to have no effect; its requests are accepted even when memory is full
        self._only_reads = only_reads
        #: how many requests may wait in `mesh:later`; submit.lua refuses more. 0: none may wait
        self._later_bound = later_bound
        self._in_place = in_place
        self._loop = asyncio.get_running_loop()
        self._key_numbers = itertools.count(1)
        #: by the key of each request, or of a gather: the call that waits for it
        self._in_progress: dict[str, CallInProgress] = {}
        #: requests that nobody waits for any more: `_remove_requests` removes them
        self._removals: asyncio.Queue[streams.Removal] = asyncio.Queue()
        self._deadlines = Deadlines(self._expire)
        #: the error that all later calls raise, once the replica or client has left the mesh; None until then
        self._closed: MeshError | None = None
        #: Sends all requests or none, and returns their answers in the same order. If an answer is late, its error is
        #: DeadlineExceeded. If nothing was sent, raises NoReplica, Busy, Unavailable or InvalidBody.
        self.ask: Callable[[Sequence[Ask], int, Decode], Coroutine[Any, Any, list[Answer]]] = (
            self._ask_in_span if tracing.is_on() else self._ask
        )

    @property
    def unanswered(self) -> int:
        """The number of requests that wait for replies; a gather counts as one.

        A replica or client that leaves waits until it is 0, but no longer than the default deadline.
        """
        return len(self._in_progress)

    async def _ask_in_span(self, asks: Sequence[Ask], deadline_ms: int, decode: Decode) -> list[Answer]:
        destinations = " ".join(sorted({ask.to.stream for ask in asks}))
        op = asks[0].op if asks else ""
        with tracing.span("PRODUCER", *tracing.sending(destinations, op, len(asks))):
            return await self._ask(asks, deadline_ms, decode)

    def _ask(self, asks: Sequence[Ask], deadline_ms: int, decode: Decode) -> Coroutine[Any, Any, list[Answer]]:
        answers: dict[str, Answer] = {}
        if len(asks) > 1 and any(ask.once or ask.read for ask in asks):
            raise UsageError("a request with an idempotency key, or with a key to read, is sent without others")
        all_only_read, without_options = True, True
        # The first word of a group is the number of requests, which is negative if all of them only read. The second
        # has the fields that all entries have, such as `call` and `traceparent`. Five words for each request follow.
        group: list[str | int] = [0, tracing.about()]
        for ask in asks:
            op, once, limit = ask.op, ask.once, ask.limit
            all_only_read = all_only_read and self._only_reads(op)
            request_key, target, body_text = self._next_key(), _target_of(ask.to), _encoded(ask.body)
            ttl_and_options = str(deadline_ms)
            if once is None and not limit:
                answers[request_key] = Answer(target, request_key)
            else:
                answers[request_key] = Answer(target, request_key, None if once is None else (op, once.key), limit)
                ttl_and_options, without_options = ask.ttl_and_options(deadline_ms, body_text, self._later_bound), False
            if ask.read:
                # submit.lua reads these shared keys, and adds their values to the entry as the field `found`. It takes
                # the last name and value of the second word for this, so other requests need no further word.
                shared_keys = ",".join([keys.SHARED + name for name in ask.read])
                group[1] = f"{group[1]} read {shared_keys}".lstrip()
            group += (target, op, request_key, ttl_and_options, body_text)
        group[0] = -len(asks) if all_only_read else len(asks)
        call = CallInProgress("", answers, self._remove_unanswered, decode, self._loop.create_future())
        in_place = self._in_place if asks and asks[0].in_place and without_options and len(asks) == 1 else None
        return self._wait_for(call, answers, group, deadline_ms, without_options, in_place)

    async def send(self, ask: Ask, key: str = "", due: Due | None = None) -> None:
        """Send a request whose reply nobody waits for. `due` says when it begins; `key` is the sender's name for it.

        Raises NoReplica (except for a request with a due time), Busy, Unavailable, InvalidBody and KeyReused. Raises
        SetupError if the Redis user may not send requests for later.
        """
        body_text = _encoded(ask.body)
        # The number 0 tells submit.lua that nobody waits. A ttl of 0 means no deadline.
        ttl_and_options = ask.ttl_and_options(0, body_text, self._later_bound, due)
        group: list[str | int] = [0, tracing.about(), _target_of(ask.to), ask.op, key, ttl_and_options, body_text]
        submission: asyncio.Future[Any] = self._loop.create_future()
        self._link.submit(_words_of(group), submission)
        result = await submission
        if isinstance(result, dict):  # submit.lua answers a refusal with an object, and all else with a list
            raise refusal(result["error"], result["about"])

    def gather(
        self,
        op: str,
        body: Mapping[str, Any] | bytes,
        deadline_ms: int,
        decode: Decode = decode_object,
        among: Among | None = None,
    ) -> Awaitable[Replies[Any]]:
        """Send one request to every live database, or only to those in `among`, and return the replies by database.

        If databases do not answer in time, raises Incomplete with their numbers and the replies of the others. If a
        database answers with an error, raises the first such error.
        """
        gathering = self._gather(op, body, deadline_ms, decode, EVERY if among is None else among.target)
        if not tracing.is_on():
            return gathering
        return tracing.traced(gathering, "PRODUCER", *tracing.sending(keys.REQUESTS + EVERY, op, 1))

    async def _gather(
        self, op: str, body: Mapping[str, Any] | bytes, deadline_ms: int, decode: Decode, target: str
    ) -> Replies[Any]:
        gather_key = self._next_key()
        # For submit.lua a gather is one request. As in `_ask`, the number is negative if the request only reads.
        number = -1 if self._only_reads(op) else 1
        group: list[str | int] = [number, tracing.about(), target, op, gather_key, str(deadline_ms), _encoded(body)]
        call = CallInProgress(gather_key, {}, self._remove_unanswered, decode, self._loop.create_future())
        answers = await self._wait_for(call, [gather_key], group, deadline_ms)
        replies: Replies[Any] = Replies()
        replies.left_out = sorted(call.left_out)
        unanswered: list[int] = []
        for answer in answers:
            database = int(answer.to.removeprefix("db"))
            if isinstance(answer.error, DeadlineExceeded):
                unanswered.append(database)
            elif answer.error is not None:
                answer.error.add_note(f"database {database} answered this to a gather")
                raise answer.error
            elif not answer.gone:
                replies[database] = answer.bodies[0]
        if unanswered:
            unanswered.sort()
            raise Incomplete(f"databases {unanswered} did not answer in time", partial=replies, missing=unanswered)
        return replies

    def _next_key(self) -> str:
        return f"{self._sender}-{next(self._key_numbers)}"

    async def _wait_for(
        self,
        call: CallInProgress,
        reply_keys: Collection[str],
        group: Sequence[str | int],
        deadline_ms: int,
        without_options: bool = False,
        in_place: InPlace | None = None,
    ) -> list[Answer]:
        """Submit a call and wait until it is complete. `reply_keys` are the keys by which `_take` finds the call.

        `_words_of` explains `without_options`.
        """
        if self._closed is not None:
            raise self._closed
        if len(self._in_progress) + len(reply_keys) > MOST_AWAITED:
            raise Busy(
                f"{MOST_AWAITED} requests of this replica already wait for replies; retry after 1 s", retry_after=1
            )
        for reply_key in reply_keys:
            self._in_progress[reply_key] = call
        expiring_together = self._deadlines.add(call, deadline_ms / 1000)  # all calls that share its timer
        try:
            if in_place is None or not in_place.begin(group, call, lambda: self._submit(group, call, without_options)):
                self._submit(group, call, without_options)
            await call.completed
            # If the settings ask for it, copies of Redis confirm the effect before the caller gets the answers.
            if self._durability is not None:
                await self._durability.confirm()
            return [*call.answers.values()]
        except asyncio.CancelledError:
            self._abandon(call)
            raise
        finally:
            if call.waits_for_replies:
                self._reader.remove_waiting()
            expiring_together.discard(call)
            for reply_key in reply_keys:
                self._in_progress.pop(reply_key, None)

    def _submit(self, group: Sequence[str | int], call: CallInProgress, without_options: bool) -> None:
        words = _words_of(group, without_options)
        call.waits_for_replies = True
        self._reader.add_waiting()
        self._link.submit(words, call)

    def _abandon(self, call: CallInProgress) -> None:
        """Remove the requests of a cancelled call.

        If Redis has not accepted them yet, `CallInProgress.set_result` removes them as soon as they are accepted.
        """
        call.abandoned = True
        if call.submitted:
            self._remove_unanswered(call, "cancelled")

    def _expire(self, call: CallInProgress) -> None:
        """End a call whose deadline has passed: its open requests get DeadlineExceeded. `Deadlines` calls this."""
        if call.completed.done():
            return
        if not call.submitted:
            call.abandoned = True
            call.fail(DeadlineExceeded("Redis did not accept the request before its deadline"))
            return
        for answer in call.open_answers:
            answer.error = DeadlineExceeded()
        self._remove_unanswered(call, "expired")
        call.completed.set_result(None)

    def _remove_unanswered(self, call: CallInProgress, counted_as: str) -> None:
        """Remove unanswered requests from their streams, and count them in the books as "expired" or "cancelled".

        A replica that works on such a request notices and stops.
        """
        for answer in call.open_answers:
            self._queue_removal(answer, counted_as)

    def _queue_removal(self, answer: Answer, counted_as: str) -> None:
        if answer.id:  # "" if it is not known to be on a stream
            self._removals.put_nowait((keys.REQUESTS + answer.to, answer.id, counted_as, answer.about_options))

    async def run(self) -> None:
        """Read replies, watch the roster, and remove requests that nobody waits for."""
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._reader.listen(self._take))
                tasks.create_task(self._watch())
                tasks.create_task(self._remove_requests())
        finally:
            self.close(Unavailable("this replica has left the mesh"))

    def close(self, error: MeshError) -> None:
        """Let all calls fail: those in progress and all later ones raise this error."""
        self._closed = error
        for call in list(self._in_progress.values()):
            call.fail(error)

    def _take(self, reply: Reply, flat: Sequence[str]) -> None:
        """Give a reply to the call that waits for it. `ReplyReader.read` calls this; `flat` is the whole entry."""
        request_key = reply[0]
        # A request of a gather has the key "<key of the gather>.db<n>". Other keys have no dot: the names of replicas
        # and clients, with which they begin, are a word, "-" and hexadecimal digits.
        call = self._in_progress.get(request_key) or self._in_progress.get(request_key.rpartition(".")[0])
        if call is not None and not call.completed.done():  # a caller may have a reply from elsewhere: see `in_place`
            call.take(reply, flat)

    async def _watch(self) -> None:
        """Read the roster while calls are old, and let them stop waiting for addresses that are no longer live."""
        while True:
            await asyncio.sleep(WATCH_AFTER_S)
            # `old` has the calls (`e`) that are older than WATCH_AFTER_S, each once. A call of several requests has
            # several keys in `_in_progress`, so the ids of the objects are the keys of `old`.
            before = time.monotonic() - WATCH_AFTER_S
            old = {id(e): e for e in self._in_progress.values() if e.submitted and e.asked_at < before}
            if not old:
                continue
            live_targets: set[str] = set()
            for member in await roster.read(self._link):
                live_targets |= {member.cls, f"db{member.database}"}
            gone_targets = {answer.to for call in old.values() for answer in call.open_answers} - live_targets
            if gone_targets:
                missing = await roster.read_missing(self._link)
                for call in old.values():
                    self._stop_waiting_for(call, gone_targets, missing)

    def _stop_waiting_for(self, call: CallInProgress, gone_targets: set[str], missing: Sequence[Missing]) -> None:
        """Let a call no longer wait for answers of the addresses in `gone_targets`, which are not live."""
        # A row of `missing` has a class only while its replica is expected back.
        expected_back = {name for each in missing if each.cls for name in (each.cls, f"db{each.database}")}
        holding_data = {f"db{each.database}": each.database for each in missing if each.has_data}
        for answer in call.open_answers:
            # If a reply has come already, the request was forwarded: other addresses send the replies still to come.
            if answer.to not in gone_targets or answer.bodies:
                continue
            answer.outstanding = 0
            answer.gone = True
            if "." not in answer.key:  # only the keys of a gather's requests have a dot (see `_take`)
                answer.error = roster.absence_error(answer.to, is_expected_back=answer.to in expected_back)
            elif answer.to in holding_data and answer.to in expected_back:
                answer.error = incomplete_error([holding_data[answer.to]])
            elif answer.to in holding_data:
                # A gather goes on without this database, and names it in `left_out`.
                call.left_out |= {holding_data[answer.to]}
            self._queue_removal(answer, "cancelled")
        call.complete_if_answered()

    async def _remove_requests(self) -> None:
        while True:
            removals = [await self._removals.get()]
            # At most 256 in one run of end.lua, because the server does nothing else meanwhile. Fewer need more runs.
            while not self._removals.empty() and len(removals) < 256:
                removals.append(self._removals.get_nowait())
            await streams.remove(self._link, removals)


def _target_of(to: Address) -> str:
    """Return the name of an address in scripts. Raises UsageError for anything else."""
    if not isinstance(to, Address):
        raise UsageError(f'a request is sent to Class("A") or Database(3), not to {to!r:.100}')
    return to.target


def _words_of(group: Sequence[str | int], without_options: bool = False) -> Encoded:
    """Return a group of requests as the link takes it. Raises InvalidBody.

    `without_options`: no request has options, so the plain variant of submit.lua can submit the group.
    """
    try:
        return encode_words(group, without_options)
    except redis_errors.DataError as error:
        raise InvalidBody(str(error)) from error


def _encoded(body: Mapping[str, Any] | bytes) -> str:
    """Return a body as JSON text. Raises InvalidBody."""
    try:
        return encode_body(body)
    except ValueError as error:
        raise InvalidBody(str(error)) from error
