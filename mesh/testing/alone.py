"""Run one handler alone, in a test: on stored values that the test gives, without a mesh and without a server.

fakeredis answers the reads of the handler. The script of the commit applies its writes, as in a mesh. No replica gets
the requests that it sends.
"""

from __future__ import annotations

import inspect
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar, cast, get_type_hints

from mesh import keys
from mesh.errors import MeshError, UsageError
from mesh.operations.operation import Operation
from mesh.operations.reads import Query
from mesh.operations.state import Field, Key, KeyOrField, Readable
from mesh.operations.transaction import Transaction
from mesh.requests.effects import Effects
from mesh.requests.protocol import NEVER, Request
from mesh.requests.scripts import COMMIT
from mesh.requests.settlement import DONE
from mesh.requests.store import Store
from mesh.testing.record import Sent, sent_of, transactions_of
from mesh.testing.servers import new_fake_server
from mesh.wire.codec import decode
from mesh.wire.link import Link
from mesh.wire.script import Script

B = TypeVar("B")
R = TypeVar("R")
T = TypeVar("T")

#: The value of the only lease: epoch 1, and "alone" as the name of its holder.
ALONE_LEASE = "1 alone"
#: The maximum number of requests that may wait for their time. A mesh has the setting `later_bound` for this; one
#: handler needs no more.
LATER_BOUND = 1000


class LinkAlone:
    """Stands in for a replica's link: passes the handler's reads and its commit on to fakeredis."""

    def __init__(self, database: int) -> None:
        self._database = database
        server = new_fake_server()
        self.sync_client = server.sync_client
        self._connection = server.connections.connection("alone")
        self._bus = server.connections.bus

    async def shared(self, *command: Any) -> Any:
        """Run a command in the bus database."""
        return _answer_at(await self._connection.send([command]), 0)

    async def own(self, *command: Any) -> Any:
        """Run a command in the database of the handler."""
        select_own, select_bus = ("SELECT", self._database), ("SELECT", self._bus)
        return _answer_at(await self._connection.send([select_own, command, select_bus]), 1)

    async def script(self, script: Script, key_names: Sequence[str], *words: Any, own: bool = False) -> Any:
        """Run a script, in the bus database or (with `own`) in the database of the handler."""
        return await (self.own if own else self.shared)("EVAL", script.source, len(key_names), *key_names, *words)

    async def commit(self, effects: Effects) -> list[Any]:
        """Apply a transaction, and return the list of its words: see `transactions_of`.

        `sent_of` finds in these words what the handler sent, as it does in a mesh. Raises MeshError if commit.lua
        refuses the transaction.
        """
        # The command is the one that a replica's link sends: commit.lua names its keys and arguments.
        key_names = [keys.lease(self._database), keys.BOOKS, keys.committed("alone")]
        await self.shared("SET", key_names[0], ALONE_LEASE)
        await self._connection.send([("SCRIPT", "LOAD", COMMIT.source)])
        # A link needs the two other values, the weight and the choice of a variant, to make batches of several
        # transactions. Here the complete script gets a batch of one.
        text, _, long_words, _ = effects.wire()
        # Holder, how long Redis keeps the result (ms), database, bus, consumer, number of the batch.
        fixed_words = (ALONE_LEASE, 1000, self._database, self._bus, "alone", 1)
        # batch.lua, a part of commit.lua, reads the words from one JSON list. The long words follow the list.
        command = ("EVALSHA", COMMIT.sha, len(key_names), *key_names, *fixed_words, b"[%b]" % text, *long_words)
        (result,) = decode(await self.shared(*command))
        if result != DONE:
            raise MeshError(f"the commit was refused: {result}")
        (transaction_words,) = transactions_of(command)
        return transaction_words


def _answer_at(answers: Sequence[Any], position: int) -> Any:
    """Return one of the answers, or raise it if it is an error."""
    if isinstance(answers[position], Exception):
        raise answers[position]
    return answers[position]


@dataclass(frozen=True)
class Ran(Generic[R]):
    """What a handler did: its reply, what it sent, and the state that it left."""

    reply: R
    sent: list[Sent]
    _database: int
    _link: LinkAlone

    def read(self, key_or_field: Readable[T]) -> T:
        """Return what is stored after the run, for a value or the field of a hash."""
        if not isinstance(key_or_field, Key | Field):
            raise UsageError(f"read() takes a value or the field of a hash, not {key_or_field!r:.100}")
        stored: T = read_stored(self._link.sync_client, key_or_field, self._database)
        return stored


def read_stored(sync_client: Any, key_or_field: Key[Any] | Field[Any], database: int) -> Any:
    """Return the value of a key or field, read with a synchronous redis-py client."""
    shared, name, field = key_or_field.location
    if not shared:
        sync_client.select(database)
    try:
        key = (keys.SHARED if shared else keys.own(database)) + name
        # `key_or_field.read` sends no command: it decodes the text that the client has read.
        return key_or_field.read(sync_client.get(key) if field is None else sync_client.hget(key, field))
    finally:
        # Shared keys are read without a SELECT. So the client goes back to its own database, the bus.
        sync_client.select(sync_client.connection_pool.connection_kwargs.get("db") or 0)


async def run(op: Operation[Any, R], body: Any, state: Mapping[Any, Any], database: int) -> Ran[R]:
    """Run the handler of an operation. `state` has the stored values: key or field -> value.

    `Operation.run` calls this. Raises what the handler raises.
    """
    if op.handler is None:
        raise UsageError(f"{op.name} has no handler in this program; run it where it is implemented")
    if not isinstance(state, Mapping):
        raise UsageError(f"state= is a dict of stored values, such as {{total: 3}}, not {state!r:.100}")
    link = LinkAlone(database)
    # `LinkAlone` has the methods of a link that a store calls. The class "A" is any class: no other replica is there.
    store = Store(cast(Link, link), database, "A")
    # A request that was sent now and is on no stream. It has no key, no reply stream and no deadline. Its body is None,
    # because the handler gets the body as an argument below.
    request = Request("", f"{round(time.time() * 1000)}-0", op.name, "", "alone", "", NEVER, None)
    await _prepare(link, state, database)
    effects = Effects(database, "alone", request, later_bound=LATER_BOUND)
    # The type of the handler's first parameter: a query gets a `Query`, and a command gets a `Transaction`.
    tx_type = get_type_hints(op.handler)[next(iter(inspect.signature(op.handler).parameters))]
    tx = Query(store, request) if tx_type is Query else Transaction(store, request, effects)
    # Body and reply become JSON and are read again, as on the way between two replicas.
    decoded_body = op.decode_body(op.encode_body(body).decode())
    if isinstance(decoded_body, MeshError):  # an InvalidBody, which `decode_body` returns and does not raise
        raise decoded_body
    reply = await (op.handler(tx) if op.body is None else op.handler(tx, decoded_body))
    decoded_reply = op.decode_reply(op.encode_reply(reply).decode())
    # A query, whose `effects` are empty, takes the same way. Its commit writes and sends nothing.
    transaction_words = await link.commit(effects)
    return Ran(decoded_reply, list(sent_of(transaction_words, lambda name, text: decode(text))), database, link)


async def _prepare(link: LinkAlone, state: Mapping[Any, Any], database: int) -> None:
    """Store the values that the test gives."""
    for key_or_field, value in state.items():
        if not isinstance(key_or_field, KeyOrField):
            raise UsageError(f"the keys of state= are values and fields of hashes, not {key_or_field!r:.100}")
        shared, name, field = key_or_field.location
        send, prefix = (link.shared, keys.SHARED) if shared else (link.own, keys.own(database))
        text = key_or_field.encode(value)
        await (send("SET", prefix + name, text) if field is None else send("HSET", prefix + name, field, text))
