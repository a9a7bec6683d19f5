"""Strict JSON: every body becomes a model or a clear error, never a 500."""

from __future__ import annotations

import asyncio
import gzip
import json
import time
from collections.abc import Callable
from typing import Annotated

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from pydantic import BaseModel, Field, TypeAdapter
from quart import Quart, Response, jsonify

from quart_app.http import body, problems
from quart_app.http.body import MAX_DEPTH, MAX_INTEGER_DIGITS, MAX_KEYS, SLICE_ITEMS, parse_json, read_items, read_json
from quart_app.http.problems import Problem
from tests.support.hostile import LARGE, large
from tests.support.waiting import Turns


class Item(BaseModel):
    value: Annotated[int, Field(ge=1)]
    name: str = ""


@pytest.fixture
def app() -> Quart:
    app = Quart(__name__)
    problems.install(app)
    app.config["MAX_CONTENT_LENGTH"] = 200_000
    app.config["BODY_TIMEOUT"] = 0.2
    adapter = TypeAdapter(list[Item])

    @app.post("/")
    async def echo() -> Response:
        return jsonify([item.model_dump() for item in await read_json(adapter)])

    @app.post("/items")
    async def count() -> Response:
        return jsonify(len(await read_items(adapter, MOST)))

    return app


MOST = 4000


def item(text: str) -> bytes:
    return f'[{{"value": {text}}}]'.encode()


#: (body, status, what the detail says)
HOSTILE = {
    "empty": (b"", 400, "not JSON"),
    "no JSON": (b"value=1", 400, "not JSON"),
    "cut off": (b'[{"value": 1', 400, "not JSON"),
    "two values": (b"[] []", 400, "not JSON"),
    "a trailing comma": (b"[1,]", 400, "not JSON"),
    "NaN": (item("NaN"), 400, "NaN is not JSON"),
    "Infinity": (item("-Infinity"), 400, "-Infinity is not JSON"),
    "duplicate keys": (b'[{"value": 1, "value": 2}]', 400, "the same key twice"),
    "100 000 brackets": (b"[" * 100_000, 400, "nested too deeply"),
    "100 000 objects": (b'{"a":' * 30_000, 400, "nested too deeply"),
    "100 000 brackets, each closed": (b"[" * 100_000 + b"]" * 100_000, 400, "nested too deeply"),
    "30 000 objects, each closed": (b'{"a":' * 30_000 + b"1" + b"}" * 30_000, 400, "nested too deeply"),
    "10 000 brackets in a string": (b'[{"\\"": "%s' % (b"[" * 10_000) + b'"}]', 422, "not valid"),
    "a string without end": (b'["\\' + b'"\\' * 80_000, 400, "not JSON"),
    "a bracket too many": (b"[" * (MAX_DEPTH + 1) + b"]" * (MAX_DEPTH + 1), 400, "nested too deeply"),
    "an object too many": (b"[" * MAX_DEPTH + b'[{"\\u00e4": {}}]' + b"]" * MAX_DEPTH, 400, "nested too deeply"),
    "no bracket too many": (b"[" * MAX_DEPTH + b"]" * MAX_DEPTH, 422, "not valid"),
    "invalid UTF-8": (b'[{"name": "\xff"}]', 400, "not UTF-8"),
    "UTF-16": ('[{"value": 1}]'.encode("utf-16"), 400, "not UTF-8"),
    "half a surrogate pair": (b'[{"value": 1, "name": "\\ud800"}]', 400, "surrogate"),
    "too many digits": (item("9" * (MAX_INTEGER_DIGITS + 1)), 422, "digits"),
    "a huge body": (b"[" + b" " * 300_000 + b"]", 413, ""),
    "true": (item("true"), 422, "not valid"),
    "a fraction": (item("1.5"), 422, "not valid"),
    "a whole fraction": (item("1.0"), 422, "not valid"),
    "an exponent": (item("1e3"), 422, "not valid"),
    "negative": (item("-7"), 422, "not valid"),
    "zero": (item("0"), 422, "not valid"),
    "null": (item("null"), 422, "not valid"),
    "an object": (b"{}", 422, "not valid"),
    "a string": (b'"x"', 422, "not valid"),
}


@pytest.mark.parametrize("name", HOSTILE)
async def test_a_hostile_body_is_a_clear_error(app: Quart, name: str) -> None:
    """The answer says what is wrong, and the next request is served."""
    body, status, says = HOSTILE[name]
    client = app.test_client()
    response = await client.post("/", data=body, headers={"Content-Type": "application/json"})
    problem = json.loads(await response.get_data())
    assert (response.status_code, response.content_type) == (status, "application/problem+json"), problem
    assert says in problem["detail"] and problem["status"] == status
    after = await client.post("/", data=item("5"), headers={"Content-Type": "application/json"})
    assert after.status_code == 200


async def test_every_wrong_place_is_named_with_a_json_pointer(app: Quart) -> None:
    """The pointers are those of RFC 6901, so that a program can follow them."""
    body = b'[{"value": 1}, {"value": "x", "name": 5}]'
    response = await app.test_client().post("/", data=body, headers={"Content-Type": "application/json"})
    found = {error["pointer"]: error["message"] for error in (await response.get_json())["errors"]}
    assert set(found) == {"/1/value", "/1/name"} and all(found.values())


@pytest.mark.parametrize("sent", ["text/plain", "application/x-www-form-urlencoded", "", "application/jsonx"])
async def test_another_content_type_is_refused(app: Quart, sent: str) -> None:
    """A body is read as JSON only if its content type says JSON."""
    response = await app.test_client().post("/", data=b"[]", headers={"Content-Type": sent})
    assert response.status_code == 415


@pytest.mark.parametrize("sent", ["application/json", "application/json; charset=utf-8", "application/problem+json"])
async def test_json_by_any_of_its_names_is_read(app: Quart, sent: str) -> None:
    """Parameters and types that end in +json are accepted."""
    response = await app.test_client().post("/", data=item("7"), headers={"Content-Type": sent})
    assert (response.status_code, await response.get_json()) == (200, [{"value": 7, "name": ""}])


async def test_a_body_that_stalls_is_given_up(app: Quart) -> None:
    """The answer is 408 after the time-out; the connection is not held for a minute."""
    async with app.test_client().request(
        "/", method="POST", headers={"Content-Type": "application/json", "Content-Length": "100"}
    ) as connection:
        await connection.send(b"[")
        await connection.receive()
        response = await connection.as_response()
    assert response.status_code == 408


def test_large_numbers_stay_exact() -> None:
    """Every size that is allowed keeps all digits."""
    assert parse_json("[%s]" % ("9" * MAX_INTEGER_DIGITS)) == [10**MAX_INTEGER_DIGITS - 1]
    with pytest.raises(Problem):
        parse_json("-" + "9" * MAX_INTEGER_DIGITS)


def outcome(parse: Callable[[bytes], object], text: bytes) -> str:
    """Return the value of a text or its refusal, as text, because 1, 1.0 and True are equal."""
    try:
        return repr(parse(text))
    except Problem as problem:
        return f"{problem.status} {problem.detail}"


class Pairs(list[tuple[str, object]]):
    """An object as a list of its pairs, in which a key may stand twice."""


SCALARS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8)
#: Objects are lists of pairs, in which a key may stand twice.
VALUES = st.recursive(
    SCALARS,
    lambda some: (
        st.lists(some, max_size=4) | st.lists(st.tuples(st.sampled_from(["a", "b", 'q"', "ü"]), some)).map(Pairs)
    ),
    max_leaves=12,
)


def written(value: object, *, plain: bool) -> str:
    """Return the JSON of a value; `plain`: without escapes for characters beyond ASCII."""
    if isinstance(value, Pairs):
        return "{" + ", ".join(f"{written(k, plain=plain)}: {written(v, plain=plain)}" for k, v in value) + "}"
    if isinstance(value, list):
        return "[" + ",".join(written(item, plain=plain) for item in value) + "]"
    return json.dumps(value, ensure_ascii=not plain)


@given(
    VALUES, st.booleans(), st.integers(0, 60), st.sampled_from(["", "", "", ",", '"', "0", "}", "\\", "NaN", "\x01"])
)
def test_both_parsers_say_the_same(value: object, plain: bool, place: int, added: str) -> None:
    """They agree about JSON, about keys that stand twice, and about JSON with something inserted."""
    text = written(value, plain=plain)
    sent = (text[:place] + added + text[place:]).encode("utf-8", "surrogatepass")
    assert outcome(parse_json, sent) == outcome(body._parsed_by_python, sent)


def keys(count: int) -> str:
    """Return an object of so many keys."""
    return "{" + ",".join(f'"k{n}":"v"' for n in range(count)) + "}"


TRICKY = {
    "a key twice, beside quotes told by their numbers": ['{"a":1,"a":"\\u0022\\u0022"}'],
    "many empty objects": ["{}"] * 3000,
    "objects within objects": ['{"a":"b","c":{}}'] * 600,
    "as many keys as may be": [keys(MAX_KEYS)],
    "a key too many": [keys(MAX_KEYS + 1)],
    "a key too many, deep within": ["1", '{"a":' + keys(MAX_KEYS + 1) + "}"],
    "many numbers": ["7"] * 5000,
    "a digit too many": ["9" * (MAX_INTEGER_DIGITS + 1)],
    "a sign too many": ["-" + "9" * MAX_INTEGER_DIGITS],
    "a long fraction": ["0." + "9" * MAX_INTEGER_DIGITS],
    "a number too large for a fraction": ["1e400"],
    "nothing, negative": ["-0"],
}


@pytest.mark.parametrize("name", TRICKY)
def test_both_parsers_say_the_same_of_what_is_tricky(name: str) -> None:
    """The cases are many keys, long numbers and quotes in strings."""
    text = f"[{','.join(TRICKY[name])}]".encode()
    assert outcome(parse_json, text) == outcome(body._parsed_by_python, text)


def test_the_quick_parser_takes_what_is_plain() -> None:
    """Bodies that nearly every client sends do not need the careful parser."""
    items = [{"value": (1 << 70) + n, "ttl": 300, "cls": "A"} for n in range(1000)]
    for value in (items, items[:1], {"a": [1, {"b": "ü"}]}):
        assert body._parsed_by_msgspec(json.dumps(value, ensure_ascii=False).encode()) == value


async def test_a_long_list_is_checked_while_the_event_loop_goes_round(app: Quart) -> None:
    """The list is parsed in pieces and checked in slices."""
    async with Turns() as turns:
        found = await app.test_client().post("/items", json=[{"value": 1} for _ in range(MOST)])
    assert await found.get_json() == MOST
    assert turns.count > MOST / SLICE_ITEMS


async def test_of_a_long_list_the_first_wrong_items_are_named(app: Quart) -> None:
    """The pointers count from the begin of the whole list; at most 100 errors are named."""
    items = [{"value": 1 if n < 700 else "x"} for n in range(MOST)]
    found = await app.test_client().post("/items", json=items)
    assert found.status_code == 422
    errors = (await found.get_json())["errors"]
    assert [error["pointer"] for error in errors] == [f"/{n}/value" for n in range(700, 700 + len(errors))]
    assert 1 <= len(errors) <= 100


@pytest.mark.parametrize(("body", "says"), [([{}] * (MOST + 1), "at most 4000 items"), ({"value": 1}, "not valid")])
async def test_what_is_no_list_or_too_long_is_refused(app: Quart, body: object, says: str) -> None:
    """A list that is too long is refused before its items are checked."""
    found = await app.test_client().post("/items", json=body)
    assert found.status_code == 422
    assert says in (await found.get_json())["detail"]


@pytest.mark.parametrize("name", LARGE)
async def test_no_body_is_parsed_in_one_go_that_takes_long(
    app: Quart, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing that the parsers are given is long, nor is the list that is checked; the rest is refused by its form."""
    status = LARGE[name][-1]
    parsed: list[int] = []
    really = body.parse_json

    def parse(data: bytes) -> object:
        parsed.append(len(data))
        return really(data)

    monkeypatch.setattr(body, "parse_json", parse)
    app.config["MAX_CONTENT_LENGTH"] = 3 << 20
    data = large(name, 2 << 20)
    response = await app.test_client().post("/items", data=data, headers={"Content-Type": "application/json"})
    assert response.status_code == status, await response.get_data()
    assert max(parsed, default=0) <= body.PIECE_BYTES + 2
    assert len(parsed) <= MOST / 10


@given(
    st.lists(VALUES, max_size=12),
    st.booleans(),
    st.integers(0, 200),
    st.sampled_from(["", "", ",", "}", '"', "},", "]"]),
)
def test_pieces_make_the_same_list_or_are_refused(values: list[object], plain: bool, place: int, added: str) -> None:
    """No list is accepted that the careful parser reads in another way, whatever stands where a piece ends."""
    text = written(values, plain=plain)
    sent = (text[:place] + added + text[place:]).encode("utf-8", "surrogatepass").strip()
    assume(sent.startswith(b"["))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(body, "PIECE_BYTES", 48)
        patch.setattr(body, "PIECE_END_OFFSETS", (4, 12, 24))
        found = outcome(lambda data: asyncio.run(body._parse_list(data, None)), sent)
    if not found.startswith(("400 ", "422 ")):
        assert found == outcome(body._parsed_by_python, sent)


def test_a_list_in_pieces_is_read_completely() -> None:
    """A list may have spaces or none, and any characters in its strings."""
    items = [{"value": n, "name": "ü" * (n % 7)} for n in range(10_000)]
    for text in (json.dumps(items), json.dumps(items, indent=1), json.dumps(items, ensure_ascii=False)):
        assert asyncio.run(body._parse_list(text.encode(), None)) == items


async def test_a_long_text_in_a_small_object_is_read(app: Quart) -> None:
    """The text may contain any number of commas and quotes."""
    text = 'ü,"}],[{\n' * 4000
    assert await body._parse_in_turn(json.dumps({"text": text}).encode(), None) == {"text": text}


@pytest.mark.parametrize("sent", ["gzip", "br", "GZIP", "deflate, gzip"])
async def test_a_compressed_body_is_refused_with_the_right_reason(app: Quart, sent: str) -> None:
    """415 names the encoding, and what is accepted instead (RFC 9110, 12.5.3)."""
    headers = {"Content-Type": "application/json", "Content-Encoding": sent}
    response = await app.test_client().post("/", data=gzip.compress(item("7")), headers=headers)
    assert (response.status_code, response.headers["Accept-Encoding"]) == (415, "identity")
    assert "content encoding" in (await response.get_json(force=True))["detail"]
    plain = await app.test_client().post("/", data=item("7"), headers={**headers, "Content-Encoding": "identity"})
    assert plain.status_code == 200


async def test_bodies_that_arrive_together_are_parsed_in_turns(app: Quart) -> None:
    """One piece in each turn of the event loop, however many clients send at once."""
    data = b"[" + b'{"value":1},' * 300 + b'{"value":1}]'
    assert body.SMALL_BYTES < len(data) <= body.PIECE_BYTES
    async with Turns() as turns:
        await asyncio.gather(*(body._parse_in_turn(data, None) for _ in range(20)))
    assert turns.count >= 20


async def test_one_thread_at_a_time_reads_long_bodies(app: Quart) -> None:
    """Each keeps the interpreter's lock, so eight together would hold the event loop for eight times as long."""
    running, most = 0, 0

    def quick(data: bytes) -> list[Item]:
        nonlocal running, most
        running += 1
        most = max(most, running)
        time.sleep(0.02)
        running -= 1
        return []

    @app.post("/quick")
    async def read() -> Response:
        return jsonify(await read_items(TypeAdapter(list[Item]), MOST, quick))

    client = app.test_client()
    long = b"[" + b" " * 50_000 + b"]"
    headers = {"Content-Type": "application/json"}
    answers = await asyncio.gather(*(client.post("/quick", data=long, headers=headers) for _ in range(8)))
    assert {answer.status_code for answer in answers} == {200}
    assert most == 1
