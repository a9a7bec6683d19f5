"""Puts values for a client: first all of them, then each hard value that was left out, by a request in its lane.

A replica leaves a hard value out of a put by answering null for it (see `hard_values`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from mesh import GivenUp, OlderRelease
from mesh.raw import Answer, Ask, Replica
from quart_app.values import hard_values
from quart_app.values.chunks import ItemAsked
from quart_app.values.hard_values import as_body_item
from quart_app.values.pace import Pace
from quart_app.values.store import WHERE
from quart_app.values.together import Together

#: The most clients whose small values share a request. A larger request saves trips, and delays each answer until all
#: values of the request are stored.
MOST_TOGETHER = 32
#: The most hard values of one client that are put at once. One step of Redis submits their requests, and each request
#: takes a third of a ms of this step. With more, a step would hold up the server for longer; with fewer, a client with
#: many hard values would wait for more steps.
MOST_HARD = 32


#: The outcome of putting values: the factors by value, and the answers, whose errors say why values were not stored.
PutOutcome = tuple[dict[str, str], Sequence[Answer]]


class SmallPuts:
    """Puts values below 2^64, one for each client. Values of several clients that come together share a request."""

    def __init__(self, pace: Pace) -> None:
        self._pace = pace
        # The key of `Together` is the replica of this process and the class of the values.
        self._together: Together[tuple[Replica, str], ItemAsked, PutOutcome] = Together(
            self._put_together, MOST_TOGETHER
        )

    async def put(self, replica: Replica, item: ItemAsked, time_limit_ms: int) -> PutOutcome:
        """Store a value; return its factors, and those of other values that shared its request. Raises MeshError."""
        return await self._together.get((replica, item.cls), item, time_limit_ms)

    async def _put_together(
        self, key: tuple[Replica, str], items: Sequence[ItemAsked], time_limit_ms: int
    ) -> Sequence[PutOutcome]:
        """Put values of one class: the work of `Together`, whose key has the replica and the class.

        Of items with the same value the last one counts.
        """
        replica, cls = key
        item_by_value = {item.value: item for item in items}
        # `hard_values.ask_for_chunk` takes small values, too. The submission of the request reads the places of the
        # values, which saves the handler a round trip.
        ask = hard_values.ask_for_chunk(
            cls, [as_body_item(item) for item in item_by_value.values()], [WHERE + value for value in item_by_value]
        )
        # The callers share one answer, which has the factors of all their values.
        factors, answers = await put(replica, [ask], item_by_value, time_limit_ms, self._pace)
        given_up = next((answer.error for answer in answers if isinstance(answer.error, GivenUp)), None)
        # After this error, `Together` sends a request of its own for each caller.
        if given_up is not None and len(items) > 1:
            raise given_up
        return [(factors, answers)] * len(items)


async def put(
    replica: Replica, asks: Sequence[Ask], item_by_value: Mapping[str, ItemAsked], time_limit_ms: int, pace: Pace
) -> tuple[dict[str, str], list[Answer]]:
    """Put values; return the factors of those that were stored, and the last answers, whose errors explain the others.

    `asks` are the first requests, which put all values; `item_by_value` has the items of all of them. The loop ends at
    the time limit at the latest, because an answer then has an error. Raises MeshError.
    """
    end_ms = replica.now_ms() + time_limit_ms
    factors: dict[str, str] = {}
    in_lanes: set[str] = set()
    answers = await replica.ask(asks, deadline_ms=time_limit_ms)
    while True:
        # Reading the answers is a piece of work, which may have to wait for a later turn of the loop (see `pace`).
        await pace()
        to_put_again: list[str] = []  # the hard values, whose factors are null
        for answer in answers:
            for body in answer.bodies:
                factors |= body
                if None in body.values():
                    to_put_again += [value for value, text in body.items() if text is None]
        for value in to_put_again:
            del factors[value]
        if not to_put_again or any(answer.error is not None for answer in answers):
            return factors, answers
        # Each value goes into its lane. If its request there was answered with null, another replica has the record by
        # now. So this value is put without a lane, and the put is forwarded to that replica.
        in_lanes = set(to_put_again) - in_lanes
        answers = []
        for start in range(0, len(to_put_again), MOST_HARD):
            next_items = [item_by_value[value] for value in to_put_again[start : start + MOST_HARD]]
            answers += await _ask_for_hard_values(next_items, in_lanes, replica, end_ms)
            if any(answer.error is not None for answer in answers):
                break  # no more of them are put, and `put` returns at the error


async def _ask_for_hard_values(
    items: Sequence[ItemAsked], in_lanes: set[str], replica: Replica, end_ms: int
) -> list[Answer]:
    """Send a request for each hard value. The values of `in_lanes` are put in their lanes, the others without."""

    def time_left_ms() -> int:
        # At least 1, because `ask` takes 0 for "the time in the settings".
        return max(1, end_ms - replica.now_ms())

    asks = [hard_values.ask_in_lane(item) if item.value in in_lanes else hard_values.ask_again(item) for item in items]
    try:
        return await replica.ask(asks, deadline_ms=time_left_ms())
    except OlderRelease:
        # A live replica of an earlier release does not know lanes. Without them, several replicas may compute a value.
        return await replica.ask([hard_values.ask_without_lane(item) for item in items], deadline_ms=time_left_ms())
