"""Requests and replies: an entry is read as it was written, or refused."""

from __future__ import annotations

import json
import random

import pytest

from mesh import Class, Database, errors, keys
from mesh.requests.protocol import NEVER, OK, Reply, Request, failure_body, reply_stream
from mesh.wire.codec import decode, encode

ENTRY = {
    "op": "values.put",
    "request": "replica-1-7",
    "from": "replica-1",
    "reply_to": "mesh:replies:replica-1",
    "deadline": "1700000005000",
    "body": '{"items":[1]}',
}


def test_a_request_is_read_field_by_field() -> None:
    """The id of the entry has the time."""
    request = Request.from_entry("mesh:requests:A", "1700000000000-3", ENTRY, 2)
    assert request == Request(
        stream="mesh:requests:A", id="1700000000000-3", op="values.put", key="replica-1-7", sender="replica-1",
        reply_to="mesh:replies:replica-1", deadline=1700000005000, body={"items": [1]}, deliveries=2,
    )  # fmt: skip
    assert request.at_ms == 1700000000000


def test_a_request_needs_an_operation_and_a_body_and_nothing_else() -> None:
    """A request without a caller has no key, no stream for the reply and no deadline."""
    request = Request.from_entry("mesh:requests:db1", "5-0", {"op": "values.drop", "body": "{}"})
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
        Request.from_entry("mesh:requests:A", "1-0", fields)


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
    fields = {"request": "k", "status": error.code, "body": encode(failure_body(error))}
    failure = Reply.from_entry(fields).failure
    assert type(failure) is errors.Busy
    assert (failure.detail, failure.retry_after, failure.facts["address"]) == ("full", 3.0, "A")
    ok = Reply.from_entry({"request": "k", "status": OK, "body": "{}", "forwards": "2"})
    assert (ok.failure, ok.forwards) == (None, 2)


def test_a_code_that_this_process_does_not_know_is_a_refusal_that_keeps_its_code() -> None:
    """Other programs have their own errors, and two releases may overlap during a roll-out."""
    failure = Reply.from_entry({"request": "k", "status": "new-in-2", "body": '{"detail":"so"}'}).failure
    assert type(failure) is errors.Refused and (failure.detail, failure.code) == ("so", "new-in-2")
