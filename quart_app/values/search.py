"""Finding the values that have a prime factor, in all live databases, part by part.

One gather asks every database for a part of its values, ascending and bounded. All of them are known up to the least
value at which a database had to stop; the next gather asks for those above it. So every value is decided by one gather,
at one moment: while it moves from one database to another it is found once, neither twice nor never.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from mesh import DeadlineExceeded
from mesh.raw import Replica
from quart_app.values import handlers
from quart_app.values.answers import ELEMENTS, Answers, Array, element
from quart_app.values.notation import rank
from quart_app.values.pace import Pace


class Question(NamedTuple):
    """What is asked for: values with the factor `prime` above `after`, up to some number and size of them."""

    prime: str
    after: str
    most: int
    most_bytes: int


class Result(NamedTuple):
    """Values as an answer, and the last of them; `more` says whether others follow.

    `left_out` are databases that hold data and could not be asked.
    """

    array: Array
    last: str
    more: bool
    left_out: list[int]


class Search:
    """One search. `run` makes it."""

    def __init__(self, mesh: Replica, pace: Pace, answers: Answers, question: Question, deadline_ms: int) -> None:
        self._mesh = mesh
        self._pace = pace
        self._answers = answers
        self._question = question
        self._end_ms = mesh.now_ms() + deadline_ms
        self._array = Array()
        self._count = 0
        self._last = ""
        self._left_out: set[int] = set()

    async def run(self) -> Result:
        """Search until all is found, or enough. Raises Incomplete, DeadlineExceeded, Busy, MeshError."""
        after = await self._part(self._question.after)
        if after and not self._is_full:
            # A long answer takes its place in memory before it is read.
            with self._answers.budget.lent(self._question.most_bytes):
                while after and not self._is_full:
                    after = await self._part(after)
        return Result(self._array, self._last, self._is_full, sorted(self._left_out))

    async def _part(self, after: str) -> str:
        """Take one part over; return the value up to which it goes, or "" if it is the last one."""
        deadline_ms = self._end_ms - self._mesh.now_ms()
        if deadline_ms <= 0:
            raise DeadlineExceeded("the search did not end in time; ask for fewer values with ?limit=")
        body = {"prime": self._question.prime, "after": after, "limit": self._question.most - self._count + 1}
        answers = await self._mesh.gather(handlers.FIND, body, deadline_ms=deadline_ms)
        self._left_out.update(answers.left_out)
        until = min((answer["until"] for answer in answers.values() if answer["until"]), key=rank, default="")
        records = await self._merged(answers)
        end = rank(until) if until else None
        for number, value in enumerate(sorted(records, key=rank)):
            if number % ELEMENTS == ELEMENTS - 1:
                await self._pace()
            if (end is not None and rank(value) > end) or not self._add(value, records[value]):
                break
        return until

    def _add(self, value: str, record: str) -> bool:
        """Append a value; return False if the answer is full."""
        text = element(value, record.split(" ", 2)[2] if record.count(" ") > 1 else "")
        if self._count >= self._question.most or (
            self._count and self._array.size + len(text) > self._question.most_bytes
        ):
            self._is_full = True
            return False
        self._array.add(text)
        self._count += 1
        self._last = value
        return True

    async def _merged(self, answers: Mapping[int, Any]) -> dict[str, str]:
        """Return every value's record; if two databases have one, the record of the newer request counts."""
        best: dict[str, str] = {}
        for answer in answers.values():
            await self._pace()
            flat = answer["found"]
            found = dict(zip(flat[::2], flat[1::2], strict=True))
            for value in best.keys() & found.keys():
                if _order(found[value]) < _order(best[value]):
                    del found[value]
            best |= found
        return best

    _is_full = False


def _order(record: str) -> tuple[int, int]:
    """Return the age of a record: the id of the request that wrote it, as numbers."""
    milliseconds, _, sequence = record.partition(" ")[0].partition("-")
    return int(milliseconds), int(sequence)
