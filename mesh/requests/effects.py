"""The effects that a handler asks for in its transaction: writes, sends and the reply.

Nothing happens before the commit, which applies all effects or none. A transaction has two sides: the keys of the
replica's own database, and (`.shared`) the keys that all replicas share. A transaction is an object of `Effects`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from mesh import keys
from mesh.discovery import LATER, LIMITS, ONCE
from mesh.errors import InvalidReply, MeshError, UsageError
from mesh.later.due import Due
from mesh.requests import tracing
from mesh.requests.filters import Filter
from mesh.requests.once import Once, is_kept, key_reused_error
from mesh.requests.protocol import NEVER, OK, Address, Body, Class, Database, Request, encode_body, error_body
from mesh.requests.verbs import LATEST_MS, VERBS, Verb, Word, check_words, integer_of, score_of, text_of
from mesh.requests.writes import Expectations, Writes, chunks, commands_are_plain
from mesh.wire.codec import encode
from mesh.wire.connection import Encoded, encode_words


class Writer:
    """Collects writes and expectations on keys that all begin with one prefix.

    In its methods `key` is the name of a Redis key, without this prefix, and `names` are several. They raise ValueError
    or TypeError at once for a command that Redis would refuse. `side` is 1 for keys of the replica's own database, and
    0 for shared keys.
    """

    __slots__ = ("_expects", "_prefix", "_side", "_writes")

    def __init__(self, prefix: str, side: int, expects: Expectations, writes: Writes) -> None:
        self._prefix = prefix
        self._side = side
        self._expects = expects
        self._writes = writes

    def expect(self, key: str, value: str | None, field: Word | None = None) -> None:
        """Commit only if the key, or the field of a hash, still has this value. None: only if it is still absent."""
        check_words([word for word in (field, value) if word is not None])
        key = self._prefix + key
        hash_key, key_or_field = ("", key) if field is None else (key, str(field))
        self._expects.add(self._side, hash_key, key_or_field, value)

    def expect_each(self, values: Mapping[str, str | None]) -> None:
        """Commit only if each key still has its value. None: only if the key is still absent."""
        prefix = self._prefix
        check_words([value for value in values.values() if value is not None])
        self._expects.add_absent(self._side, "", [prefix + key for key, value in values.items() if value is None])
        for key, value in values.items():
            if value is not None:
                self._expects.add(self._side, "", prefix + key, value)

    def expect_answer(self, verb: str, key: str, args: Sequence[Word], answer: Any) -> None:
        """Commit only if a reading command of `mesh.requests.verbs.GUARDABLE_READS` still gets this answer.

        `answer` is the reply of Redis to the command. It has nothing to do with the answer to the request.
        """
        check_words(args)
        self._expects.add_answer(self._side, verb, self._prefix + key, args, answer)

    def write(self, verb: str, key: str, *args: Word) -> None:
        """Write with a command of Redis that is in `mesh.requests.verbs.VERBS`; `args` are its words after the key."""
        self._writes.write(self._side, verb, self._prefix + key, args)

    def _write_variadic(self, verb: str, key: str, args: Sequence[Word]) -> None:
        """Write with a verb that takes any number of fields or members; do nothing if there are none."""
        if args:
            self._writes.add_or_extend(self._side, verb, (self._prefix + key,), args)

    def set(self, key: str, value: Word, *options: Word) -> None:
        """Set a key. The options are KEEPTTL, or one of EX, PX, EXAT, PXAT and a number, as in Redis."""
        if options:
            self.write("SET", key, value, *options)
        else:
            check_words((value,))
            self._writes.add(self._side, "SET", (self._prefix + key,), (value,))

    def set_text(self, key: str, text: str) -> None:
        """Set a key to a text. This takes less time than `set`, because a text needs no check."""
        self._writes.add(self._side, "SET", (self._prefix + key,), (text,))

    def set_until(self, names: Iterable[str], value: Word, at_ms: int) -> None:
        """Set many keys to one value. All of them expire at `at_ms`, in ms since 1970."""
        full_keys = [self._prefix + key for key in names]
        if full_keys:
            self._writes.set_all(self._side, full_keys, value, at_ms)

    def delete(self, key: str) -> None:
        self.write("DEL", key)

    def hset(self, key: str, fields: Mapping[str, Word]) -> None:
        self._write_variadic("HSET", key, [word for pair in fields.items() for word in pair])

    def hdel(self, key: str, *fields: Word) -> None:
        self._write_variadic("HDEL", key, fields)

    def zadd(self, key: str, scores: Mapping[str, Word]) -> None:
        words = [word for member, score in scores.items() for word in (score_of(score), member)]
        self._write_variadic("ZADD", key, words)

    def write_with(self, verb: str, names: Sequence[str], words: Sequence[Word], lead: Sequence[Word] = ()) -> None:
        """Write with a verb that a service has added to its worker. `names` are its keys, all different.

        Too many words for one command become several commands. After its keys, each command begins with `lead`.
        """
        if verb not in self._writes.verbs:
            raise ValueError(f"no service of this worker has added the verb {verb}")
        if len(set(names)) < len(names):  # `Writes` finds the check of a key by the key itself
            raise ValueError(f"{verb} takes different keys, not {names}")
        check_words(lead)
        check_words(words)
        full_keys = [self._prefix + name for name in names]
        for chunk in chunks(words):
            self._writes.add(self._side, verb, full_keys, [*lead, *chunk])

    def mark(self, filter: Filter, numbers: Sequence[str]) -> None:
        """Set the bits of these numbers in a filter, on `.shared`. Raises ValueError unless they are decimal digits."""
        for number in numbers:
            if not (number.isascii() and number.isdecimal()):
                raise ValueError(f"a filter has numbers of decimal digits, not {number!r:.100}")
        # The words of each command begin with two facts about the filter: how many bits it has, and the bound below
        # which all numbers are in it already.
        self.write_with("mark", [filter.key], numbers, [filter.bits, filter.below])

    def zrem(self, key: str, *members: Word) -> None:
        self._write_variadic("ZREM", key, members)

    def incrby(self, key: str, by: int) -> None:
        self.write("INCRBY", key, by)

    def keep_until(self, key: str, at_ms: int) -> None:
        """Let a key live at least until `at_ms`, in ms since 1970.

        After all writes, the commit gives the key this expiry, also if it has none, unless it expires later already.
        """
        self._writes.keep_until(self._side, self._prefix + key, at_ms)


def _check_address_and_op(to: Address, op: str) -> None:
    if not isinstance(to, Class | Database):
        raise TypeError(f"a request is sent to Class(...) or Database(...), not to {to!r:.100}")
    if not isinstance(op, str):
        raise TypeError(f"an operation is named by text, not by {op!r:.100}")
    if not op.isprintable():
        raise ValueError(f"an operation's name has printable characters only, not {op!r:.100}")


class _AfterEnd(dict[str, Any]):
    """Replaces the verbs and the sends of a transaction that is over: every use of them raises UsageError."""

    def __missing__(self, key: object) -> Any:
        raise _used_after_end()

    __contains__ = append = __missing__


def _used_after_end() -> UsageError:
    return UsageError("the transaction is over: its handler has returned; let the handler await everything that writes")


_AFTER_END: Any = _AfterEnd()
#: Replaces the request in a transaction that belongs to no request.
_NO_REQUEST = Request("", "", "", "", "", "", NEVER, {})


class Effects(Writer):
    """The transaction of one request. Without a request, it is a transaction of the replica itself.

    `replica` is the id of this replica; its database is `database`.
    """

    __slots__ = (
        "_keeps_answer", "_later_bound", "_level", "_replica", "_request", "_sha_by_key", "_shared", "answer",
        "dues", "expects", "forwards", "sends", "sent_ops", "writes",
    )  # fmt: skip

    def __init__(
        self,
        database: int,
        replica: str,
        request: Request | None = None,
        verbs: Mapping[str, Verb] = VERBS,
        later_bound: int = 0,
    ) -> None:
        self._request = request
        self._replica = replica
        #: how many requests may wait in `mesh:later`; the commit refuses to add more. 0: none may wait
        self._later_bound = later_bound
        #: when the requests are due that it sends for later; the runner tells the replica when to wake them
        self.dues: list[Due] = []
        #: The operations of the requests that it sends, but not of those that it forwards. If the request has a caller
        #: or an idempotency key, the runner checks before the commit that a live replica serves each.
        self.sent_ops: list[str] = []
        self.expects = Expectations()
        self.writes = Writes(verbs)
        #: the words of each request that it sends or forwards without options, as commit.lua reads them
        self.sends: list[Any] = []
        #: a count: to how many addresses it forwards the request; each of them sends a reply of its own
        self.forwards = 0
        #: the answer to the request: status and body of the reply; the body is "" if the commit writes it
        self.answer = (OK, "{}")
        #: whether the answer is stored, so that later calls with the idempotency key of the request get it, too
        self._keeps_answer = True
        #: The highest level of the options of its sends. `refuse` leaves it: a refused transaction sends nothing.
        self._level = 0
        #: By operation and idempotency key: the SHA-1 of the body that this transaction sends with the key. `refuse`
        #: leaves it, because a refused transaction sends nothing more.
        self._sha_by_key: dict[tuple[str, str], str | int] = {}
        # The attributes of `Writer`, for the own side. Setting them here costs less than a call of its `__init__`.
        self._prefix, self._side, self._expects, self._writes = keys.own(database), 1, self.expects, self.writes
        self._shared: Writer | None = None

    @property
    def shared(self) -> Writer:
        """The writer for the keys that all replicas share."""
        if self._shared is None:
            self._shared = Writer(keys.SHARED, 0, self.expects, self.writes)
        return self._shared

    def send(self, to: Address, op: str, body: Body | bytes, *, deadline: int = NEVER, key: str = "") -> None:
        """Send a request that no caller waits for. `deadline` is in ms of Redis's clock; NEVER: it never expires.

        `key` is the name of the request, not an idempotency key.
        """
        self._send(to, op, body, key=key, reply_to="", deadline=deadline)
        self.sent_ops.append(op)

    def send_later(self, to: Address, op: str, body: Body | bytes, due: Due, *, key: str, limit: str = "") -> None:
        """Send a request that waits until it is due. If too many requests wait already, the commit applies nothing.

        `key` is the name of the request, and `limit` its limit as limits.lua reads it. When the request is due, this
        limit decides whether it begins or waits further. `place` is for a limit that holds at once, or a key of `Once`.
        """
        _check_address_and_op(to, op)
        self.dues.append(due)
        self.sent_ops.append(op)
        # commit_verbs.lua says in which order the verbs `later` and `place` read their words.
        words = (self._later_bound, due.word, key, to.target, op, self._replica, NEVER, encode_body(body))
        self._level = max(self._level, LIMITS if limit else LATER)
        self.writes.add(0, "later", (keys.LATER, keys.later(key)), (*words, limit) if limit else words)

    def place(
        self,
        to: Address,
        op: str,
        body: Body | bytes,
        *,
        key: str,
        limit: str = "",
        once: Once | None = None,
        due: Due | None = None,
    ) -> None:
        """Send a request with a limit or an idempotency key. The commit checks these, and the request may have to wait.

        `key` is the name of the request; `once` has the idempotency key. If an earlier request has the same idempotency
        key and body, nothing is sent. The commit applies nothing if the limit refuses the request, or if an earlier
        request has the same idempotency key and another body. Raises KeyReused if this transaction itself has sent the
        other body. A send with only a due time belongs to `send_later`.
        """
        _check_address_and_op(to, op)
        body_text = encode_body(body)
        options: dict[str, str | int] = {}
        if once is not None:
            options = once.options(body_text)
            if self._sha_by_key.setdefault((op, once.key), options["sha"]) != options["sha"]:
                raise key_reused_error(once.key)
        if limit:
            options["limit"] = limit
        if due is not None:
            options["due"] = due.word
            self.dues.append(due)
        self.sent_ops.append(op)
        # The level of an idempotency key includes that of a due time (LATER), so a due time does not change it.
        self._level = max(self._level, LIMITS if limit else ONCE)
        words = (self._later_bound, encode(options), key, to.target, op, self._replica, body_text)
        self.writes.add(0, "place", (keys.LATER, keys.later(key)), words)

    @property
    def level(self) -> int:
        """The highest level of the options that its sends have. Every live replica must know it: `mesh.discovery`."""
        return self._level

    def forward(self, to: Address, body: Body | bytes | None = None) -> None:
        """Forward this request to another address, which answers it. With `body`, forward only this part of it."""
        request = self._request
        if request is None:
            raise ValueError("there is no request to forward")
        if request.has_passed_limit:
            raise UsageError(f"{request.op} has a limit, and cannot be forwarded; use send()")
        if request.options:
            raise UsageError(f"{request.op} forwards its requests, so it takes none with an idempotency key")
        self.forwards += 1
        self._send(
            to,
            request.op,
            request.body if body is None else body,
            key=request.key,
            reply_to=request.reply_to,
            deadline=request.deadline,
            sender=request.sender,
        )

    def _send(
        self,
        to: Address,
        op: str,
        body: Body | bytes,
        *,
        key: str,
        reply_to: str,
        deadline: int,
        sender: str | None = None,
    ) -> None:
        """Add a request to those that the commit sends. `sender` is this replica if it is None."""
        _check_address_and_op(to, op)
        integer_of(deadline, NEVER, LATEST_MS)  # raises ValueError for a deadline that is out of range
        self.sends.append(
            (to.target, op, key, reply_to, deadline, encode_body(body), sender or self._replica, tracing.about())
        )

    def reply(self, body: Body) -> None:
        """Answer the request. Raises InvalidReply if the body is not a JSON object."""
        if not isinstance(body, dict):
            raise InvalidReply(f"the reply cannot be sent: a handler returns a dict or None, not {type(body).__name__}")
        try:
            self.answer = (OK, encode_body(body))
        except ValueError as error:
            raise InvalidReply(f"the reply cannot be sent: {error}") from error

    def reply_json(self, body: bytes) -> None:
        """Answer the request with a JSON text."""
        self.answer = (OK, body.decode())

    def answer_with(self, verb: str, names: Sequence[str], words: Sequence[Word]) -> None:
        """Answer the request with data that a verb of a service reads from our own database in the commit.

        The commit itself writes these data to the stream of replies, so they do not pass through this process. `names`
        are the keys of the verb.
        """
        check_words(words)
        self.answer = (OK, "")
        self.writes.add_read(verb, [self._prefix + name for name in names], words)

    def refuse(self, error: MeshError) -> None:
        """Answer the request with an error, and have no other effect.

        If the error cannot be written as JSON, the answer is an InvalidReply with the reason.
        """
        for collection in (self.expects, self.writes, self.sends, self.dues, self.sent_ops):
            collection.clear()
        self.forwards = 0
        try:
            self.answer = (error.code, encode_body(error_body(error)))
        except ValueError as cause:
            replacement = InvalidReply(f"the handler raised {type(error).__name__}, which cannot be sent: {cause}")
            self.answer = (replacement.code, encode_body(error_body(replacement)))
        self._keeps_answer = is_kept(error)

    def wire(self, took_us: int = 0) -> Encoded:
        """Return the transaction as the words that commit.lua reads. `took_us` is how long the handler worked.

        `Link.commit` takes the result. Raises DataError if a word cannot be encoded, or if all are too large together.
        """
        request = self._request or _NO_REQUEST
        reply_to, options = request.reply_to, request.options
        status, body = self.answer
        expectations, writes, sends = self.expects.groups(), self.writes.commands(), self.sends
        if options:
            # The verb `ends` tells commit.lua how to end a request with options, such as to keep the answer.
            # Its side is "0", because the keys that belong to options are in the bus database.
            ending_words: list[Word] = [
                "ends",
                "op",
                request.op,
                "request",
                request.key,
                "kept",
                int(self._keeps_answer),
                *options,
            ]
            writes = [*writes, ["0", len(ending_words), *ending_words]]
        # Without a caller and without options, nobody gets the answer, so its body is not sent.
        words: list[Word] = [
            request.stream, request.id, reply_to, request.key, request.op, status, self.forwards,
            body if reply_to or options else "", len(expectations), len(writes), len(sends), took_us, request.call,
        ]  # fmt: skip
        word_lists = [*expectations, *writes, *sends]
        words += [word if word.__class__ is str else text_of(word) for word_list in word_lists for word in word_list]
        # The second argument says whether the plain variant of commit.lua, which makes no sends, can run it.
        return encode_words(words, not sends and self.expects.are_plain and commands_are_plain(writes))

    def end(self) -> None:
        """Make later writes and sends raise UsageError: those of a task that was not awaited would be lost."""
        self.writes.verbs = self.sends = _AFTER_END
