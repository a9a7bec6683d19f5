"""Asking the databases for values with a prime factor. Searches that come together share a request (see `together`)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from mesh import Replies
from mesh.raw import Replica, among
from quart_app.values import handlers
from quart_app.values.primes import FILTER_NAME
from quart_app.values.store import Part, read_part, read_parts
from quart_app.values.together import Together

#: The most searches in one request. With more, fewer requests would be sent, but each reply would come later: after all
#: searches of its request.
MOST_SEARCHES = 16


class Wanted(NamedTuple):
    """What one gather asks of each database: at most `limit` values above `after` ("" for all) with the factor `prime`.

    The body of a FIND has these fields.
    """

    prime: str
    after: str
    limit: int


class SharedGathers:
    """Sends the gathers of all searches of this process. Searches that come together share one gather."""

    def __init__(self) -> None:
        self._together: Together[Replica, Wanted, Replies[Part]] = Together(_find_together, MOST_SEARCHES)

    async def find(self, replica: Replica, wanted: Wanted, time_limit_ms: int) -> Replies[Part]:
        """Return the answers by database. Raises what `Replica.gather` raises."""
        return await self._together.get(replica, wanted, time_limit_ms)


async def _find_together(replica: Replica, searches: Sequence[Wanted], time_limit_ms: int) -> Sequence[Replies[Part]]:
    """Make these searches with one request to each database that may have one of the primes."""
    # The filters in the roster rows say which databases may have a prime (see `primes`).
    asked_databases = among(FILTER_NAME, *[search.prime for search in searches])
    if len(searches) == 1:
        # Replicas of earlier releases serve FIND, and may not serve FIND_EACH.
        body = {**searches[0]._asdict(), "as": handlers.TEXT}
        only_answer: Replies[Part] = await replica.gather(
            handlers.FIND, body, deadline_ms=time_limit_ms, decode=read_part, among=asked_databases
        )
        return [only_answer]
    replies = await replica.gather(
        handlers.FIND_EACH, {"each": searches}, deadline_ms=time_limit_ms, decode=read_parts, among=asked_databases
    )
    answers = []
    for index in range(len(searches)):
        answer: Replies[Part] = Replies({database: parts.each[index] for database, parts in replies.items()})
        answer.left_out = replies.left_out  # the same for all searches, because they share the gather
        answers.append(answer)
    return answers
