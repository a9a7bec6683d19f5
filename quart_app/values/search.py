"""Finding the values that have a prime factor, in all live databases, part by part.

One gather asks every database for its lowest values, up to a bound. A database that has more says at which value it
stopped. Below the lowest of these values the answer is complete, and the next gather asks for the values above it. So
one gather, at one moment, decides about each value: a value that moves between databases is found exactly once.
"""

from __future__ import annotations

import bisect
import itertools
import operator
from collections.abc import Sequence
from typing import NamedTuple

from mesh import DeadlineExceeded
from mesh.raw import Replica
from quart_app.values.answers import Answers, Array, element, elements
from quart_app.values.finding import Finder, Wanted
from quart_app.values.notation import rank
from quart_app.values.pace import Pace
from quart_app.values.store import digits, ordered

#: Values that are added to an answer at once, where not all of them can be.
BLOCK = 100
#: The length of the shortest line, with what separates it from the next one: "a2=2;".
LEAST_LINE = 5


class Question(NamedTuple):
    """What a client asks for: values above `after` with the factor `prime`, at most `most` and `most_bytes` of JSON."""

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

    def __init__(
        self, mesh: Replica, finder: Finder, pace: Pace, answers: Answers, question: Question, deadline_ms: int
    ) -> None:
        self._mesh = mesh
        self._finder = finder
        self._pace = pace
        self._answers = answers
        self._question = question
        self._end_ms = mesh.now_ms() + deadline_ms
        self._array = Array()
        self._count = 0
        self._last = ""
        self._left_out: set[int] = set()
        #: whether the answer has as much as it may, so that others follow
        self._is_full = False

    async def run(self) -> Result:
        """Search until all is found, or enough. Raises Incomplete, DeadlineExceeded, Busy, MeshError."""
        after = await self._part(self._question.after)
        if after and not self._is_full:
            # Reserve the memory of a long answer before it is read.
            with self._answers.budget.lent(self._question.most_bytes):
                while after and not self._is_full:
                    after = await self._part(after)
        return Result(self._array, self._last, self._is_full, sorted(self._left_out))

    async def _part(self, after: str) -> str:
        """Add one part to the answer; return the value up to which it is complete, or "" if it was the last part."""
        deadline_ms = self._end_ms - self._mesh.now_ms()
        if deadline_ms <= 0:
            raise DeadlineExceeded("the search did not end in time; ask for fewer values with ?limit=")
        limit = self._question.most - self._count + 1
        answers = await self._finder.find(self._mesh, Wanted(self._question.prime, after, limit), deadline_ms)
        self._left_out.update(answers.left_out)
        until = min((part.until for part in answers.values() if part.until), key=rank, default="")
        found = [part.found for part in answers.values() if part.found]
        text = await self._merged(found, until)
        if text:
            await self._add(text)
        return until

    async def _merged(self, found: Sequence[str | list[str]], until: str) -> str:
        """Merge the texts of several databases into one, with each value once, up to a value ("" for all).

        Two databases may have one value while it moves between them. It does not matter which line is kept, because
        both have the same factors.
        """
        texts = [each for each in found if isinstance(each, str)]
        if len(texts) < len(found):
            texts.append(_text([each for each in found if not isinstance(each, str)]))
        if len(texts) == 1 and not until:
            return texts[0]
        lines: list[str] = []
        for text in texts:
            await self._pace()
            lines += text.split(";")
        lines.sort()
        await self._pace()
        if any("^" in text for text in texts):
            # Releases write exponents differently, so two lines of one value may differ. One line is kept for a value.
            lines = [*{line.partition("=")[0]: line for line in lines}.values()]
        elif len(texts) > 1 and any(map(operator.eq, lines, itertools.islice(lines, 1, None))):
            lines = [*dict.fromkeys(lines)]
        if until:
            # ">" follows "=", with which factors begin.
            del lines[bisect.bisect_left(lines, f"{ordered(until)}>") :]
        return ";".join(lines)

    async def _add(self, text: str) -> bool:
        """Append values; return False if the answer is full."""
        if self._add_at_once(text):
            return True
        lines = text.split(";")
        if len(lines) == 1:
            return self._add_one(text)
        # Blocks that fit and have no exponents are still added at once. Only the others are divided further.
        size = max(1, min(BLOCK, len(lines) // 2))
        for first in range(0, len(lines), size):
            await self._pace()
            if not await self._add(";".join(lines[first : first + size])):
                return False
        return True

    def _add_at_once(self, text: str) -> bool:
        """Append all of these values, or return False if they do not fit or have exponents."""
        room = self._question.most - self._count
        # Most texts are too short to have too many values, and need no count.
        if "^" in text or (len(text) >= room * LEAST_LINE and text.count(";") >= room):
            return False
        json, number = elements(text)
        if self._array.size + len(json) > self._question.most_bytes:
            return False
        self._array.add(json)
        self._count += number
        self._last = digits(text[text.rfind(";") + 1 :].partition("=")[0])
        return True

    def _add_one(self, line: str) -> bool:
        """Append a value; return False if the answer is full."""
        name, _, factors = line.partition("=")
        value = digits(name)
        json = element(value, factors)
        if self._count >= self._question.most or (
            self._count and self._array.size + len(json) > self._question.most_bytes
        ):
            self._is_full = True
            return False
        self._array.add(json)
        self._count += 1
        self._last = value
        return True


def _text(answers: Sequence[list[str]]) -> str:
    """Return the answers of earlier releases as text: their lists have a value and its record in turn.

    If two databases have a value, the record of the newer request counts.
    """
    best: dict[str, str] = {}
    for flat in answers:
        for value, record in zip(flat[::2], flat[1::2], strict=True):
            if value not in best or _order(best[value]) <= _order(record):
                best[value] = record
    return ";".join(
        f"{ordered(value)}={record.split(' ', 2)[2] if record.count(' ') > 1 else ''}"
        for value, record in sorted(best.items(), key=lambda item: rank(item[0]))
    )


def _order(record: str) -> tuple[int, int]:
    """Return the id of the request that wrote a record, as numbers: the newer the record, the greater they are."""
    milliseconds, _, sequence = record.partition(" ")[0].partition("-")
    return int(milliseconds), int(sequence)
