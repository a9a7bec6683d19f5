"""Request bodies: strict JSON in, checked models out, and a clear error for everything else.

Python's parser accepts `NaN`, duplicate keys and lone surrogates. It turns deep nesting into RecursionError or, from
3.14 on, accepts most of it. None of that may reach a handler. With hooks that refuse all this, Python's parser is
several times as slow as msgspec's. So msgspec parses first. Its value is used if the text has nothing about which the
two parsers may disagree. Otherwise Python's parser parses the text again, with the hooks.

A parser blocks the event loop until it ends. So bodies that are not small are parsed one after the other, and in
pieces:

    up to SMALL_BYTES           at once
    up to PIECE_BYTES           in one piece
    a list of objects           in pieces of whole objects; the event loop runs between two pieces
    no list, and few values     in one piece, up to MOST_BYTES_UNCUT
    anything else               422, because parsing it would stop the event loop

So a longer list is refused unless it consists of objects, even if it has only two long strings.

A *text* is JSON that is not parsed yet, mostly as bytes.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Callable
from typing import Any, NoReturn, Protocol, TypeVar

import msgspec
from pydantic import ValidationError
from quart import request
from werkzeug.exceptions import RequestTimeout

from quart_app.http.problems import Problem, from_validation
from quart_app.http.request import RequestBody

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)

#: The most digits of an integer, and more than any service accepts. A longer one is refused before its conversion,
#: because the time of a conversion grows with the square of the digits.
MAX_INTEGER_DIGITS = 4000
#: More keys than an object of any service has. An object with more keys is refused as a whole, because each unknown key
#: would be an error of its own.
MAX_KEYS = 100
#: The most levels of nested lists and objects, several times as many as any service needs. We set a bound because the
#: number of levels that Python's parser can handle depends on its version.
MAX_DEPTH = 32
#: A body of up to this many bytes does not wait for its turn: parsing it takes less than 1 ms at worst. With a larger
#: number, many bodies that arrive together would hold up the event loop; with a smaller one, more bodies would wait.
SMALL_BYTES = 1 << 11
#: The most bytes that are parsed in one go: about 3 ms at worst. Larger pieces hold up the event loop for longer;
#: smaller ones cost more turns.
PIECE_BYTES = 1 << 14
#: A piece ends at an object's `}` that a comma follows. These are the offsets in a piece from which such a place is
#: searched. A place may turn out to be inside a long string, so there are three tries. All are in the second half, so
#: that no piece but the last is short.
PIECE_END_OFFSETS = (PIECE_BYTES * 4 // 8, PIECE_BYTES * 5 // 8, PIECE_BYTES * 7 // 8)
#: A body longer than PIECE_BYTES that is no list of objects is parsed in one step only within these three bounds. They
#: limit its bytes, its quotes and backslashes together, and its signs `[]{},:` outside of strings. Parsing takes
#: longest for a text with many of these, and holds the event loop meanwhile.
MOST_BYTES_UNCUT, MOST_QUOTES_UNCUT, MOST_SIGNS_UNCUT = 1 << 19, 50_000, 100
#: The most items of a list that are checked before the event loop runs again. More hold it longer; fewer need more of
#: its turns.
SLICE_ITEMS = 100
#: If a slice has more errors than this, only those of its first wrong item are described. Describing more would hold
#: the event loop for longer, and make a longer answer.
MOST_DESCRIBED_ERRORS = 250


class Checker(Protocol[T_co]):
    """Checks a value and turns it into a type: pydantic's TypeAdapter, or something quicker.

    Raises pydantic's ValidationError.
    """

    def validate_python(self, value: Any, /, *, strict: bool) -> T_co: ...


class _UnacceptableText(ValueError):
    """A text that Python's parser accepts and we do not. `status` is the HTTP status of our answer."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


def _bounded_integer(text: str) -> int:
    if len(text) > MAX_INTEGER_DIGITS:
        raise _UnacceptableText(
            422, f"an integer of {len(text)} digits is too long; at most {MAX_INTEGER_DIGITS} are accepted"
        )
    return int(text)  # raises nothing: Python's own bound is 4300 digits


def _refuse_nan_and_infinity(name: str) -> NoReturn:
    raise _UnacceptableText(400, f"{name} is not JSON")


def _bounded_object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(pairs) > MAX_KEYS:
        raise _UnacceptableText(422, f"an object of {len(pairs)} keys is too large; at most {MAX_KEYS} are accepted")
    members = dict(pairs)
    if len(members) != len(pairs):
        raise _UnacceptableText(400, "an object names the same key twice")
    return members


TOO_DEEP_DETAIL = f"the body is nested too deeply; at most {MAX_DEPTH} levels are accepted"
_BRACKET = re.compile(r"[\[\]{}]")
#: A JSON string, or the rest of the text if the string has no end. Its possessive quantifiers (`++`, `*+`) keep it from
#: trying a second way to match.
_STRING_LITERAL = re.compile(r'"(?:[^"\\]++|\\.?)*+"?', re.DOTALL)

#: Made once: `json.loads` makes a decoder for each call that has options.
_strict_python_decoder = json.JSONDecoder(
    parse_int=_bounded_integer, parse_constant=_refuse_nan_and_infinity, object_pairs_hook=_bounded_object
)


_msgspec_decoder: msgspec.json.Decoder[Any] = msgspec.json.Decoder()
_msgspec_encoder = msgspec.json.Encoder()
#: As many zeros as the longest accepted integer has digits; `_DIGITS_TO_ZEROS` makes each digit of a text a zero.
#: msgspec accepts longer integers, so Python's parser reads a text in which this run is found.
_LONGEST_DIGIT_RUN = b"0" * MAX_INTEGER_DIGITS
_DIGITS_TO_ZEROS = bytes.maketrans(b"123456789", b"000000000")


def parse_json(text: bytes | str) -> Any:
    """Return the value that this JSON stands for. Raises Problem (400, 422) if we do not accept it.

    All services pass bytes; a str is accepted, too, as by `json.loads`.
    """
    # With "surrogatepass", half a surrogate pair in a str does not raise here. msgspec refuses its bytes.
    utf8_text = text.encode("utf-8", "surrogatepass") if isinstance(text, str) else text
    value = _parsed_by_msgspec(utf8_text)  # None also for `null`, which is then parsed again
    return _parsed_by_python(text) if value is None else value


def _parsed_by_msgspec(text: bytes) -> Any:
    """Return the value that msgspec finds, or None if Python's parser with our hooks might not agree."""
    # An escape could be half a surrogate pair, or stand for a quote, which would disturb the count of quotes below.
    if b"\\" in text or (len(text) >= MAX_INTEGER_DIGITS and _LONGEST_DIGIT_RUN in text.translate(_DIGITS_TO_ZEROS)):
        return None
    try:
        value = _msgspec_decoder.decode(text)
    except (ValueError, RecursionError):
        return None
    # If an object names a key twice, msgspec keeps one of the two. Then the text has more quotes than the value's JSON.
    quote_count = text.count(b'"')
    if _msgspec_encoder.encode(value).count(b'"') != quote_count:
        return None
    # Each key needs two quotes, and each level an opening bracket. So a text with few of them needs no further check of
    # its keys and levels.
    is_within_bounds = quote_count <= 2 * MAX_KEYS and text.count(b"[") + text.count(b"{") <= MAX_DEPTH
    return value if is_within_bounds or _is_list_of_flat_objects(value, text) else None


def _is_list_of_flat_objects(value: Any, text: bytes) -> bool:
    """Return whether this is a list of objects that contain no lists or objects and not too many keys."""
    return (
        isinstance(value, list)
        and text.count(b"[") == 1
        and text.count(b"{") == len(value)
        and all(type(item) is dict and len(item) <= MAX_KEYS for item in value)
    )


def _parsed_by_python(text: bytes | str) -> Any:
    """Parse JSON with Python's own parser. Raises Problem for a text that is not JSON, or not acceptable."""
    try:
        decoded_text = text if isinstance(text, str) else text.decode("utf-8")
        if _is_too_deep(decoded_text):
            raise _UnacceptableText(400, TOO_DEEP_DETAIL)
        value = _strict_python_decoder.decode(decoded_text)
        if "\\u" in decoded_text:  # an escape may be half a surrogate pair, which UTF-8 cannot encode
            json.dumps(value, ensure_ascii=False).encode("utf-8")
    except _UnacceptableText as error:
        raise Problem(error.status, str(error)) from error
    except UnicodeDecodeError as error:
        raise Problem(400, f"the body is not UTF-8 (byte {error.start})") from error
    except UnicodeEncodeError as error:
        raise Problem(400, "a string of the body has half a surrogate pair") from error
    except json.JSONDecodeError as error:
        raise Problem(400, f"the body is not JSON: {error.msg} at character {error.pos}") from error
    return value


def _is_too_deep(text: str) -> bool:
    """Return whether a text has more than MAX_DEPTH nested brackets. It may be only the beginning of a body."""
    depth = 0
    for bracket in _BRACKET.findall(_STRING_LITERAL.sub("", text)):
        depth += 1 if bracket in "[{" else -1
        if depth > MAX_DEPTH:
            return True
    return False


async def read_json(checker: Checker[T]) -> T:
    """Return the body of the current request as the checker's type.

    Raises Problem: 400 not JSON, 415 another content type or encoding, 422 not valid, 503 too many bytes in progress.
    Raises Werkzeug's exceptions, which `problems.install` turns into problems: 400 no end, 408 stalled, 413 too large.
    """
    return _check(checker, await _parse_at_once_or_in_turn(await _read_json_text()))


async def read_items(
    checker: Checker[list[T]], most_items: int, decode_quickly: Callable[[bytes], list[T] | None] = lambda _: None
) -> list[T]:
    """Return the body of the current request as a list of up to `most_items`. Raises what `read_json` raises.

    The items are checked in slices of SLICE_ITEMS, and the event loop runs between two slices. The error names the
    wrong items of one slice only, the first that has some.

    `decode_quickly` is tried first. It returns the items of the text, or None if it cannot tell whether they are valid.
    Nothing checks the items that it returns, so it must itself keep to `most_items` and to the bounds of this module.
    For a text longer than PIECE_BYTES it runs in a thread, so that it does not hold the event loop. While it holds the
    interpreter's lock, the event loop has to wait all the same, so it must be quick.
    """
    text = await _read_json_text()
    if len(text) <= PIECE_BYTES:
        items = decode_quickly(text)
    else:
        async with _thread_turn:
            items = await asyncio.to_thread(decode_quickly, text)
    if items is not None:
        return items
    value = await _parse_at_once_or_in_turn(text, most_items)
    if not isinstance(value, list):
        return _check(checker, value)  # raises, because the checker wants a list
    _refuse_too_many_items(value, most_items)
    items = []
    for start in range(0, len(value), SLICE_ITEMS):
        if start:
            await asyncio.sleep(0)
        items += _checked_slice(checker, value[start : start + SLICE_ITEMS], start)
    return items


def _refuse_too_many_items(value: list[Any], most_items: int | None) -> None:
    if most_items is not None and len(value) > most_items:
        raise Problem(422, f"at most {most_items} items are accepted in one request; send the others in another one")


async def _read_json_text() -> bytes:
    """Wait for the body and return it, if its headers say that it is JSON without compression. Raises Problem (415)."""
    mimetype = request.mimetype
    if mimetype != "application/json" and not mimetype.endswith("+json"):
        raise Problem(415, f"the content type {mimetype[:100]!r} is not supported; send application/json")
    encoding = request.headers.get("Content-Encoding", "identity").strip().lower()
    if encoding not in {"identity", ""}:
        detail = f"the content encoding {encoding[:100]!r} is not supported; send the body without compression"
        raise Problem(415, detail, headers={"Accept-Encoding": "identity"})  # as RFC 7694 wants it
    return await _read_whole_body()


async def _parse_at_once_or_in_turn(text: bytes, most_items: int | None = None) -> Any:
    """Return the value of a JSON text. A text of more than SMALL_BYTES waits for its turn.

    A list of more than `most_items` may be refused before its end is parsed. None: there is no such bound.
    """
    return parse_json(text) if len(text) <= SMALL_BYTES else await _parse_in_turn(text, most_items)


async def _read_whole_body() -> bytes:
    """Return the whole body. Waiting for the body takes one timer here; Quart's own method takes a task as well."""
    body = request.body  # only an `Application` has a RequestBody; tests also use a plain Quart
    if isinstance(body, RequestBody) and body.has_arrived():
        return await body.read_and_clear()
    try:
        async with asyncio.timeout(request.body_timeout):
            return b"".join([part async for part in body])
    except TimeoutError as error:
        raise RequestTimeout(f"the body did not arrive within {request.body_timeout:g} s") from error


#: At most one long body is parsed at a time, and `decode_quickly` reads at most one in a thread. Otherwise several
#: bodies that arrive together would hold the event loop one after the other: in threads, too, because each thread
#: keeps the interpreter's lock while it decodes.
_parsing_turn, _thread_turn = asyncio.Semaphore(1), asyncio.Semaphore(1)


async def _parse_in_turn(text: bytes, most_items: int | None) -> Any:
    async with _parsing_turn:
        await asyncio.sleep(0)  # lets the event loop run between two bodies
        text = text.strip(b" \t\r\n")
        if len(text) > PIECE_BYTES and text.startswith(b"["):
            return await _parse_list(text, most_items)
        if len(text) <= PIECE_BYTES or _has_few_values(text):
            await asyncio.sleep(0)  # `_has_few_values` has held the event loop, too
            return parse_json(text)
        raise _deep_nesting_or_problem(
            text, 422, f"a body of more than {PIECE_BYTES} bytes must be a list of objects or have few values"
        )


def _deep_nesting_or_problem(text: bytes, status: int, detail: str) -> Problem:
    """Return the problem that refuses a text: too deep nesting, if its beginning is too deep; else the given problem.

    Only the beginning is searched, because a search of the whole text would hold the event loop.
    """
    if _is_too_deep(text[:PIECE_BYTES].decode("utf-8", "replace")):
        return Problem(400, TOO_DEEP_DETAIL)
    return Problem(status, detail)


def _has_few_values(text: bytes) -> bool:
    """Return whether a text is within the bounds MOST_…_UNCUT.

    With larger bounds, one body would hold the event loop for longer; with smaller ones, more bodies would be refused.
    """
    if len(text) > MOST_BYTES_UNCUT or text.count(b'"') + text.count(b"\\") > MOST_QUOTES_UNCUT:
        return False
    outside_strings = _STRING_LITERAL.sub("", text.decode("utf-8", "replace"))
    return sum(outside_strings.count(sign) for sign in "[]{},:") <= MOST_SIGNS_UNCUT


#: The end of an object that a comma follows.
_END_OF_OBJECT = re.compile(rb"\}[ \t\r\n]*+,")


async def _parse_list(text: bytes, most_items: int | None) -> list[Any]:
    """Parse a list in pieces. A piece ends at the end of an object that a comma follows.

    Such a place may be inside a string or a nested list. Then the string or list has no end in this piece, so the piece
    is not valid JSON, and another place is tried.
    """
    if not text.endswith(b"]"):
        raise _deep_nesting_or_problem(text, 400, "the body is not JSON: the list has no end")
    values: list[Any] = []
    begin, list_end = 1, len(text) - 1  # behind `[`, and at `]`
    while begin <= list_end:  # after the last piece, `begin` is behind `]`
        piece_values, begin = await _parse_piece(text, begin, list_end)
        if not piece_values and values:  # nothing stands between the last comma and `]`
            raise Problem(400, "the body is not JSON: the list ends with a comma")
        values += piece_values
        _refuse_too_many_items(values, most_items)
        await asyncio.sleep(0)
    return values


async def _parse_piece(text: bytes, begin: int, list_end: int) -> tuple[list[Any], int]:
    """Return the values of the piece that begins at `begin`, and where the next piece begins. Raises Problem.

    If every place that is tried lies inside a nested list, the problem of the first try is raised: 400 "not JSON".
    """
    first_problem: Problem | None = None
    for offset in PIECE_END_OFFSETS:
        object_end = _END_OF_OBJECT.search(text, begin + offset, begin + PIECE_BYTES)
        if object_end is None and list_end - begin > PIECE_BYTES:
            break  # the other searches begin later, so they find none either
        # The match ends with a comma, which belongs to no piece. Without a match, the rest of the list is a piece.
        piece_end, next_begin = (
            (list_end, list_end + 1) if object_end is None else (object_end.end() - 1, object_end.end())
        )
        try:
            return parse_json(b"[" + text[begin:piece_end] + b"]"), next_begin
        except Problem as problem:
            first_problem = first_problem or problem
        await asyncio.sleep(0)
    if first_problem is not None:
        raise first_problem
    if _is_too_deep(text[begin : begin + PIECE_BYTES].decode("utf-8", "replace")):
        raise Problem(400, TOO_DEEP_DETAIL)
    raise Problem(
        422, f"a list of more than {PIECE_BYTES} bytes must consist of objects, each of at most {PIECE_BYTES} bytes"
    )


def _checked_slice(checker: Checker[list[T]], items: list[Any], first_index: int) -> list[T]:
    """Return the checked items of a slice whose first item is the item `first_index` of the list.

    It takes longer to describe errors than to find them. If there are more than MOST_DESCRIBED_ERRORS, only those of
    the first wrong item are described.
    """
    try:
        return checker.validate_python(items, strict=True)
    except ValidationError as error:
        if error.error_count() <= MOST_DESCRIBED_ERRORS:
            raise from_validation(error, first_index) from error
    for index, item in enumerate(items, first_index):
        _check(checker, [item], index)  # raises at the first wrong item
    # Each item alone is valid, so only the slice as a whole is wrong. The check raises this error again.
    return _check(checker, items, first_index)


def _check(checker: Checker[T], value: Any, first_index: int = 0) -> T:
    try:
        return checker.validate_python(value, strict=True)
    except ValidationError as error:
        raise from_validation(error, first_index) from error
