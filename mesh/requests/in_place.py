"""Requests in place: a replica runs the handler of a call that it makes itself, before the request is on a stream.

A request takes two trips to Redis: its submission, and the commit of what its handler did. If the replica that asks
could also work on the request, one trip is enough:

    call --> handler runs here --> commit: puts the request on its stream, takes it off again, applies the transaction,
             |                             and writes the reply
             |                     |
             +-- waits or raises   +-- not done: a value has changed, or other requests of the class are on the stream
             v                     v
             the request is submitted, as if nothing had been tried

The handler writes nothing before the commit, so a try without success changes nothing in Redis. The handler is closed
at its first wait, and runs a second time after the submission. So `Ask.in_place` is for requests whose handler has no
wait and takes little time. If it may wait after all, it must have done nothing by then that may not be done twice.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextvars import copy_context
from time import perf_counter
from typing import Any

from redis import exceptions as redis_errors

from mesh import keys
from mesh.errors import MeshError
from mesh.requests.answers import CallInProgress
from mesh.requests.consumer import Consumer
from mesh.requests.effects import Effects
from mesh.requests.handling import steps_of
from mesh.requests.protocol import Request, reply_of
from mesh.requests.runner import add_answer, warn_if_blocked
from mesh.requests.settlement import DONE
from mesh.requests.store import Store
from mesh.requests.streams import ReplyReader
from mesh.requests.work import Host
from mesh.requests.worker import Handler, Worker
from mesh.wire.connection import Encoded

#: After a try without success, so many requests get no try. With fewer, a replica whose requests cannot run in place
#: makes more tries for nothing. With more, it notices later that they can.
SKIPPED = 16
#: The second numbers of two ids of one replica in the same ms differ by this. The number of the replica's database is
#: added, so two replicas never give the same id.
ID_STEP = keys.MOST_DATABASES


class InPlace:
    """Tries requests to the own class of a replica in place.

    `consumer` is the one of the class's stream, and `replies` reads the replies to this replica.
    """

    def __init__(self, host: Host, worker: Worker, consumer: Consumer, replies: ReplyReader) -> None:
        self._host = host
        self._worker = worker
        self._consumer = consumer
        self._replies = replies
        self._store = Store(host.link, host.database, host.cls)
        #: how many more requests get no try
        self._left_to_skip = 0
        #: time (ms) and second number of the latest id that was given
        self._latest_id = (0, 0)

    def begin(self, group: Sequence[Any], call: CallInProgress, submit: Callable[[], None]) -> bool:
        """Try the one request of a call in place. Return False if it is to be submitted at once.

        `group` has the words of its submission: see `Calls`. `submit` submits it, if the try has no success later.
        """
        handler = self._handler_for(group)
        if handler is None:
            return False
        # The handler gets a context of its own, as in a task: what it sets there does not reach the caller.
        done = copy_context().run(self._run, handler, group)
        if done is None:
            self.failed()
            return False
        encoded, reply, work_s = done
        self._host.link.commit(encoded, _Try(self, call, submit, reply, work_s))
        return True

    def _handler_for(self, group: Sequence[Any]) -> Handler | None:
        """Return the handler of a request that may run in place, else None."""
        _, _, target, op, *_ = group
        host, handler = self._host, self._worker.handler(op)
        if target != host.cls or handler is None or handler.limit is not None or op in host.paused():
            return None
        if self._left_to_skip:
            self._left_to_skip -= 1
            return None
        return handler if self._consumer.room_now() and not host.link.down else None

    def _run(self, handler: Handler, group: Sequence[Any]) -> tuple[Encoded, list[str], float] | None:
        """Run a handler. Return its transaction, the entry of its reply, and how long it worked (s).

        Return None if the handler waits or raises. Return None also if this process cannot know something: whether
        somebody serves the requests that the handler sends, or the body of a reply that the commit writes.
        """
        began = perf_counter()
        host = self._host
        try:
            request, further = self._request_of(handler, group)
            effects = Effects(host.database, host.replica, request, self._worker.verbs, host.settings.later_bound)
            steps = steps_of(handler.handle(request, self._store, effects))
            try:
                steps.send(None)
            except StopIteration as end:
                add_answer(handler, effects, end.value)
            else:
                steps.close()
                return None
            status, body = effects.answer
            if effects.sends or effects.sent_ops or not body:
                return None
            effects.writes.add(0, "pass", (request.stream,), (request.deadline, group[-1], further))
            request.stream = ""  # so that commit.lua does not look for the request: no consumer has it
            work_s = perf_counter() - began
            warn_if_blocked(request, work_s)
            took_us = int(work_s * 1e6)
            encoded = effects.wire(took_us)
            effects.end()
        except BaseException:  # the attempt after the submission meets the same error, and settles it
            return None
        # commit.lua writes this entry, too.
        reply = [
            "request", request.key, "op", request.op, "from", host.replica, "status", status, "forwards", "0",
            "body", body, "asked", request.id, "took_us", str(took_us), "db", str(host.database),
            *(("call", request.call) if request.call else ()),
        ]  # fmt: skip
        return encoded, reply, work_s

    def _request_of(self, handler: Handler, group: Sequence[Any]) -> tuple[Request, str]:
        """Return a request as its handler gets it, and the further fields of its entry in one word."""
        _, further, _, op, key, ttl_ms, body_text = group
        further_words = further.split()
        fields = dict(zip(further_words[::2], further_words[1::2], strict=True))
        # The submission would read these keys. Here they count as absent, and the handler expects that in its commit.
        shared_keys = fields.pop("read", "")
        found = None
        if shared_keys:
            key_count = shared_keys.count(",") + 1
            found = "" if key_count == 1 else "[" + ",".join(['""'] * key_count) + "]"
            further = " ".join(further_words[:-2])  # these keys are the last field
        host, now_ms = self._host, self._host.now_ms()
        request = Request(
            stream=keys.class_requests(host.cls),
            id=self._next_id(now_ms),
            op=op,
            key=key,
            sender=host.replica,
            reply_to=self._replies.stream,
            deadline=now_ms + int(ttl_ms),
            body=handler.decode(body_text),
            call=fields.get("call", ""),
            traceparent=fields.get("traceparent", ""),
            found=found,
        )
        return request, further

    def _next_id(self, now_ms: int) -> str:
        """Return an id above those given before. No other replica gives the same id to a request in place."""
        latest_ms, number = self._latest_id
        if now_ms > latest_ms:
            self._latest_id = (now_ms, self._host.database)
        else:
            self._latest_id = (latest_ms, number + ID_STEP)
        return "{}-{}".format(*self._latest_id)

    def ended(self, op: str, work_s: float, body: str) -> None:
        """Count a request that was done in place, as the consumer counts its own. `body` is that of its reply."""
        self._consumer.counters.done += 1
        self._consumer.last_durations_us.append(int(work_s * 1e6))
        self._host.durations.add(op, work_s, work_s)
        self._replies.note_in_place(body)

    def failed(self) -> None:
        """Note a try without success."""
        self._left_to_skip = SKIPPED


class _Try:
    """A request in place after the end of its handler: the waiter that the link has for the commit.

    If the commit is not done, it submits the request (`submit` of `InPlace.begin`).
    """

    __slots__ = ("_call", "_in_place", "_reply", "_submit", "_work_s")

    def __init__(
        self, in_place: InPlace, call: CallInProgress, submit: Callable[[], None], reply: list[str], work_s: float
    ) -> None:
        self._in_place = in_place
        self._call = call
        self._submit = submit
        self._reply = reply
        self._work_s = work_s

    def done(self) -> bool:
        """Return False, so that the link passes the result or the error. The link does this only once."""
        return False

    def set_result(self, answer: str) -> None:
        """Receive what commit.lua answers."""
        if answer != DONE:
            self._submit_after_all()
            return
        call, entry = self._call, self._reply
        reply = reply_of(entry)
        assert reply is not None  # `_run` has made the entry
        self._in_place.ended(entry[3], self._work_s, reply[3])  # the operation, and the body
        call.set_result([""])  # as after a submission, but without an id: the entry is gone already
        if not call.completed.done():  # the reader of the stream may have had the reply before
            call.take(reply, entry)

    def set_exception(self, error: BaseException) -> None:
        """Receive the error that prevented the commit."""
        if isinstance(error, redis_errors.DataError):  # the transaction cannot be sent
            self._submit_after_all()
        else:  # the membership is over, or nobody knows whether the commit was applied
            self._call.fail(error)

    def _submit_after_all(self) -> None:
        self._in_place.failed()
        if self._call.completed.done():  # cancelled, or its deadline has passed
            return
        try:
            self._submit()
        except MeshError as error:
            self._call.fail(error)
