"""Request bodies: strict JSON in, checked models out, and a clear error for everything else.

Python's parser takes `NaN`, duplicate keys and lone surrogates, and turns deep nesting into RecursionError or, from
3.14 on, takes most of it; none of that may reach a handler. With hooks that refuse all this it takes several times as
long as msgspec's, so that one is asked first, and its answer counts where it is sure to be the same.
"""

from __future__ import annotations

import asyncio
import json
import re
from typing import Any, NoReturn, Protocol, TypeVar

import msgspec
from pydantic import ValidationError
from quart import request
from werkzeug.exceptions import RequestTimeout

from quart_app.http.problems import Problem, from_validation

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)

#: More digits than any service takes; an integer above it is refused before it is converted.
MAX_INTEGER_DIGITS = 4000
#: More keys than any object of ours has; each unknown one would be an error of its own.
MAX_KEYS = 1000
#: Lists and objects within each other, several times as many as any of ours. How many the parsers bear depends on
#: Python's version.
MAX_DEPTH = 32
#: A longer body is parsed beside the event loop, which gets its turn meanwhile.
LONG = 1 << 17
#: Items of a list that are checked in one go.
SLICE = 250


class Checker(Protocol[T_co]):
    """Makes a value the type that is wanted, or raises pydantic's ValidationError: a TypeAdapter, or one quicker."""

    def validate_python(self, value: Any, /, *, strict: bool) -> T_co: ...


class _Unacceptable(ValueError):
    """JSON by its grammar, yet not to be taken; carries the status."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


def _integer(text: str) -> int:
    if len(text) > MAX_INTEGER_DIGITS:
        raise _Unacceptable(422, f"an integer of {len(text)} digits is too long")
    return int(text)


def _constant(name: str) -> NoReturn:
    raise _Unacceptable(400, f"{name} is not JSON")


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(pairs) > MAX_KEYS:
        raise _Unacceptable(422, f"an object of {len(pairs)} keys is too large")
    found = dict(pairs)
    if len(found) != len(pairs):
        raise _Unacceptable(400, "an object names the same key twice")
    return found


_BRACKET = re.compile(r"[\[\]{}]")
#: A string, to the end of the text where it has none of its own; it takes what it has read, and never looks back.
_STRING = re.compile(r'"(?:[^"\\]++|\\.?)*+"?', re.DOTALL)

#: Made once: `json.loads` makes one for each call that wants more than its defaults.
_decoder = json.JSONDecoder(parse_int=_integer, parse_constant=_constant, object_pairs_hook=_object)


_quick_decoder: msgspec.json.Decoder[Any] = msgspec.json.Decoder()
_quick_encoder = msgspec.json.Encoder()
_LONG_INTEGER = b"0" * MAX_INTEGER_DIGITS
_AS_ZEROS = bytes.maketrans(b"123456789", b"000000000")


def parse_json(data: bytes | str) -> Any:
    """The value that `data` stands for. Raises Problem (400, 422) where it is no acceptable JSON."""
    text = data.encode("utf-8", "surrogatepass") if isinstance(data, str) else data
    value = _parsed_quickly(text)
    return _parsed_carefully(data) if value is None else value


def _parsed_quickly(text: bytes) -> Any:
    """The value, where the quick parser is sure to say the same as the careful one; else None."""
    if b"\\" in text or (len(text) >= MAX_INTEGER_DIGITS and _LONG_INTEGER in text.translate(_AS_ZEROS)):
        return None
    try:
        value = _quick_decoder.decode(text)
    except (ValueError, RecursionError):
        return None
    # Of a key that is named twice it keeps one: then there are more strings in the text than in the value.
    quotes = text.count(b'"')
    if _quick_encoder.encode(value).count(b'"') != quotes:
        return None
    is_small = quotes <= 2 * MAX_KEYS and text.count(b"[") + text.count(b"{") <= MAX_DEPTH
    return value if is_small or _is_flat(value, text) else None


def _is_flat(value: Any, text: bytes) -> bool:
    """Whether this is a list of objects with nothing nested in them, none of which has too many keys."""
    return (
        isinstance(value, list)
        and text.count(b"[") == 1
        and text.count(b"{") == len(value)
        and all(type(item) is dict and len(item) <= MAX_KEYS for item in value)
    )


def _parsed_carefully(data: bytes | str) -> Any:
    try:
        text = data if isinstance(data, str) else data.decode("utf-8")
        if _is_deep(text):
            raise _Unacceptable(400, "the body is nested too deeply")
        value = _decoder.decode(text)
        if "\\u" in text:
            json.dumps(value, ensure_ascii=False).encode("utf-8")
    except _Unacceptable as error:
        raise Problem(error.status, str(error)) from error
    except UnicodeDecodeError as error:
        raise Problem(400, f"the body is not UTF-8 (byte {error.start})") from error
    except UnicodeEncodeError as error:
        raise Problem(400, "a string has half a surrogate pair") from error
    except json.JSONDecodeError as error:
        raise Problem(400, f"the body is not JSON: {error.msg} at character {error.pos}") from error
    return value


def _is_deep(text: str) -> bool:
    depth = 0
    for bracket in _BRACKET.findall(_STRING.sub("", text)):
        depth += 1 if bracket in "[{" else -1
        if depth > MAX_DEPTH:
            return True
    return False


async def read_json(adapter: Checker[T]) -> T:
    """The current request's body as the adapter's type.

    Raises Problem: 400 not JSON, 408 stalled, 413 too large, 415 another content type, 422 not valid.
    """
    return _checked(adapter, await _read())


async def read_items(adapter: Checker[list[T]], most: int) -> list[T]:
    """The same for a list of up to `most` items. However long it is, the event loop goes round meanwhile.

    The first wrong items are named, not all of thousands.
    """
    value = await _read()
    if not isinstance(value, list):
        return _checked(adapter, value)
    if len(value) > most:
        raise Problem(422, f"at most {most} items are taken at once, and not {len(value)}")
    items: list[T] = []
    for first in range(0, len(value), SLICE):
        if first:
            await asyncio.sleep(0)
        part: list[T] = _checked(adapter, value[first : first + SLICE], first)
        items += part
    return items


async def _read() -> Any:
    mimetype = request.mimetype
    if mimetype != "application/json" and not mimetype.endswith("+json"):
        raise Problem(415, "send the content as application/json")
    data = await _data()
    return await asyncio.to_thread(parse_json, data) if len(data) > LONG else parse_json(data)


async def _data() -> bytes:
    """The whole body, most often there already; Quart's own way of waiting for it takes a task."""
    try:
        async with asyncio.timeout(request.body_timeout):
            return b"".join([part async for part in request.body])
    except TimeoutError as error:
        raise RequestTimeout from error


def _checked(adapter: Checker[T], value: Any, first: int = 0) -> T:
    try:
        return adapter.validate_python(value, strict=True)
    except ValidationError as error:
        raise from_validation(error, first) from error
