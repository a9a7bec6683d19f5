"""Puts values for a client: first all of them, and then each hard one that was left out, in its lane."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from mesh import GivenUp, OlderRelease
from mesh.raw import Answer, Ask, Replica
from quart_app.values import hard
from quart_app.values.chunks import ItemAsked
from quart_app.values.hard import plain
from quart_app.values.pace import Pace
from quart_app.values.store import WHERE
from quart_app.values.together import Together

#: Most small values of different clients that share a request.
MOST_TOGETHER = 32
#: Hard values that are asked for at once. All of them are submitted in one step, and each takes a third of a ms of it.
MOST = 32


#: The factors of values by their text, and the answers, which say why others were not stored.
Found = tuple[dict[str, str], Sequence[Answer]]


class Small:
    """Puts single values below 2^64, each for a client of its own. Those that come together share a request."""

    def __init__(self, pace: Pace) -> None:
        self._pace = pace
        self._together: Together[tuple[Replica, str], ItemAsked, Found] = Together(self._put, MOST_TOGETHER)

    async def put(self, replica: Replica, item: ItemAsked, deadline_ms: int) -> Found:
        """Return the factors of the value, once it is stored, and perhaps those of others. Raises MeshError."""
        return await self._together.get((replica, item.cls), item, deadline_ms)

    async def _put(self, key: tuple[Replica, str], items: Sequence[ItemAsked], deadline_ms: int) -> Sequence[Found]:
        """Put values of one class. Of items with the same value the last one counts."""
        replica, cls = key
        last = {item.value: item for item in items}
        # They are looked up when the request is sent, which saves the handler a round trip.
        ask = hard.put(cls, [plain(item) for item in last.values()], [WHERE + value for value in last])
        factors, answers = await put(replica, [ask], last, deadline_ms, self._pace)
        given_up = next((answer.error for answer in answers if isinstance(answer.error, GivenUp)), None)
        if given_up is not None and len(items) > 1:
            raise given_up
        return [(factors, answers)] * len(items)


async def put(
    replica: Replica, asks: Sequence[Ask], items: Mapping[str, ItemAsked], deadline_ms: int, pace: Pace
) -> tuple[dict[str, str], list[Answer]]:
    """Return the factors of the values that were stored, and the last answers, which say why others were not.

    `asks` are the first requests, and `items` all items by their values. Raises MeshError.
    """
    until_ms = replica.now_ms() + deadline_ms
    factors: dict[str, str] = {}
    in_lanes: set[str] = set()
    answers = await replica.ask(asks, deadline_ms=deadline_ms)
    while True:
        await pace()
        left_out: list[str] = []
        for answer in answers:
            for body in answer.bodies:
                factors |= body
                if None in body.values():
                    left_out += [value for value, found in body.items() if found is None]
        for value in left_out:
            del factors[value]
        if not left_out or any(answer.error is not None for answer in answers):
            return factors, answers
        # A value that its lane left out has a record with another replica, so it is put again without one.
        in_lanes = set(left_out) - in_lanes
        answers = []
        for first in range(0, len(left_out), MOST):
            asked = [items[value] for value in left_out[first : first + MOST]]
            answers += await _ask(asked, in_lanes, replica, until_ms)
            if any(answer.error is not None for answer in answers):
                break


async def _ask(items: Sequence[ItemAsked], in_lanes: set[str], replica: Replica, until_ms: int) -> list[Answer]:
    """Ask for hard values, one by one; some of them in their lanes."""

    def left_ms() -> int:
        return max(1, until_ms - replica.now_ms())

    asks = [hard.put_in_lane(item) if item.value in in_lanes else hard.put_again(item) for item in items]
    try:
        return await replica.ask(asks, deadline_ms=left_ms())
    except OlderRelease:
        # A live replica does not know lanes. Without them, each replica of a class computes a value by itself.
        return await replica.ask([hard.put_at_once(item) for item in items], deadline_ms=left_ms())
