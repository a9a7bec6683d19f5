"""The caller's side: call an address, or gather from every live database.

All requests of a call are put on their streams in one atomic step, which also reads the roster. A call is complete
when each of its requests is. A reply says in `forwards` how many further replies its worker has asked others for. When
an address is no longer live, nobody waits for it: a gather goes on without that database, and a call fails at once.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import structlog
from redis import exceptions as redis_errors

from mesh import keys, roster
from mesh.errors import Busy, DeadlineExceeded, Incomplete, InvalidBody, LeaseLost, MeshError, NoReplica, Unavailable
from mesh.requests import streams
from mesh.requests.deadlines import Deadlines
from mesh.requests.protocol import NEVER, OK, Address, Body, Reply, encode_body
from mesh.requests.streams import ReplyReader
from mesh.wire.durability import Durability
from mesh.wire.failures import PASSING, is_fenced
from mesh.wire.link import Link

log = structlog.get_logger(__name__)

#: Calls that take longer than this are checked against the roster.
LOOK_S = 0.25
PAUSE_S = 0.1
#: Address of every live database at once.
EVERY = "*"
#: Most requests that wait for replies: a bound for memory, far beyond what one process can serve.
MOST_OUT = 50_000


class Ask(NamedTuple):
    """One request to send."""

    to: Address
    op: str
    body: Mapping[str, Any]


@dataclass(slots=True)
class Answer:
    """The replies to one request: the bodies of all its parts, or the first error."""

    to: str
    #: the name that the caller gave the request
    key: str
    bodies: list[Body] = field(default_factory=list)
    error: MeshError | None = None
    #: its address is no longer live
    gone: bool = False
    #: replies that are still to come
    outstanding: int = 1
    #: the id of its entry, once that is known
    id: str = ""

    def take(self, reply: Reply) -> None:
        """Add a reply."""
        self.outstanding += reply.forwards - 1
        if reply.status == OK:
            self.bodies.append(reply.body)
        elif self.error is None:
            self.error = reply.failure

    def merged(self) -> Body:
        """Return the parts of the reply, merged key by key. Raises the first error."""
        if self.error is not None:
            raise self.error
        merged: Body = {}
        for part in self.bodies:
            merged.update(part)
        return merged


class _Question:
    """A call or a gather in progress. As the waiter of its submission it gets the result even after a cancellation."""

    __slots__ = (
        "_end",
        "_name",
        "_open",
        "_rest",
        "_told",
        "abandoned",
        "answers",
        "asked_at",
        "complete",
        "submitted",
    )

    def __init__(self, name: str, answers: dict[str, Answer], end: Callable[[_Question, str], None]) -> None:
        self.answers = answers
        self.asked_at = time.monotonic()
        self.submitted = False
        self.abandoned = False
        self.complete: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        #: the common beginning of the names of a gather's requests; "" for a call
        self._name = name
        self._end = end
        self._told = False
        #: an answer that is still to come, and those after it, which have not been looked at since
        self._open: Answer | None = None
        self._rest: Iterator[Answer] = iter(())

    def done(self) -> bool:
        """Return whether the submission has a result."""
        return self._told

    def set_result(self, result: Any) -> None:
        """Receive the result of the submission script."""
        self._told = True
        # Lua writes an empty list as an empty object.
        if isinstance(result, dict) and result:
            self.fail(_refusal(result["error"], result["about"]))
            return
        if self._name:
            for to, id in result[0].items():
                self.answer(f"{self._name}.{to}").id = id
        else:
            for answer, id in zip(self.answers.values(), result, strict=True):
                answer.id = id
        self.submitted = True
        self._rest = iter(list(self.answers.values()))
        if self.abandoned:
            self._end(self, "cancelled")
        self.look()

    def set_exception(self, error: BaseException) -> None:
        """Receive the reason why there was no submission."""
        self._told = True
        if isinstance(error, redis_errors.DataError):
            self.fail(InvalidBody(str(error)))
        else:
            self.fail(error)

    def answer(self, key: str) -> Answer:
        """Return an answer by its key. A gather learns its keys from the submission or from an early reply."""
        answer = self.answers.get(key)
        if answer is None:
            answer = self.answers[key] = Answer(key.rpartition(".")[2], key)
        return answer

    @property
    def open_answers(self) -> list[Answer]:
        return [answer for answer in self.answers.values() if answer.outstanding > 0]

    def look(self) -> None:
        """Complete the exchange if no answer is still to come. Each answer is passed once, however many there are."""
        if not self.submitted or self.complete.done():
            return
        while self._open is None or self._open.outstanding <= 0:
            self._open = next(self._rest, None)
            if self._open is None:
                self.complete.set_result(None)
                return

    def fail(self, error: BaseException) -> None:
        if not self.complete.done():
            self.complete.set_exception(error)


class Calls:
    """All calls of one replica that are in progress. `run` reads replies until cancelled."""

    def __init__(
        self, link: Link, reader: ReplyReader, replica: str, databases: int, durability: Durability | None
    ) -> None:
        self._link = link
        self._reader = reader
        self._replica = replica
        self._databases = databases
        self._durability = durability
        self._numbers = itertools.count(1)
        self._questions: dict[str, _Question] = {}
        self._endings: asyncio.Queue[tuple[str, str, str]] = asyncio.Queue()
        self._deadlines = Deadlines(self._expire)
        self._closed: MeshError | None = None

    @property
    def waiting(self) -> int:
        """The number of requests that wait for replies."""
        return len(self._questions)

    async def ask(self, asks: Sequence[Ask], deadline_ms: int) -> list[Answer]:
        """Send requests, all or none, and wait for all answers, in order.

        An answer that is late has the error DeadlineExceeded. Raises NoReplica, Busy, Unavailable or InvalidBody if
        nothing was sent.
        """
        answers: dict[str, Answer] = {}
        group: list[str | int] = [len(asks)]
        for to, op, body in asks:
            key, target = self._name(), to.target
            answers[key] = Answer(target, key)
            group += (target, op, key, deadline_ms, _encoded(body))
        await self._ask(_Question("", answers, self._end), answers, group, deadline_ms)
        return [*answers.values()]

    async def send(self, ask: Ask) -> None:
        """Send a request whose reply nobody waits for. Raises NoReplica, Busy, Unavailable or InvalidBody."""
        to, op, body = ask
        group: list[str | int] = [1, to.target, op, "", NEVER, _encoded(body)]
        sent: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._link.submit(group, sent)
        try:
            result = await sent
        except redis_errors.DataError as error:
            raise InvalidBody(str(error)) from error
        if isinstance(result, dict):
            raise _refusal(result["error"], result["about"])

    async def gather(self, op: str, body: Mapping[str, Any], deadline_ms: int) -> dict[int, Body]:
        """Send one request to every live database, and return the replies by database.

        Raises Incomplete with the numbers of missing databases, or the first error that a database answered.
        """
        key = self._name()
        group: list[str | int] = [1, EVERY, op, key, deadline_ms, _encoded(body)]
        question = _Question(key, {}, self._end)
        await self._ask(question, [key], group, deadline_ms)
        found: dict[int, Body] = {}
        missing: list[int] = []
        for answer in question.answers.values():
            number = int(answer.to.removeprefix("db"))
            if isinstance(answer.error, DeadlineExceeded):
                missing.append(number)
            elif answer.error is not None:
                raise answer.error
            elif not answer.gone:
                found[number] = answer.bodies[0]
        if missing:
            raise Incomplete(f"databases {sorted(missing)} did not answer in time", missing=sorted(missing))
        return found

    def _name(self) -> str:
        return f"{self._replica}-{next(self._numbers)}"

    async def _ask(
        self, question: _Question, names: Collection[str], group: Sequence[str | int], deadline_ms: int
    ) -> None:
        if self._closed is not None:
            raise self._closed
        if len(self._questions) + len(names) > MOST_OUT:
            raise Busy(f"{MOST_OUT} requests of this replica already wait for replies; retry after 1 s", retry_after=1)
        for name in names:
            self._questions[name] = question
        deadline = self._deadlines.add(question, deadline_ms / 1000)
        try:
            self._link.submit(group, question)
            await question.complete
            if self._durability is not None:
                await self._durability.confirm()
        except asyncio.CancelledError:
            self._abandon(question)
            raise
        finally:
            deadline.discard(question)
            for name in names:
                self._questions.pop(name, None)

    def _abandon(self, question: _Question) -> None:
        """Remove the requests of a cancelled call; those on their way to Redis as soon as they are there."""
        question.abandoned = True
        if question.submitted:
            self._end(question, "cancelled")

    def _expire(self, question: _Question) -> None:
        if question.complete.done():
            return
        if not question.submitted:
            question.abandoned = True
            question.fail(DeadlineExceeded("Redis did not accept the request before its deadline"))
            return
        for answer in question.open_answers:
            answer.error = DeadlineExceeded()
        self._end(question, "expired")
        question.complete.set_result(None)

    def _end(self, question: _Question, outcome: str) -> None:
        """Remove unanswered requests from their streams; the worker of one in progress learns of it."""
        for answer in question.open_answers:
            self._end_one(answer, outcome)

    def _end_one(self, answer: Answer, outcome: str) -> None:
        if answer.id:
            self._endings.put_nowait((keys.REQUESTS + answer.to, answer.id, outcome))

    async def run(self) -> None:
        """Read replies, watch the roster, and remove requests that nobody waits for."""
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._listen())
                tasks.create_task(self._watch())
                tasks.create_task(self._end_abandoned())
        finally:
            self.close(Unavailable("this replica has left the mesh"))

    def close(self, error: MeshError) -> None:
        """Raise an error in all calls, and in all later ones."""
        self._closed = error
        for question in list(self._questions.values()):
            question.fail(error)

    async def _listen(self) -> None:
        while True:
            try:
                replies = await self._reader.read()
            except (*PASSING, redis_errors.ResponseError) as error:
                if is_fenced(error):
                    raise LeaseLost("the Redis user of this lease is gone") from error
                log.warning("replies could not be read", error=str(error))
                await asyncio.sleep(PAUSE_S)
                continue
            for reply in replies:
                self._take(reply)
            # Let the callers go on and send their next requests before the next read.
            await asyncio.sleep(0)
            await asyncio.sleep(0)

    def _take(self, reply: Reply) -> None:
        question = self._questions.get(reply.key) or self._questions.get(reply.key.rpartition(".")[0])
        if question is not None:
            question.answer(reply.key).take(reply)
            question.look()

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(LOOK_S)
            before = time.monotonic() - LOOK_S
            old = {id(e): e for e in self._questions.values() if e.submitted and e.asked_at < before}
            if not old:
                continue
            live: set[str] = set()
            for member in await roster.read(self._link, self._databases):
                live |= {member.cls, f"db{member.database}"}
            for question in old.values():
                self._drop_gone(question, live)

    def _drop_gone(self, question: _Question, live: set[str]) -> None:
        for answer in question.open_answers:
            # The rest of a forwarded request waits for other addresses.
            if answer.to in live or answer.bodies:
                continue
            answer.outstanding = 0
            answer.gone = True
            # A gather goes on without this database.
            if "." not in answer.key:
                answer.error = NoReplica(f"{_name_of(answer.to)} no longer has a live replica")
            self._end_one(answer, "cancelled")
        question.look()

    async def _end_abandoned(self) -> None:
        while True:
            ended = [await self._endings.get()]
            while not self._endings.empty() and len(ended) < 256:
                ended.append(self._endings.get_nowait())
            await streams.end(self._link, ended)


def _encoded(body: Mapping[str, Any]) -> str:
    """The body as JSON. Raises InvalidBody."""
    try:
        return encode_body(body)
    except ValueError as error:
        raise InvalidBody(str(error)) from error


def _refusal(code: str, about: str) -> MeshError:
    if code == NoReplica.code:
        return NoReplica(f"no live replica has {_name_of(about)}", address=about)
    return Busy(f"the queue of {_name_of(about)} is full; retry after 1 s", retry_after=1, address=about)


def _name_of(target: str) -> str:
    return f"database {target[2:]}" if target.startswith("db") else f"class {target}"
