"""Finding the values that have a prime factor, in all live databases, part by part.

One gather asks each database for its lowest values, up to a bound. A database that has more values names the value at
which it stopped. Up to the lowest of the named values, the answer is complete; the next gather asks for the values
above. So exactly one gather finds each value, at one moment, even if the value moves between databases.
"""

from __future__ import annotations

import bisect
import itertools
import operator
from collections.abc import Sequence
from typing import NamedTuple

from mesh import DeadlineExceeded
from mesh.raw import Replica
from quart_app.values.answers import Array, Responses, element, elements
from quart_app.values.finding import SharedGathers, Wanted
from quart_app.values.notation import rank
from quart_app.values.pace import Pace
from quart_app.values.store import with_prefix, without_prefix

#: The most values in a block. If not all values of a part can be added to the answer at once, they are added in blocks.
#: A larger block would block the event loop for longer.
MOST_BLOCK_VALUES = 100
#: The length of the shortest line, including the separator: "a2=2;".
SHORTEST_LINE_LENGTH = 5


class Question(NamedTuple):
    """What a client asks for: values above `after` ("" for all) with the factor `prime`.

    The answer has at most `most` values and `most_bytes` bytes of JSON. A search may need several gathers for it; each
    of them asks for a `Wanted`.
    """

    prime: str
    after: str
    most: int
    most_bytes: int


class Result(NamedTuple):
    """The values of an answer, and the last of these values; `has_more` says whether further values follow.

    `left_out` are the databases that hold data and have no replica that could answer for them.
    """

    array: Array
    last_value: str
    has_more: bool
    left_out: list[int]


class Search:
    """The search for one client, with as many gathers as its answer needs. Call `run` once."""

    def __init__(
        self,
        replica: Replica,
        gathers: SharedGathers,
        pace: Pace,
        responses: Responses,
        question: Question,
        time_limit_ms: int,
    ) -> None:
        self._replica = replica
        self._gathers = gathers
        self._pace = pace
        self._responses = responses
        self._question = question
        self._end_ms = replica.now_ms() + time_limit_ms
        self._array = Array()
        self._value_count = 0
        self._last_value = ""
        self._left_out: set[int] = set()
        #: whether a value was found for which the answer has no room
        self._is_full = False

    async def run(self) -> Result:
        """Search until all is found or the answer is full. Raises Incomplete, DeadlineExceeded, Busy, MeshError."""
        after = await self._add_next_part(self._question.after)
        if after and not self._is_full:
            # Reserve memory before a long answer is read.
            with self._responses.budget.lent(self._question.most_bytes):
                while after and not self._is_full:
                    after = await self._add_next_part(after)
        return Result(self._array, self._last_value, self._is_full, sorted(self._left_out))

    async def _add_next_part(self, after: str) -> str:
        """Ask for the next part above the value `after`, and add it to the answer as far as there is room.

        Return the value up to which the databases were searched, or "" after the last part.
        """
        left_ms = self._end_ms - self._replica.now_ms()
        if left_ms <= 0:
            raise DeadlineExceeded("the search did not end in time; ask for fewer values with ?limit=")
        # One value more than the answer has room for: this value shows that further values follow.
        limit = self._question.most - self._value_count + 1
        replies = await self._gathers.find(self._replica, Wanted(self._question.prime, after, limit), left_ms)
        self._left_out.update(replies.left_out)
        until = min((part.until for part in replies.values() if part.until), key=rank, default="")
        found = [part.found for part in replies.values() if part.found]
        merged = await self._merge(found, until)
        if merged:
            await self._add(merged)
        return until

    async def _merge(self, found: Sequence[str | list[str]], until: str) -> str:
        """Merge what several databases have found into one text, each value once, up to the value `until` ("" for all).

        While a value moves between two databases, both may have it. Either line may be kept, because both lines have
        the same factors.
        """
        # A replica of an earlier release answers with a list.
        texts = [answer for answer in found if isinstance(answer, str)]
        if len(texts) < len(found):
            texts.append(_text_of_lists([answer for answer in found if not isinstance(answer, str)]))
        if len(texts) == 1 and not until:
            return texts[0]
        lines: list[str] = []
        for text in texts:
            await self._pace()
            lines += text.split(";")
        lines.sort()
        await self._pace()
        if any("^" in text for text in texts):
            # Two releases may write exponents differently, so the lines of one value may differ. One line is kept.
            lines = [*{line.partition("=")[0]: line for line in lines}.values()]
        # If two databases have a value, its two lines are neighbours after the sort.
        elif len(texts) > 1 and any(map(operator.eq, lines, itertools.islice(lines, 1, None))):
            lines = [*dict.fromkeys(lines)]
        if until:
            # ">" is the character after "=", so this text sorts after the line of `until` and before all later lines.
            del lines[bisect.bisect_left(lines, f"{with_prefix(until)}>") :]
        return ";".join(lines)

    async def _add(self, text: str) -> bool:
        """Append the values of these lines; return False, and set `_is_full`, if the answer is full before the end."""
        if self._add_at_once(text):
            return True
        lines = text.split(";")
        if len(lines) == 1:
            return self._add_one(text)
        # Each block is added at once if it fits and has no exponents. Otherwise this method divides it further, down to
        # single lines: a block has at most half of the lines.
        block_size = max(1, min(MOST_BLOCK_VALUES, len(lines) // 2))
        for first in range(0, len(lines), block_size):
            await self._pace()
            if not await self._add(";".join(lines[first : first + block_size])):
                return False
        return True

    def _add_at_once(self, text: str) -> bool:
        """Append all of these values; return False if they do not fit, or have exponents (`elements` takes none)."""
        values_left = self._question.most - self._value_count
        # A short text cannot have too many values. So the values of most texts need not be counted.
        if "^" in text or (len(text) >= values_left * SHORTEST_LINE_LENGTH and text.count(";") >= values_left):
            return False
        elements_json, added_count = elements(text)
        if self._array.size + len(elements_json) > self._question.most_bytes:
            return False
        self._array.add(elements_json)
        self._value_count += added_count
        self._last_value = without_prefix(text[text.rfind(";") + 1 :].partition("=")[0])
        return True

    def _add_one(self, line: str) -> bool:
        """Append a value; return False if the answer is full. The first value may exceed `most_bytes`."""
        prefixed_value, _, factors = line.partition("=")
        value = without_prefix(prefixed_value)
        element_json = element(value, factors)
        # Without the exception for the first value, no page could have a value that is too long.
        if self._value_count >= self._question.most or (
            self._value_count and self._array.size + len(element_json) > self._question.most_bytes
        ):
            self._is_full = True
            return False
        self._array.add(element_json)
        self._value_count += 1
        self._last_value = value
        return True


def _text_of_lists(answers: Sequence[list[str]]) -> str:
    """Return the answers of earlier releases as text. These answers are lists: a value, its record, the next value...

    If two databases have a value, the record of the newer request counts.
    """
    newest_records: dict[str, str] = {}
    for alternating in answers:
        for value, record in zip(alternating[::2], alternating[1::2], strict=True):
            if value not in newest_records or _request_id(newest_records[value]) <= _request_id(record):
                newest_records[value] = record
    return ";".join(
        f"{with_prefix(value)}={record.split(' ', 2)[2] if record.count(' ') > 1 else ''}"
        for value, record in sorted(newest_records.items(), key=lambda item: rank(item[0]))
    )


def _request_id(record: str) -> tuple[int, int]:
    """Return the id of the request that wrote a record, as two numbers. A newer record has greater numbers."""
    milliseconds, _, sequence = record.partition(" ")[0].partition("-")
    return int(milliseconds), int(sequence)
