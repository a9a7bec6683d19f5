"""One call or gather in progress: its requests, and the answers to them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from mesh.discovery import LIMITS, ONCE
from mesh.errors import InvalidReply, MeshError
from mesh.groups.reader import fields_of
from mesh.later.due import Due
from mesh.requests import tracing
from mesh.requests.once import Once
from mesh.requests.protocol import OK, Address, Body, Decode, Reply, decode_object, error_of_reply
from mesh.requests.refusals import refusal
from mesh.wire.codec import encode

T = TypeVar("T")


@dataclass(slots=True)
class Ask:
    """One request to send, before it has a name. A request with an idempotency key is sent without others."""

    to: Address
    op: str
    body: Mapping[str, Any] | bytes
    once: Once | None = None
    #: its limit, as limits.lua reads it; "" for none
    limit: str = ""
    #: Names of shared keys, without spaces and commas. submit.lua reads these keys, and the handler gets their values
    #: in `Request.found`. Such a request is sent without others.
    read: Sequence[str] = ()
    #: whether this replica may run the handler itself, before the submission. `mesh.requests.in_place` says for which
    #: handlers this is right.
    in_place: bool = False

    @property
    def level(self) -> int:
        """The highest level of its options. All live replicas must understand this level: see `mesh.discovery`.

        A due time is no field of an Ask, so the sender of a delayed request adds the level of delays (LATER). `read`
        has no level: a handler that gets no `found` reads the keys itself.
        """
        return LIMITS if self.limit else ONCE if self.once else 0

    def ttl_and_options(self, ttl_ms: int, body: str, later_bound: int, due: Due | None = None) -> str:
        """Return the word from which submit.lua reads the ttl, the due time and the options.

        `body` is the text whose SHA-1 goes with an idempotency key. `later_bound` is how many requests may wait in all.
        """
        # A request for later without an idempotency key has its due time and its limit as plain text. It has no ttl:
        # nobody waits for it, so it gets no deadline. submit.lua knows this form by the second word, which is a time;
        # options begin with "{".
        if self.once is None and due is not None:
            return f"{later_bound} {due.word}{f' {self.limit}' if self.limit else ''}"
        if self.once is None and not self.limit:
            return str(ttl_ms)
        options: dict[str, Any] = {} if self.once is None else dict(self.once.options(body))
        if self.limit or due is not None:
            options["most"] = later_bound
        if self.limit:
            options["limit"] = self.limit
        if due is not None:
            options["due"] = due.word
        return f"{ttl_ms} {encode(options)}"


def needed_ops_and_level(asks: Sequence[Ask]) -> tuple[list[str], int]:
    """Return what `Directory.check` takes: the operations of requests, and the highest level of their options."""
    return [ask.op for ask in asks], max((ask.level for ask in asks), default=0)


class Answer:
    """The replies to one request: the bodies of all its parts, or the first error. Forwards divide it into parts."""

    __slots__ = ("bodies", "error", "gone", "id", "key", "limit", "once", "outstanding", "to")

    def __init__(self, to: str, key: str, once: tuple[str, str] | None = None, limit: str = "") -> None:
        #: the address of the request as text, such as "A" or "db3"; in a gather always a database, such as "db3"
        self.to = to
        #: the caller's name for the request
        self.key = key
        #: Operation and idempotency key; None without a key. If this caller stops waiting, they show end.lua whether
        #: other callers wait for the same answer. Then the request stays.
        self.once = once
        #: its limit; "" for none
        self.limit = limit
        #: the bodies of the replies without an error, in the order in which they came
        self.bodies: list[Any] = []
        self.error: MeshError | None = None
        #: `Calls` has found that its address is no longer live. A gather then has no reply of this address.
        self.gone = False
        #: how many replies are still to come
        self.outstanding = 1
        #: the id of its entry, once that is known
        self.id = ""

    @property
    def about_options(self) -> bool | tuple[str, ...]:
        """What end.lua needs to end this request, beside its stream and id: the last item of `streams.Removal`.

        With True, end.lua reads the options from the entry of the request.
        """
        # This form also serves a request that has a limit, too: the hash of the key says where the request is.
        if self.once is not None:
            return (*self.once, self.key)
        # If a request waits for its limit, submit.lua answers "@" and the request's name in place of an id.
        return (self.limit, self.key) if self.id.startswith("@") else bool(self.limit)

    def take(self, status: str, forwards: str, text: str, decode: Decode) -> None:
        """Add a reply; see `protocol.Reply`. If it cannot be read, the answer is an error with the reason."""
        try:
            further_replies = 0 if forwards == "0" else int(forwards)
            if further_replies and not text:  # this reply has no body: it only says how many replies follow
                self.outstanding += further_replies - 1
                return
            body = (decode if status == OK else decode_object)(text)  # `decode` is for the operation's own type
        except ValueError as error:
            further_replies, status, body = 0, InvalidReply.code, {"detail": f"the reply cannot be read: {error}"}
        self.outstanding += further_replies - 1  # this reply is one of those that were to come
        if status == OK:
            self.bodies.append(body)
        elif self.error is None:
            self.error = error_of_reply(status, body)

    def merged(self) -> Body:
        """Return the parts of the reply, merged key by key. Raises the first error."""
        if self.error is not None:
            raise self.error
        if len(self.bodies) == 1:
            single_body: Body = self.bodies[0]
            return single_body
        merged_body: Body = {}
        for body in self.bodies:
            merged_body.update(body)
        return merged_body


class Replies(dict[int, T]):
    """The replies to a gather, by database.

    `left_out` are the databases that hold data and have no replica that could answer for them.
    """

    left_out: list[int]


_NO_ANSWERS: Iterator[Answer] = iter(())


class CallInProgress:
    """A call or a gather in progress, and the waiter that the link has for its submission (`mesh.wire.batch.Waiter`).

    It takes the place of a Future there: a cancelled Future gets no result, but a cancelled call needs the ids of its
    requests to remove them.
    """

    __slots__ = (
        "_answers_after", "_first_open", "_gather_key", "_remove_unanswered", "abandoned", "answers", "asked_at",
        "completed", "decode", "left_out", "span", "submitted", "trail", "waits_for_replies",
    )  # fmt: skip

    def __init__(
        self,
        gather_key: str,
        answers: dict[str, Answer],
        remove_unanswered: Callable[[CallInProgress, str], None],
        decode: Decode,
        completed: asyncio.Future[None],
    ) -> None:
        #: by the name of each request (`Answer.key`); a gather begins without answers
        self.answers = answers
        #: reads the bodies of its replies
        self.decode = decode
        #: when it began, on the monotonic clock
        self.asked_at = time.monotonic()
        #: collects the fields of each reply if the caller wants them; else None
        self.trail = tracing.TRAIL.get()
        #: the span of the call, where there are spans
        self.span = tracing.current()
        #: submit.lua has accepted its requests
        self.submitted = False
        #: Its requests are with the link, so their replies will be on the reply stream. `Calls` sets this just before
        #: it submits them. A request in place has False, unless it is submitted after all.
        self.waits_for_replies = False
        #: Its caller no longer waits; `Calls` sets this. If its requests are accepted after that, `set_result` removes
        #: them at once.
        self.abandoned = False
        #: databases that hold data, are not live, and are not expected back
        self.left_out: frozenset[int] = frozenset()
        #: resolved when all replies are there, at the deadline, or with an error; the caller awaits this
        self.completed = completed
        #: the beginning of the names of a gather's requests; "" for a call
        self._gather_key = gather_key
        #: removes the unanswered requests of a call from their streams; the second argument is "expired" or "cancelled"
        self._remove_unanswered = remove_unanswered
        #: the first open answer (its replies are not all there), and the answers after it; `set_result` sets both
        self._first_open: Answer | None = None
        self._answers_after = _NO_ANSWERS

    def done(self) -> bool:
        """Return False, so that the link passes the result or the error even after a cancellation.

        The link passes one of them, and only once.
        """
        return False

    def set_result(self, result: Any) -> None:
        """Receive the result of submit.lua."""
        # A refusal is an object. So is an empty list of ids, because Lua cannot tell it from an empty object.
        if result.__class__ is dict and result:
            self.fail(refusal(result["error"], result["about"]))
            return
        if self._gather_key:  # a gather: the ids by database, and the databases that are left out
            for to, id in dict(result[0]).items():  # `to` is "db<n>"
                self.answer(f"{self._gather_key}.{to}").id = id
            self.left_out = frozenset(map(int, result[1]))
        else:
            for answer, id in zip(self.answers.values(), result, strict=True):
                answer.id = id
        self.submitted = True
        if self.span is not None:
            self.span.add_event("submitted")
        self._answers_after = iter(list(self.answers.values()))
        if self.abandoned:
            self._remove_unanswered(self, "cancelled")
        self.complete_if_answered()

    def set_exception(self, error: BaseException) -> None:
        """Receive the error that prevented the submission."""
        self.fail(error)

    def take(self, reply: Reply, flat: Sequence[str]) -> None:
        """Add a reply to the answer of its request; `flat` is the entry of the reply."""
        request_key, status, forwards, body_text = reply
        answer = self.answer(request_key)
        answer.take(status, forwards, body_text, self.decode)
        # `trail` and `span` are from the context of the caller.
        if self.trail is not None:  # the caller wants the fields of each reply
            self.trail.append((answer.to, fields_of(flat)))
        if self.span is not None:
            self.span.add_event("reply", tracing.replying(status, fields_of(flat)))
        self.complete_if_answered()

    def answer(self, key: str) -> Answer:
        """Return the answer to the request of this name. Add one if a gather has no answer of this name yet.

        Only submit.lua, or a reply that comes before its result, tells which databases a gather asks.
        """
        answer = self.answers.get(key)
        if answer is None:
            answer = self.answers[key] = Answer(key.rpartition(".")[2], key)
        return answer

    @property
    def open_answers(self) -> list[Answer]:
        """The answers whose replies are not all there."""
        return [answer for answer in self.answers.values() if answer.outstanding > 0]

    def complete_if_answered(self) -> None:
        """Complete the call if all replies are there.

        `_first_open` moves past each answer only once. So no reply costs a look at all answers of a large gather.
        """
        if not self.submitted or self.completed.done():
            return
        while self._first_open is None or self._first_open.outstanding <= 0:
            self._first_open = next(self._answers_after, None)
            if self._first_open is None:
                self.completed.set_result(None)
                return

    def fail(self, error: BaseException) -> None:
        if not self.completed.done():
            self.completed.set_exception(error)
