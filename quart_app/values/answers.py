"""Answers with many values: written as text, cut into pieces, bounded in memory until they are sent."""

from __future__ import annotations

import asyncio
import re
import weakref
from collections.abc import AsyncIterator, Iterable

from quart import Response

from quart_app.values import notation
from quart_app.values.budget import Budget
from quart_app.values.pace import Pace

#: An answer that is longer than this is sent in pieces of about this size, and between two pieces the event loop does
#: other work. Larger pieces hold it up for longer; smaller ones cost more turns.
PIECE_BYTES = 1 << 16
#: How many elements are written between two calls of `pace`, which lets the event loop do other work. More hold it up
#: for longer; fewer cost more turns.
ELEMENTS_BETWEEN_PACES = 50
#: A client has this long to read an answer of several pieces. Meanwhile its bytes count against the budget, so a longer
#: time lets slow clients keep others out.
READ_WAIT_S = 60.0


def element(value: str, factors: str) -> bytes:
    """Return one element of an answer."""
    return f'{{"value":{value},"prime_factors":{notation.array(factors)}}}'.encode()


#: For `elements`, which turns the text of a search into JSON. The spaces between factors become commas. The prefix of
#: each value is removed: one letter, or "z" and four digits (see `store.with_prefix`).
_SPACES_TO_COMMAS, _PREFIX_LETTERS = bytes.maketrans(b" ", b","), b"abcdefghijklmnopqrstuvwxy"
_LONG_PREFIX = re.compile(rb"z\d{4}")


#: What the JSON has between a value and its factors, and between two elements.
_BEFORE_FACTORS, _BETWEEN_ELEMENTS = b',"prime_factors":[', b']},{"value":'


def elements(search_text: str) -> tuple[bytes, int]:
    """Return the elements for the text of a search ("c136=2 2 2 17;c137=137"), and their number. Commas separate them.

    The factors must have no exponents. A few calls of C functions do all the work, however many values there are. The
    number of elements follows from how much longer the text becomes when each "=" is replaced.
    """
    text = search_text.encode()
    if b"z" in text:
        text = _LONG_PREFIX.sub(b"", text)
    text = text.translate(_SPACES_TO_COMMAS, _PREFIX_LETTERS)
    with_factors = text.replace(b"=", _BEFORE_FACTORS)
    count = (len(with_factors) - len(text)) // (len(_BEFORE_FACTORS) - 1)
    return b'{"value":%b]}' % with_factors.replace(b";", _BETWEEN_ELEMENTS), count


class Array:
    """A JSON array that grows: `add` and `extend` append to it, and `pieces` returns its text."""

    def __init__(self) -> None:
        #: how many bytes the JSON text has: two brackets, and the elements, each with a comma
        self.size = 2
        #: the texts that are in no piece yet
        self._unjoined: list[bytes] = []
        self._unjoined_byte_count = 0
        self._pieces: list[bytes] = []

    def add(self, text: bytes) -> None:
        """Append JSON text: one element, or several with commas between them."""
        self._unjoined.append(text)
        self._unjoined_byte_count += len(text) + 1
        self.size += len(text) + 1
        if self._unjoined_byte_count >= PIECE_BYTES:
            self._join_piece()

    async def extend(self, items: Iterable[tuple[str, str]], pace: Pace) -> None:
        """Append values and their factors. Wait for `pace` between them, so that other work is not held up."""
        for index, (value, factors) in enumerate(items):
            if index % ELEMENTS_BETWEEN_PACES == ELEMENTS_BETWEEN_PACES - 1:
                await pace()
            self.add(element(value, factors))

    def _join_piece(self) -> None:
        """Join the texts that are in no piece yet to one piece."""
        comma = b"," if self._pieces else b""
        self._pieces.append(comma + b",".join(self._unjoined))
        self._unjoined.clear()
        self._unjoined_byte_count = 0

    def pieces(self, text_before: str, text_after: str) -> list[bytes]:
        """Return the array as JSON text between two other parts of the JSON text, in pieces."""
        if self._unjoined:
            self._join_piece()
        pieces = [f"{text_before}[".encode(), *self._pieces, f"]{text_after}\n".encode()]
        return pieces if len(self._pieces) > 1 else [b"".join(pieces)]


class Responses:
    """Makes HTTP responses. `budget` bounds the bytes of all responses of several pieces that are not sent yet."""

    def __init__(self, budget: Budget) -> None:
        self.budget = budget

    def respond(self, array: Array, text_before: str = "", text_after: str = "") -> Response:
        """Return a response with the array between two other parts of the JSON text. Raises Busy as `send` does."""
        return self.send(array.pieces(text_before, text_after))

    def send(self, pieces: list[bytes]) -> Response:
        """Return a response of these pieces of JSON, which Quart then sends. One piece alone takes no budget.

        Raises Busy if the budget has no room for several pieces.
        """
        if len(pieces) == 1:
            return Response(pieces[0], content_type="application/json")
        size = sum(map(len, pieces))
        self.budget.take(size)
        response = Response(_each_piece(pieces), content_type="application/json")
        response.content_length = size
        # Quart ends the response if it is not sent within these seconds.
        response.timeout = READ_WAIT_S
        # When the response is deleted, its bytes leave the budget, even if it was never sent, or only in part.
        weakref.finalize(response, self.budget.give, size)
        return response


async def _each_piece(pieces: list[bytes]) -> AsyncIterator[bytes]:
    """Yield the pieces one by one."""
    for piece in pieces:
        yield piece
        # Let the event loop do other work between two pieces.
        await asyncio.sleep(0)
