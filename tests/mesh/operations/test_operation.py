"""An operation writes and reads the bodies of its own types."""

from __future__ import annotations

from typing import Any

import pytest

from mesh import InvalidBody, InvalidReply, Operation, UsageError
from tests.support.greetings import Birthday, Greet, Greeted, birthday, count, put


def test_a_body_and_a_reply_are_the_same_at_both_ends() -> None:
    """Request and reply travel as JSON objects with plain names."""
    assert put.encode_body(Greet("a")) == b'{"name":"a"}'
    assert put.decode_body('{"name":"a"}') == Greet("a")
    assert put.decode_reply(put.encode_reply(Greeted("hello", 1)).decode()) == Greeted("hello", 1)
    assert (count.encode_body(None), count.decode_body("{}"), count.encode_reply(3)) == (b"{}", None, b"3")


def test_a_body_that_cannot_be_read_is_returned_as_the_error_that_says_where() -> None:
    """The runner refuses the request with it, and does not try again."""
    error = birthday.decode_body('{"name":"a","age":0}')
    assert isinstance(error, InvalidBody)
    assert (error.path, "greater than 0" in error.detail) == ("$.age", True)


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ({"name": "a"}, "the body of greetings.put is a Greet, not dict: .* write Greet"),
        ([1], "not list"),
        (None, "and there is none; write Greet"),
    ],
)
def test_a_body_of_another_type_is_not_sent(body: Any, says: str) -> None:
    """The message has the type that was meant."""
    with pytest.raises(InvalidBody, match=says):
        put.encode_body(body)


def test_an_operation_without_a_body_takes_none() -> None:
    """A body that is given all the same is an error, and is not dropped silently."""
    with pytest.raises(InvalidBody, match="takes no body"):
        count.encode_body(Greet("a"))  # type: ignore[arg-type]


def test_a_reply_of_another_type_is_not_sent() -> None:
    """The handler's author learns what it returned."""
    with pytest.raises(InvalidReply, match="answers Greeted, and its handler returned int: 7"):
        put.encode_reply(7)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"greetings\.put answers Greeted"):
        put.decode_reply("7")


@pytest.mark.parametrize(
    ("reply", "says"),
    [
        ({"in": object()}, "cannot be written as JSON: .*type object is unsupported"),
        ({"in": chr(0xD800)}, "cannot be written as JSON"),
        ({"in": "x" * 17_000_000}, "is 17000009 bytes of JSON; at most 16777216 can be sent"),
    ],
)
def test_a_reply_that_is_no_json_or_too_long_is_not_sent(reply: dict[str, Any], says: str) -> None:
    """The caller gets an error, and the handler is not run again."""
    anything: Operation[None, Any] = Operation("greetings.anything", None, dict[str, Any])
    with pytest.raises(InvalidReply, match=says):
        anything.encode_reply(reply)


@pytest.mark.parametrize(("name", "body"), [("a b", Greet), ("", Greet), (7, Greet), ("a", list[int]), ("a", int)])
def test_what_is_no_operation_is_refused(name: Any, body: Any) -> None:
    """A name without spaces, a body with names."""
    with pytest.raises(UsageError):
        Operation(name, body, int)


def test_an_operation_says_its_types() -> None:
    """Logs and the interpreter show the types of an operation."""
    assert repr(put) == "<Operation greetings.put: Greet -> Greeted>"
    assert repr(count) == "<Operation greetings.count: None -> int>"
    assert Operation("a.b", Birthday, None).reply is type(None)
