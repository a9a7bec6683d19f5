"""What became of a request, as far as Redis's streams still show.

A request that waits for a replica, or that a replica works on, is an entry of its stream. An answered request has left
a reply: the sender's stream of replies keeps the last few hundred. A request that was given up is a dead letter. There
is no other record of requests that have ended.

A search does not read these entries and keys:

    mesh:later              the requests that wait there; `mesh.control.read_waiting` reads them
    replies to clients      a client is in no roster, so an answered request of a client is not found

    accepted (time in the id of the request) --> begun --took_us--> answered (time in the id of the reply)

The worker measures `took_us`, the time from the beginning to the answer.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from redis.asyncio import Redis

from mesh import keys, roster
from mesh.dead.letters import ID, DeadLetters
from mesh.roster import Member
from mesh.settings import MeshSettings

#: A search reads this many replies to each replica, the newest ones. A stream of replies never has many more.
MOST_REPLIES_SEARCHED = 512
#: A search reads at most this many entries of each request stream, the oldest ones, and this many of the newest dead
#: letters. So a long queue does not make a search slow, but the search may miss a request of that queue. With a larger
#: number, searches would miss fewer requests and be slower.
MOST_ENTRIES_SEARCHED = 200


@dataclass(frozen=True, slots=True)
class JourneyStep:
    """One request on its way, or the part of a gather for one database.

    `accepted_ms` and `answered_ms` are moments in ms of Redis's clock, and `took_us` is how long the worker took (µs);
    each is 0 if it is not known.

    `status` is "waiting", "in hand" (a replica works on the request), "given up", or the status of the reply: "ok", or
    the code of an error. `id` is the id of the request's entry, and `call` its X-Request-Id. `key` is the name that
    the sender gave the request; it is no key of Redis. `sender` and `worker` are replicas. The sender of a request
    without an answer may also be a client.
    """

    key: str
    op: str
    status: str
    stream: str
    id: str
    sender: str
    worker: str = ""
    database: str = ""
    call: str = ""
    accepted_ms: int = 0
    answered_ms: int = 0
    took_us: int = 0
    reason: str = ""

    @property
    def total_ms(self) -> int:
        """The time from the acceptance to the answer; 0 if one of these moments is not known."""
        return max(0, self.answered_ms - self.accepted_ms) if self.answered_ms and self.accepted_ms else 0

    @property
    def group(self) -> str:
        """The common name of the requests of a gather or of a tick, or the request's own name.

        A part of a gather has the name "<name of the gather>.db<n>", and the request of a tick "<schedule>.<moment>.A".
        The mesh gives all other requests names without a dot: "<replica>-<number>", or hexadecimal digits.
        """
        return self.key.rpartition(".")[0] or self.key


class Journeys:
    """Looks for requests, over a redis-py client of the bus database with `decode_responses`."""

    def __init__(self, redis: Redis, settings: MeshSettings) -> None:
        self._redis = redis
        self._streams = keys.request_streams(settings.classes, settings.databases)
        self._letters = DeadLetters(redis, settings.stream_bound)

    async def newest(self, most: int) -> list[JourneyStep]:
        """Return the newest replies to the replicas of the roster, at most `most` for each of them, newest first."""
        steps = await self._read_replies(await roster.read_directly(self._redis), most)
        return sorted(steps, key=lambda step: step.answered_ms, reverse=True)

    async def find(self, reference: str) -> list[JourneyStep]:
        """Return the requests with this id, name or call (`X-Request-Id`), oldest first.

        If one of them is a part of a gather, return all parts of this gather.
        """
        # A call may be several ids with commas between them: one request carries the work of several HTTP requests.
        steps = await self._read_matching(
            lambda step: reference in (step.id, step.key, step.group, step.call, *step.call.split(","))
        )
        gather_names = {step.group for step in steps if step.key != step.group}
        if gather_names:
            steps += await self._read_matching(lambda step: step.group in gather_names)
        # The search reads only the first entries of each stream. A direct look-up of an id also finds a later entry.
        if ID.fullmatch(reference):
            steps += [step for step in await self._read_unanswered(reference, reference, 1) if step not in steps]
        # Both searches may have found the same request.
        by_identity = {(step.stream, step.id, step.key): step for step in steps}
        return sorted(by_identity.values(), key=lambda step: (step.accepted_ms or step.answered_ms, step.key))

    async def _read_matching(self, matches: Callable[[JourneyStep], bool]) -> list[JourneyStep]:
        """Read all that a search reads, and return the requests for which `matches` returns True."""
        members = await roster.read_directly(self._redis)
        unanswered, replies, given_up = await asyncio.gather(
            self._read_unanswered("-", "+", MOST_ENTRIES_SEARCHED),
            self._read_replies(members, MOST_REPLIES_SEARCHED),
            self._read_given_up(),
        )
        answered = [step for step in replies if matches(step)]
        return [*(step for step in [*unanswered, *given_up] if matches(step)), *answered]

    async def _read_replies(self, members: Sequence[Member], most: int) -> list[JourneyStep]:
        pipeline = self._redis.pipeline(transaction=False)
        for member in members:
            pipeline.xrevrange(keys.replies(member.replica), count=most)
        return [
            _step_of_reply(id, fields, member.replica)
            for member, entries in zip(members, await _pipeline_answers(pipeline), strict=True)
            for id, fields in entries
            if "request" in fields  # not the entry that only opens the stream
        ]

    async def _read_unanswered(self, first_id: str, last_id: str, most: int) -> list[JourneyStep]:
        pipeline = self._redis.pipeline(transaction=False)
        for stream in self._streams:
            pipeline.xrange(stream, first_id, last_id, count=most)
            pipeline.xpending_range(stream, keys.GROUP, first_id, last_id, most)
        answers = iter(await _pipeline_answers(pipeline))
        steps = []
        for stream in self._streams:
            entries, pending = next(answers), next(answers)
            worker_of = {pending_entry["message_id"]: pending_entry["consumer"] for pending_entry in pending}
            steps += [_step_of_request(stream, id, fields, worker_of.get(id, "")) for id, fields in entries]
        return steps

    async def _read_given_up(self) -> list[JourneyStep]:
        letters = await self._letters.look(MOST_ENTRIES_SEARCHED, body=0)  # body=0: without the bodies
        return [
            JourneyStep(
                key=letter.request, op=letter.op, status="given up", stream=letter.stream, id=letter.original,
                sender="", accepted_ms=_moment_ms(letter.original), answered_ms=letter.at_ms, reason=letter.reason,
            )
            for letter in letters
            if letter.kind == "request"
        ]  # fmt: skip


async def _pipeline_answers(pipeline: Any) -> list[Any]:
    """Run a pipeline and return its answers; [] stands for an error, such as that of a stream that does not exist."""
    return [[] if isinstance(answer, Exception) else answer for answer in await pipeline.execute(raise_on_error=False)]


def _step_of_request(stream: str, id: str, fields: Mapping[str, str], worker: str) -> JourneyStep:
    get = fields.get
    return JourneyStep(
        key=get("request", ""), op=get("op", ""), status="in hand" if worker else "waiting", stream=stream, id=id,
        sender=get("from", ""), worker=worker, call=get("call", ""), accepted_ms=_moment_ms(id),
    )  # fmt: skip


def _step_of_reply(id: str, fields: Mapping[str, str], sender: str) -> JourneyStep:
    get = fields.get
    request_id, took_us = get("asked", ""), get("took_us", "")
    # A reply does not name the stream of its request. But the name of a part of a gather ends with its address: ".db3".
    # No other request with a reply has a dot in its name: see `JourneyStep.group`.
    address = get("request", "").rpartition(".")[2] if "." in get("request", "") else ""
    return JourneyStep(
        key=get("request", ""), op=get("op", ""), status=get("status", ""), stream=address and keys.REQUESTS + address,
        id=request_id, sender=sender, worker=get("from", ""), database=get("db", ""), call=get("call", ""),
        accepted_ms=_moment_ms(request_id), answered_ms=_moment_ms(id),
        took_us=int(took_us) if took_us.isdecimal() else 0,
    )  # fmt: skip


def _moment_ms(id: str) -> int:
    """Return the time with which the id of an entry begins; 0 for a text that is no such id."""
    return int(id.partition("-")[0]) if ID.fullmatch(id) else 0


def grouped(steps: Iterable[JourneyStep]) -> list[list[JourneyStep]]:
    """Return requests in groups: all parts of a gather are one group. Groups keep the order of their first requests."""
    groups: dict[str, list[JourneyStep]] = {}
    for step in steps:
        groups.setdefault(step.group, []).append(step)
    return list(groups.values())


def percentile_ms(steps: Iterable[JourneyStep], percent: int) -> int | None:
    """Return a percentile of the times from acceptance to answer (ms): about `percent` of the requests took no longer.

    100 stands for the longest time. Return None if no time is known.
    """
    times_ms = sorted(step.total_ms for step in steps if step.accepted_ms and step.answered_ms)
    return times_ms[min(len(times_ms) * percent // 100, len(times_ms) - 1)] if times_ms else None
