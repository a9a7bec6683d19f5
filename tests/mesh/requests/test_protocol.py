"""Requests and replies: an entry is read as it was written, or refused."""

from __future__ import annotations

import json
import random

import pytest

from mesh import Class, Database, errors, keys
from mesh.requests.answers import Answer
from mesh.requests.protocol import (
    NEVER,
    OK,
    Request,
    decode_object,
    error_body,
    error_of_reply,
    reply_of,
    reply_stream,
)
from mesh.wire.codec import decode, encode

ENTRY = {
    "op": "values.put",
    "request": "replica-1-7",
    "from": "replica-1",
    "reply_to": "mesh:replies:replica-1",
    "deadline": "1700000005000",
    "body": '{"items":[1]}',
}


def flat(fields: dict[str, str]) -> list[str]:
    """Return names and values in turn, as Redis sends them."""
    return [word for pair in fields.items() for word in pair]


def test_a_request_is_read_field_by_field() -> None:
    """The id of the entry has the time."""
    request = Request.from_entry("mesh:requests:A", "1700000000000-3", flat(ENTRY), 2)
    assert request == Request(
        stream="mesh:requests:A", id="1700000000000-3", op="values.put", key="replica-1-7", sender="replica-1",
        reply_to="mesh:replies:replica-1", deadline=1700000005000, body={"items": [1]}, deliveries=2,
    )  # fmt: skip
    assert request.at_ms == 1700000000000


def test_a_request_needs_an_operation_and_a_body_and_nothing_else() -> None:
    """A request without a caller has no key, no stream for the reply and no deadline."""
    request = Request.from_entry("mesh:requests:db1", "5-0", ["op", "values.drop", "body", "{}"])
    assert (request.key, request.reply_to, request.deadline, request.deliveries) == ("", "", NEVER, 1)


@pytest.mark.parametrize(
    "wrong",
    [
        {"op": None},
        {"body": None},
        {"body": "[1"},
        {"body": "[1]"},
        {"body": "7"},
        {"body": '{"a":NaN}'},
        {"body": '{"a":' * 100_000},
        {"deadline": "soon"},
        {"reply_to": "shared:somebodys:key"},
        {"reply_to": "mesh:lease:1"},
    ],
)
def test_an_entry_that_is_no_request_is_refused(wrong: dict[str, str | None]) -> None:
    """An entry written by hand may have anything. A reply goes to a stream of replies only."""
    fields = {name: value for name, value in {**ENTRY, **wrong}.items() if value is not None}
    with pytest.raises(ValueError):
        Request.from_entry("mesh:requests:A", "1-0", flat(fields))


def test_a_reply_goes_to_a_stream_of_replies_or_nowhere() -> None:
    """An entry cannot make a replica write to another key."""
    assert reply_stream(ENTRY) == "mesh:replies:replica-1"
    assert reply_stream({"reply_to": "mesh:books"}) == "" == reply_stream({})


def test_addresses_have_their_streams() -> None:
    """A class is any one replica of it, a database the one that holds it."""
    assert (Class("A").stream, Database(12).stream) == ("mesh:requests:A", "mesh:requests:db12")


@pytest.mark.parametrize("name", ["E", "a", "AB", "", "db1", 1, None])
def test_what_is_no_class_is_refused(name: object) -> None:
    """A request to it would wait on a stream that nobody reads."""
    with pytest.raises(errors.UsageError, match="a class is"):
        Class(name)  # type: ignore[arg-type]


@pytest.mark.parametrize("number", [-1, keys.MOST_DATABASES, True, 3.0, "3", None])
def test_what_is_no_database_is_refused(number: object) -> None:
    """The numbers of databases go from 0 to 15."""
    with pytest.raises(errors.UsageError, match="a database is a number from 0 to 15"):
        Database(number)  # type: ignore[arg-type]


def test_a_body_is_json_a_person_can_read() -> None:
    """It has no escapes and no spaces, and numbers of any size."""
    body = {"text": "grüße", "n": 10**400, "list": [1, None, True]}
    assert encode(body).startswith('{"text":"grüße","n":1000')
    assert json.loads(encode(body)) == body


def test_integers_of_any_size_are_the_same_at_both_ends() -> None:
    """Some libraries lose a digit of numbers just above 64 bits, or turn them into fractions."""
    chance = random.Random(64)
    numbers = [1 << 63, 1 << 64, (1 << 64) + 10**18 + 1, 19933688932870350000, 2 * 10**19, -(1 << 63) - 1]
    numbers += [chance.getrandbits(bits) for bits in range(60, 400) for _ in range(20)]
    assert decode(encode({"numbers": numbers})) == {"numbers": numbers}


def test_a_failure_is_the_same_error_at_both_ends() -> None:
    """The code gives the class of the error, and the facts are kept."""
    error = errors.Busy("full", retry_after=3, address="A")
    failure = error_of_reply(error.code, decode(encode(error_body(error))))
    assert type(failure) is errors.Busy
    assert (failure.detail, failure.retry_after, failure.facts["address"]) == ("full", 3.0, "A")


REPLY = {
    "request": "replica-1-7",
    "op": "values.put",
    "from": "replica-2",
    "status": OK,
    "forwards": "2",
    "body": '{"items":[1]}',
    "asked": "1-0",
}


def test_a_reply_is_read_in_any_order_of_its_fields() -> None:
    """The commit writes them in one order; other programs, and people, may write them in another one."""
    found = ("replica-1-7", OK, "2", '{"items":[1]}')
    assert reply_of(flat(REPLY)) == found
    assert reply_of(flat(dict(reversed(REPLY.items())))) == found
    assert reply_of(flat({"request": "k", "status": OK, "body": "{}"})) == ("k", OK, "0", "{}")
    assert reply_of(["op", "values.put", "status", OK]) is None


@pytest.mark.parametrize("missing", ["status", "body"])
def test_a_reply_that_lacks_a_field_is_a_failure_that_names_it(missing: str) -> None:
    """The caller hears of it, instead of waiting for its deadline."""
    reply = reply_of(flat({name: value for name, value in REPLY.items() if name != missing}))
    assert reply is not None and reply[:3] == ("replica-1-7", "invalid-reply", "0") and missing in reply[3]


@pytest.mark.parametrize(
    ("status", "forwards", "text"),
    [(OK, "soon", "{}"), (OK, "0", "[1"), (OK, "0", ""), ("busy", "0", "not JSON"), ("busy", "0", "[1]")],
)
def test_a_reply_that_cannot_be_read_is_a_failure_that_says_so(status: str, forwards: str, text: str) -> None:
    """It is the last one of its request."""
    answer = Answer("A", "k")
    answer.take(status, forwards, text, decode_object)
    assert isinstance(answer.error, errors.InvalidReply) and "cannot be read" in answer.error.detail
    assert (answer.outstanding, answer.bodies) == (0, [])


def test_a_request_that_was_forwarded_has_as_many_more_replies() -> None:
    """A reply without a body is none of its parts, whatever its status."""
    answer = Answer("A", "k")
    answer.take(OK, "2", "", decode_object)
    assert (answer.outstanding, answer.bodies) == (2, [])
    answer.take(OK, "1", '{"part":1}', decode_object)
    answer.take(OK, "0", '{"part":2}', decode_object)
    answer.take("busy", "0", '{"detail":"full"}', decode_object)
    assert (answer.outstanding, answer.bodies) == (0, [{"part": 1}, {"part": 2}])
    assert isinstance(answer.error, errors.Busy)


def test_a_code_that_this_process_does_not_know_is_a_refusal_that_keeps_its_code() -> None:
    """Other programs have their own errors, and two releases may overlap during a roll-out."""
    failure = error_of_reply("new-in-2", {"detail": "so"})
    assert type(failure) is errors.Refused and (failure.detail, failure.code) == ("so", "new-in-2")
