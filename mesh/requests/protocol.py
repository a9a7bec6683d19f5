"""Addresses, requests and replies. No other Python module knows the fields of their stream entries.

People can read an entry, too: its fields have plain names, their values are text, and `body` is JSON.

    request   op request from reply_to deadline body
              call, traceparent   if its sender has them
              once, sha, keep     if it has an idempotency key; see options.lua
              limit               if it has passed a limit
              first               if it has waited, or was added to its stream again
              try, error          if a try has failed
              read, found         if its sender has named shared keys that the submission reads
    reply     request op from status forwards body asked took_us db
              call                if the request has it

docs/keys.md says what each field holds. The field `request` is the sender's name for the request: `Request.key` here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from mesh import keys
from mesh.errors import InvalidReply, MeshError, UsageError, from_wire
from mesh.groups.reader import fields_of
from mesh.wire.codec import decode, encode

#: The `status` of a reply that carries no error. A reply with an error has the error's code in its place.
OK = "ok"
#: The `deadline` of a request that has none, such as a drop.
NEVER = 0

#: Most requests have these fields in this order.
_USUAL_FIELDS = ["op", "request", "from", "reply_to", "deadline", "body"]
#: The fields of a reply that its caller reads.
_REPLY_FIELDS = ("request", "status", "forwards", "body")
#: The longest body, in characters. One trip (`MOST_BYTES` of mesh.wire.connection) has room for several such bodies if
#: they are ASCII. A character beyond ASCII takes up to 4 bytes, so a body that has too many of them is too large for a
#: trip (TooLarge).
MOST_BODY = 16 * 2**20

#: The classes and the databases that a mesh can have.
_CLASSES = frozenset(keys.CLASSES)
_DATABASES = frozenset(range(keys.MOST_DATABASES))

#: The body of a request or a reply without types: a JSON object.
Body = dict[str, Any]
#: Decodes the JSON text of a body. Handlers and callers get the result. Raises ValueError for text that it cannot read.
Decode = Callable[[str], Any]


@dataclass(frozen=True, slots=True)
class Class:
    """The address of a class: any one of its replicas handles the request.

    Raises UsageError unless the name is a letter from A to D.
    """

    name: str
    #: the name of this address in scripts; the name of its stream ends with it
    target: str = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or self.name not in _CLASSES:
            raise UsageError(f'a class is "A", "B", "C" or "D", not {self.name!r:.100}')
        object.__setattr__(self, "target", self.name)

    @property
    def stream(self) -> str:
        return keys.class_requests(self.name)


@dataclass(frozen=True, slots=True)
class Database:
    """The address of a database: the replica that holds it handles the request.

    Raises UsageError unless the number is from 0 to 15.
    """

    number: int
    #: the name of this address in scripts; the name of its stream ends with it
    target: str = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if type(self.number) is not int or self.number not in _DATABASES:
            raise UsageError(f"a database is a number from 0 to {keys.MOST_DATABASES - 1}, not {self.number!r:.100}")
        object.__setattr__(self, "target", f"db{self.number}")

    @property
    def stream(self) -> str:
        return keys.database_requests(self.number)


Address = Class | Database


def encode_body(body: Any) -> str:
    """Return the body of a request or a reply as JSON text. `bytes` are such text already. Raises ValueError."""
    is_json_text = body.__class__ is bytes
    if not is_json_text and not isinstance(body, dict):
        raise ValueError(f"a body is a dict, not {type(body).__name__}")
    try:
        text: str = body.decode() if is_json_text else encode(body)
    except RecursionError as error:
        raise ValueError("the body is nested too deeply or contains itself") from error
    except (TypeError, ValueError) as error:
        raise ValueError(f"the body cannot be written as JSON: {error}") from error
    if len(text) > MOST_BODY:
        raise ValueError(f"the body is {len(text)} characters of JSON; at most {MOST_BODY} can be sent")
    return text


def decode_object(text: str) -> Body:
    """Read a body that must be a JSON object, and return it as a dict. Raises ValueError."""
    body: Body = decode(text)
    if body.__class__ is not dict:
        raise ValueError("the body is not an object")
    return body


def operation_of(flat: Sequence[str]) -> str:
    """Return the operation that an entry names; "" if it names none. The consumer then knows how to decode the body."""
    # Our scripts write the operation first. An entry that was written by hand may have it at another place.
    return flat[1] if flat[0] == "op" else fields_of(flat).get("op", "")


def reply_stream(fields: Mapping[str, str]) -> str:
    """Return the stream that an entry names for its reply; "" if it names none, or a key that is no reply stream."""
    stream = fields.get("reply_to", "")
    return stream if stream.startswith(keys.REPLIES) else ""


@dataclass(slots=True)
class Request:
    """One request as its handler sees it. `body` is what the decoder of the operation has made of the entry's text.

    `id` is the id of the entry. It is the same at each delivery, and begins with the time (ms of Redis's clock) at
    which the entry was written. `key` is the sender's name for the request. `deadline` is in ms of Redis's clock, or
    NEVER. `deliveries` includes this one.
    """

    stream: str
    id: str
    op: str
    key: str
    sender: str
    reply_to: str
    deadline: int
    body: Any
    deliveries: int = 1
    #: the name of the call that it belongs to; "" if its sender has none; see `tracing`
    call: str = ""
    #: its trace context; "" if its sender has none
    traceparent: str = ""
    #: how many of its tries have failed
    failed_tries: int = 0
    #: The time at which the request was sent or due, in the form of an id. It is set if the request has waited for
    #: something else than its due time, or was added to its stream again: then its `id` is of a later time. Else "".
    first: str = ""
    #: The value that the shared key named by the sender had when the request was sent; "" if it had none. A JSON list
    #: of values if the sender has named several keys. A handler may use the value and not read the key. The mesh adds
    #: no expectation for this value, so the handler itself adds one. None if the value is not known. None also in each
    #: run after the first one, because the value may have changed.
    found: str | None = None
    #: Names and values of its options, in turn; see options.lua. The option `limit` is there only if the limit has let
    #: the request through already.
    options: tuple[str, ...] = ()

    @property
    def is_answered(self) -> bool:
        """Whether its reply is needed: a caller waits for it, or others may ask for it with the idempotency key.

        This does not say whether the reply was already written.
        """
        # `_options_of` puts the idempotency key first and the limit last.
        return bool(self.reply_to or self.options[:1] == ("once",))

    @property
    def has_passed_limit(self) -> bool:
        """Whether the limit of its operation has let it through already, so that it is not applied again."""
        return self.options[-2:-1] == ("limit",)

    @property
    def at_ms(self) -> int:
        """When it was sent, or was due if it was sent for later; in ms of Redis's clock."""
        return int((self.first or self.id).partition("-")[0])

    def is_late(self, now_ms: int) -> bool:
        """Return whether its deadline has passed at this time of Redis's clock."""
        return NEVER < self.deadline <= now_ms

    @classmethod
    def from_entry(
        cls, stream: str, id: str, flat: Sequence[str], deliveries: int = 1, read_body: Decode = decode_object
    ) -> Request:
        """Read an entry, which is a list of names and values in turn. Raises ValueError if it is not a request."""
        # Most requests have a caller, and no further fields. All other entries are read field by field below.
        if flat[::2] == _USUAL_FIELDS:
            _, op, _, key, _, sender, _, reply_to, _, deadline_text, _, body_text = flat
            if reply_to.startswith(keys.REPLIES):
                return cls(stream, id, op, key, sender, reply_to, int(deadline_text), read_body(body_text), deliveries)
        fields = fields_of(flat)
        get = fields.get
        reply_to = get("reply_to", "")
        if reply_to and not reply_to.startswith(keys.REPLIES):
            raise ValueError(f"its field reply_to must begin with {keys.REPLIES}")
        try:
            op, body, deadline = fields["op"], read_body(fields["body"]), int(get("deadline", NEVER))
            return cls(
                stream, id, op, get("request", ""), get("from", ""), reply_to, deadline, body, deliveries,
                get("call", ""), get("traceparent", ""), int(get("try", 0)), get("first", ""),
                get("found") if deliveries == 1 else None,  # it may be out of date at a later delivery
                _options_of(fields) if "once" in fields or "limit" in fields else (),
            )  # fmt: skip
        except KeyError as error:
            raise ValueError(f"the entry has no field {error}") from error


def _options_of(fields: Mapping[str, str]) -> tuple[str, ...]:
    """Return the fields of the options of a request that has any: names and values in turn, as `Request.options`."""
    # An entry without `keep`, which somebody has written by hand, keeps no answer.
    once_options = ("once", fields["once"], "keep", fields.get("keep", "0")) if "once" in fields else ()
    return (*once_options, "limit", fields["limit"]) if "limit" in fields else once_options


def unreadable_request(stream: str, id: str, flat: Sequence[str], deliveries: int) -> Request:
    """Return a request without an operation for an entry that is not a request.

    The consumer makes it a dead letter, and so can answer its caller.
    """
    fields = fields_of(flat)
    return Request(stream, id, "", fields.get("request", ""), "", reply_stream(fields), NEVER, {}, deliveries)


#: Request, status, forwards and body of a reply. `forwards` is the number of further replies that follow, because the
#: request was forwarded. If this is not "0" and the body is "", the reply only tells that number.
Reply = tuple[str, str, str, str]


def reply_of(flat: Sequence[str]) -> Reply | None:
    """Read the entry of a reply, which is a list of names and values in turn; None if it names no request.

    If another field is missing, return a reply with an error that names the field.
    """
    # commit.lua writes most replies, and puts the four fields at these places.
    if len(flat) > 11 and (flat[0], flat[6], flat[8], flat[10]) == _REPLY_FIELDS:
        return flat[1], flat[7], flat[9], flat[11]
    fields = fields_of(flat)
    if "request" not in fields:
        return None
    for name in ("status", "body"):
        if name not in fields:
            return fields["request"], InvalidReply.code, "0", encode({"detail": f"the reply has no field {name!r}"})
    return fields["request"], fields["status"], fields.get("forwards", "0"), fields["body"]


def error_of_reply(status: str, body: Body) -> MeshError:
    """Return the error that a reply carries."""
    facts: Body = dict(body)  # a copy, which loses `detail`
    return from_wire(status, str(facts.pop("detail", "")), facts)


def error_body(error: MeshError) -> Body:
    """Return the body of a reply that carries an error."""
    return {"detail": error.detail, **error.facts}
