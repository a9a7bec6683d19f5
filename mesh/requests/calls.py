"""Asking: call an address, or gather from every live database.

A question is put on its streams in one atomic step, with the roster of that moment. It is complete when every part
is: a part that its worker split up says how many answers follow (`forwards`). Whoever must answer is known; once it is
no longer live, nobody waits for it: a gather goes on without that database, a call fails at once.
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
from mesh.requests.deadlines import Alarms
from mesh.requests.protocol import OK, Address, Body, Reply, encode_body
from mesh.requests.streams import ReplyReader
from mesh.wire.clients import Link
from mesh.wire.durability import Copies
from mesh.wire.failures import PASSING, is_fenced

log = structlog.get_logger(__name__)

#: A question older than this is checked against the roster.
LOOK_S = 0.25
PAUSE_S = 0.1
#: Address of every live database at once.
EVERY = "*"
#: Requests that may be out at once; a bound for memory, far beyond what one process can serve.
MOST_OUT = 50_000


class Ask(NamedTuple):
    """One request to be sent."""

    to: Address
    op: str
    body: Mapping[str, Any]


@dataclass(slots=True)
class Answer:
    """What came back for one request: the bodies of all its parts, or the first error."""

    to: str
    #: the request's name to its sender
    key: str
    bodies: list[Body] = field(default_factory=list)
    error: MeshError | None = None
    #: whoever should have answered is no longer live
    gone: bool = False
    #: replies that are still to come
    outstanding: int = 1
    #: of its entry, once it is known
    id: str = ""

    def take(self, reply: Reply) -> None:
        """One of its replies."""
        self.outstanding += reply.forwards - 1
        if reply.status == OK:
            self.bodies.append(reply.body)
        elif self.error is None:
            self.error = reply.failure


class _Exchange:
    """One question and its answers. The link tells it what came of its submission, even if nobody waits any more."""

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

    def __init__(self, name: str, answers: dict[str, Answer], end: Callable[[_Exchange, str], None]) -> None:
        self.answers = answers
        self.asked_at = time.monotonic()
        self.submitted = False
        self.abandoned = False
        self.complete: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        #: a gather's, with which the names of its parts begin; "" where each request has its own
        self._name = name
        self._end = end
        self._told = False
        #: an answer that is still to come, and those after it, which have not been looked at since
        self._open: Answer | None = None
        self._rest: Iterator[Answer] = iter(())

    def done(self) -> bool:
        """Whether it is known what came of the submission."""
        return self._told

    def set_result(self, result: Any) -> None:
        """What the submission script said."""
        self._told = True
        # An empty list is an empty object in Lua's JSON.
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
        """The submission did not reach the script."""
        self._told = True
        if isinstance(error, redis_errors.DataError):
            self.fail(InvalidBody(str(error)))
        else:
            self.fail(error)

    def answer(self, key: str) -> Answer:
        """An answer by its key; a gather's are first heard of by submission or reply, whichever is faster."""
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
    """All questions of one replica that wait for an answer. `run` listens until cancelled."""

    def __init__(self, link: Link, reader: ReplyReader, replica: str, databases: int, copies: Copies | None) -> None:
        self._link = link
        self._reader = reader
        self._replica = replica
        self._databases = databases
        self._copies = copies
        self._numbers = itertools.count(1)
        self._exchanges: dict[str, _Exchange] = {}
        self._endings: asyncio.Queue[tuple[str, str, str]] = asyncio.Queue()
        self._alarms = Alarms(self._expire)
        self._closed: MeshError | None = None

    @property
    def waiting(self) -> int:
        """Requests that wait for an answer."""
        return len(self._exchanges)

    async def ask(self, asks: Sequence[Ask], deadline_ms: int) -> list[Answer]:
        """Send requests, all or none, and wait for all their answers, in order.

        An answer that did not come in time has DeadlineExceeded as its error. Raises NoReplica, Busy, Unavailable
        where nothing was sent.
        """
        answers: dict[str, Answer] = {}
        group: list[str | int] = [len(asks)]
        for to, op, body in asks:
            key, target = self._name(), to.target
            answers[key] = Answer(target, key)
            group += (target, op, key, deadline_ms, _encoded(body))
        await self._exchange(_Exchange("", answers, self._end), answers, group, deadline_ms)
        return [*answers.values()]

    async def gather(self, op: str, body: Mapping[str, Any], deadline_ms: int) -> dict[int, Body]:
        """Ask every live database. Raises Incomplete, with the numbers of those that are missing, and the first
        failure that any of them answered."""
        key = self._name()
        group: list[str | int] = [1, EVERY, op, key, deadline_ms, _encoded(body)]
        exchange = _Exchange(key, {}, self._end)
        await self._exchange(exchange, [key], group, deadline_ms)
        found: dict[int, Body] = {}
        missing: list[int] = []
        for answer in exchange.answers.values():
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

    async def _exchange(
        self, exchange: _Exchange, names: Collection[str], group: Sequence[str | int], deadline_ms: int
    ) -> None:
        if self._closed is not None:
            raise self._closed
        if len(self._exchanges) + len(names) > MOST_OUT:
            raise Busy("too many requests wait for an answer", retry_after=1)
        for name in names:
            self._exchanges[name] = exchange
        alarm = self._alarms.add(exchange, deadline_ms / 1000)
        try:
            self._link.submit(group, exchange)
            await exchange.complete
            if self._copies is not None:
                await self._copies.confirm()
        except asyncio.CancelledError:
            self._abandon(exchange)
            raise
        finally:
            alarm.discard(exchange)
            for name in names:
                self._exchanges.pop(name, None)

    def _abandon(self, exchange: _Exchange) -> None:
        """Nobody waits; what is still on its way to Redis is ended once it is there."""
        exchange.abandoned = True
        if exchange.submitted:
            self._end(exchange, "cancelled")

    def _expire(self, exchange: _Exchange) -> None:
        if exchange.complete.done():
            return
        if not exchange.submitted:
            exchange.abandoned = True
            exchange.fail(DeadlineExceeded("Redis did not take the request in time"))
            return
        for answer in exchange.open_answers:
            answer.error = DeadlineExceeded()
        self._end(exchange, "expired")
        exchange.complete.set_result(None)

    def _end(self, exchange: _Exchange, outcome: str) -> None:
        """Take what was not answered off its stream; if it has been begun, its worker learns so."""
        for answer in exchange.open_answers:
            self._end_one(answer, outcome)

    def _end_one(self, answer: Answer, outcome: str) -> None:
        if answer.id:
            self._endings.put_nowait((keys.REQUESTS + answer.to, answer.id, outcome))

    async def run(self) -> None:
        """Listen for replies, watch over who must answer, end what nobody waits for."""
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._listen())
                tasks.create_task(self._watch())
                tasks.create_task(self._end_abandoned())
        finally:
            self.close(Unavailable("this replica has left the mesh"))

    def close(self, error: MeshError) -> None:
        """Fail whatever waits, and whatever is asked from now on."""
        self._closed = error
        for exchange in list(self._exchanges.values()):
            exchange.fail(error)

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
            # Whoever has been answered goes first, and what is asked next; then the next read is sent.
            await asyncio.sleep(0)
            await asyncio.sleep(0)

    def _take(self, reply: Reply) -> None:
        exchange = self._exchanges.get(reply.key) or self._exchanges.get(reply.key.rpartition(".")[0])
        if exchange is not None:
            exchange.answer(reply.key).take(reply)
            exchange.look()

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(LOOK_S)
            before = time.monotonic() - LOOK_S
            old = {id(e): e for e in self._exchanges.values() if e.submitted and e.asked_at < before}
            if not old:
                continue
            live: set[str] = set()
            for member in await roster.read(self._link, self._databases):
                live |= {member.cls, f"db{member.database}"}
            for exchange in old.values():
                self._drop_gone(exchange, live)

    def _drop_gone(self, exchange: _Exchange, live: set[str]) -> None:
        for answer in exchange.open_answers:
            # What was forwarded waits for another than its first addressee.
            if answer.to in live or answer.bodies:
                continue
            answer.outstanding = 0
            answer.gone = True
            # A gather goes on without.
            if "." not in answer.key:
                answer.error = NoReplica(f"{answer.to} has no live replica any more")
            self._end_one(answer, "cancelled")
        exchange.look()

    async def _end_abandoned(self) -> None:
        while True:
            ended = [await self._endings.get()]
            while not self._endings.empty() and len(ended) < 256:
                ended.append(self._endings.get_nowait())
            await streams.settle(self._link, ended)


def _encoded(body: Mapping[str, Any]) -> str:
    """The body as JSON. Raises InvalidBody."""
    try:
        return encode_body(body)
    except ValueError as error:
        raise InvalidBody(str(error)) from error


def _refusal(code: str, about: str) -> MeshError:
    if code == NoReplica.code:
        return NoReplica(f"no live replica has {_spoken(about)}", address=about)
    return Busy(f"as many requests as may wait for {_spoken(about)} do", retry_after=1, address=about)


def _spoken(target: str) -> str:
    return f"database {target[2:]}" if target.startswith("db") else f"class {target}"
