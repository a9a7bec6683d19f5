"""What waits for its time: requests for later, and the next ticks of schedules."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from typing import Any

from redis.asyncio import Redis

from mesh import keys


@dataclass(frozen=True, slots=True)
class LaterRequest:
    """A request in `mesh:later`: it waits for its time, its next try, the end of a pause, or a place in its lane.

    `key` is its name in `mesh:later`, which is no idempotency key, and `to` is its address. `tries` is the number of
    failed tries, and `error` is the error of the last one. `waits_for` is "pause" for the end of a pause, "lane" for a
    place, and else "". The wait ends at `due_ms`, in ms of Redis's clock. For a pause and a lane this is the deadline
    of the request, or None if the request has none.
    """

    key: str
    op: str
    to: str
    due_ms: int | None
    tries: int
    error: str
    waits_for: str = ""


@dataclass(frozen=True, slots=True)
class ScheduledOperation:
    """An operation that runs by itself, at the times of `cron` in the time zone `tz`.

    `each`: it runs on every database. `next_ms` is its next tick, and `last_ms` the last tick that was sent, 0 before
    the first.
    """

    op: str
    cron: str
    tz: str
    each: bool
    next_ms: int
    last_ms: int


@dataclass(frozen=True, slots=True)
class Waiting:
    """What is due first in `mesh:later` and in `mesh:schedules`.

    `request_count` is the number of all waiting requests, and `requests` has the first of them. `schedule_count` is the
    number of all schedules, and `schedules` has those with the first ticks.
    """

    request_count: int
    requests: list[LaterRequest]
    schedule_count: int
    schedules: list[ScheduledOperation]


async def read_waiting(redis: Redis, most: int) -> Waiting:
    """Read at most `most` requests and as many schedules. `redis` is a client of the bus that decodes answers.

    Raises RedisError.
    """
    pipeline = redis.pipeline(transaction=False)
    for sorted_set in (keys.LATER, keys.SCHEDULES):
        pipeline.zcard(sorted_set)
        pipeline.zrange(sorted_set, 0, most - 1, withscores=True)
    # The first ones of each sorted set, as pairs of a name and its score.
    request_count, first_requests, schedule_count, first_schedules = await pipeline.execute()
    pipeline = redis.pipeline(transaction=False)
    for name, _ in first_requests:
        pipeline.hmget(keys.later(name), "op", "to", "try", "error", "parked", "limit")
    for op, _ in first_schedules:
        pipeline.hmget(keys.schedule(op), "definition", "last")
    # The answers come in the order of the commands: first those for the requests, then those for the schedules.
    answers: list[Any] = await pipeline.execute() if first_requests or first_schedules else []
    requests = [_to_later_request(name, score, *answers.pop(0)) for name, score in first_requests]
    schedules = [_to_scheduled_operation(op, int(score), *answers.pop(0)) for op, score in first_schedules]
    return Waiting(request_count, requests, schedule_count, schedules)


def _to_later_request(
    name: str,
    score: float,
    op: str | None,
    to: str | None,
    tries: str | None,
    error: str | None,
    parked: str | None,
    limit: str | None,
) -> LaterRequest:
    """Return a request of `mesh:later`, from its score and the fields of its hash; None for a field that it lacks."""
    # A request that waits for its next try has a limit "lane …", too, but it has kept its place.
    waits_for_place = (limit or "").startswith("lane ") and not tries
    waits_for = "pause" if parked else "lane" if waits_for_place else ""
    # The score is infinite if the request has no deadline and waits for a pause or a lane.
    due_ms = int(score) if math.isfinite(score) else None
    return LaterRequest(name, op or "", to or "", due_ms, int(tries or 0), error or "", waits_for)


def _to_scheduled_operation(op: str, next_ms: int, definition: str | None, last: str | None) -> ScheduledOperation:
    # The other elements say what happens to missed and overlapping ticks.
    cron, tz, each, *_ = json.loads(definition) if definition else ("", "", False)
    return ScheduledOperation(op, cron, tz, bool(each), next_ms, int(last or 0))
