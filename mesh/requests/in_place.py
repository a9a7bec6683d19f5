"""Requests in place: a replica runs the handler of a call that it makes itself, before the request is on a stream.

A request takes two trips to Redis: its submission, and the commit of what its handler did. If the replica that asks
could also work on the request, one trip is enough:

    call --> handler runs here --> commit: puts the request on its stream, takes it off again, applies the transaction,
             |                             and writes the reply
             |                     |
             +-- waits or raises   +-- not done: a value has changed, or other requests of the class are on the stream
             v                     v
             the request is submitted, as if nothing had been tried

Nothing is written before the commit, so a try without success has no effect. A handler that waits is closed at its
first wait. So `Ask.in_place` is for requests whose handler needs no wait, and takes little time.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextvars import copy_context
from time import perf_counter
from typing import Any

from mesh import keys
from mesh.errors import MeshError
from mesh.requests.answers import CallInProgress
from mesh.requests.consumer import Consumer
from mesh.requests.effects import Effects
from mesh.requests.handling import steps_of
from mesh.requests.protocol import Request
from mesh.requests.runner import add_answer
from mesh.requests.settlement import DONE
from mesh.requests.store import Store
from mesh.requests.work import Host
from mesh.requests.worker import Handler, Worker
from mesh.wire.codec import encode
from mesh.wire.connection import Encoded

#: After a try without success, so many requests are submitted without a try. With fewer, a replica whose requests cannot
#: run in place makes more tries for nothing. With more, it notices later that they can.
SKIPPED = 16
#: The second numbers of two ids of one replica in the same ms differ by this. The number of the replica's database is
#: added, so two replicas never give the same id.
ID_STEP = keys.MOST_DATABASES


class InPlace:
    """Tries requests to the own class of a replica in place, and submits those for which a try has no success.

    `consumer` is the one of the class's stream, and `reply_to` is the stream of replies to this replica.
    """

    def __init__(self, host: Host, worker: Worker, consumer: Consumer, reply_to: str) -> None:
        self._host = host
        self._worker = worker
        self._consumer = consumer
        self._reply_to = reply_to
        self._store = Store(host.link, host.database, host.cls)
        #: how many more requests are submitted without a try
        self._left_to_skip = 0
        #: time (ms) and second number of the latest id that was given
        self._latest_id = (0, 0)

    def submit(self, group: Sequence[Any], words: Encoded, call: CallInProgress) -> None:
        """Try the one request of a call in place, or submit it. The call gets the result of a submission in both cases.

        `group` and `words` are what `Calls` would submit. Raises what `Link.submit` raises.
        """
        handler = self._handler_for(group)
        link = self._host.link
        if handler is None:
            link.submit(words, call)
            return
        began = perf_counter()
        # The handler gets a context of its own, as in a task: what it sets there does not reach the caller.
        transaction = copy_context().run(self._transaction_of, handler, group, began)
        if transaction is None:
            self._left_to_skip = SKIPPED
            link.submit(words, call)
        else:
            link.commit(transaction, _Try(self, handler.op, perf_counter() - began, words, call))

    def _handler_for(self, group: Sequence[Any]) -> Handler | None:
        """Return the handler of a request that may run in place; None if the request is submitted without a try."""
        if self._left_to_skip:
            self._left_to_skip -= 1
            return None
        _, _, target, op, *_ = group
        host, handler = self._host, self._worker.handler(op)
        if target != host.cls or handler is None or handler.limit is not None or op in host.paused():
            return None
        return handler if self._consumer.has_room and not host.link.down else None

    def _transaction_of(self, handler: Handler, group: Sequence[Any], began: float) -> Encoded | None:
        """Run a handler, and return its transaction for the link. Return None if the handler waits or raises.

        Also return None if it sends requests: a lookup, which waits, would have to show that somebody serves them.
        """
        _, further, _, op, key, ttl_ms, body_text = group
        host, worker = self._host, self._worker
        further_words = further.split()
        fields = dict(zip(further_words[::2], further_words[1::2], strict=True))
        # The submission would read these keys. Here they count as absent, and the handler expects that in its commit.
        shared_keys = fields.pop("read", "")
        most_keys = shared_keys.count(",") + 1
        found = None if not shared_keys else "" if most_keys == 1 else encode([""] * most_keys)
        now_ms = host.now_ms()
        deadline = now_ms + int(ttl_ms)
        stream = keys.class_requests(host.cls)
        try:
            request = Request(
                stream, self._next_id(now_ms), op, key, host.replica, self._reply_to, deadline,
                handler.decode(body_text), 1, fields.get("call", ""), fields.get("traceparent", ""), found=found,
            )  # fmt: skip
            transaction = Effects(host.database, host.replica, request, worker.verbs, host.settings.later_bound)
            steps = steps_of(handler.handle(request, self._store, transaction))
            try:
                steps.send(None)
            except StopIteration as end:
                add_answer(handler, transaction, end.value)
            else:
                steps.close()
                return None
            if transaction.sent_ops:
                return None
            further = " ".join(f"{name} {value}" for name, value in fields.items())
            transaction.writes.add(0, "pass", (stream,), (deadline, body_text, further))
            request.stream = ""  # so that commit.lua does not look for the request: no consumer has it
            encoded = transaction.wire(int((perf_counter() - began) * 1e6))
            transaction.end()
        except BaseException:  # whatever it is, the attempt after the submission meets it again, and deals with it
            return None
        return encoded

    def _next_id(self, now_ms: int) -> str:
        """Return an id that no other request of the mesh has, and that is above those given before."""
        latest_ms, number = self._latest_id
        if now_ms > latest_ms:
            self._latest_id = (now_ms, self._host.database)
        else:
            self._latest_id = (latest_ms, number + ID_STEP)
        return "{}-{}".format(*self._latest_id)

    def ended(self, op: str, work_s: float) -> None:
        """Count a request that a commit has ended, as the consumer counts its own."""
        self._consumer.count_done(int(work_s * 1e6))
        self._host.durations.add(op, work_s, work_s)

    def submit_after_all(self, words: Encoded, call: CallInProgress) -> None:
        """Submit the request of a try that had no success."""
        self._left_to_skip = SKIPPED
        if call.completed.done():  # cancelled, or its deadline has passed
            return
        try:
            self._host.link.submit(words, call)
        except MeshError as error:
            call.fail(error)


class _Try:
    """A request in place, from the end of its handler on. The link passes it the answer of the commit."""

    __slots__ = ("_call", "_in_place", "_op", "_work_s", "_words")

    def __init__(self, in_place: InPlace, op: str, work_s: float, words: Encoded, call: CallInProgress) -> None:
        self._in_place = in_place
        self._op = op
        self._work_s = work_s
        self._words = words
        self._call = call

    def done(self) -> bool:
        """Return False: only the link passes a result to it, and only once."""
        return False

    def set_result(self, answer: str) -> None:
        """Receive what commit.lua answers."""
        if answer == DONE:
            self._in_place.ended(self._op, self._work_s)
            self._call.set_result([""])  # the request is on no stream any more, so it has no id that matters
        else:
            self._in_place.submit_after_all(self._words, self._call)

    def set_exception(self, error: BaseException) -> None:
        """Receive the error that prevented the commit."""
        if isinstance(error, MeshError):  # the membership is over
            self._call.fail(error)
        else:  # only this transaction is at fault
            self._in_place.submit_after_all(self._words, self._call)
