"""Everything that a handler can do wrong, as a table of short handlers."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any

from mesh import Class, Database, LeaseLost, Refused
from mesh.raw import Effects, Store

SURROGATE = "\ud800"
#: More digits than Python prints; redis-py's encoder ends the process at it.
UNPRINTABLE = 10**5000
#: An operation that the mesh must serve, because some mistakes send a request to it.
SINK = "mistake.none"


class Speechless(Exception):
    """An exception without a message."""

    def __str__(self) -> str:
        raise RuntimeError("this exception has no message")


class Grave(BaseException):
    """An exception that `except Exception` does not catch."""


def _cycle() -> dict[str, Any]:
    made: dict[str, Any] = {}
    made["itself"] = made
    return made


def _nested(depth: int) -> dict[str, Any]:
    made: dict[str, Any] = {}
    for _ in range(depth):
        made = {"in": made}
    return made


def _recurse() -> None:
    _recurse()


#: What a handler may return instead of a dict that is JSON.
RETURNS: dict[str, Callable[[], Any]] = {
    "an object": object,
    "an object inside": lambda: {"in": object()},
    "a list": lambda: [1],
    "bytes": lambda: b"{}",
    "text": lambda: "text",
    "a surrogate": lambda: {"in": SURROGATE},
    "a surrogate as a key": lambda: {SURROGATE: 1},
    "a tuple as a key": lambda: {(1, 2): 3},
    "itself": _cycle,
    "100,000 levels": lambda: _nested(100_000),
    "an unprintable integer": lambda: {"in": UNPRINTABLE},
    "20 MB": lambda: {"in": "x" * 20_000_000},
    "a complex number": lambda: {"in": 1j},
}

#: What a handler may raise.
RAISES: dict[str, Callable[[], BaseException]] = {
    "a surrogate": lambda: RuntimeError(SURROGATE),
    "10 MB": lambda: RuntimeError("x" * 10_000_000),
    "no message": Speechless,
    "no memory": MemoryError,
    "exit": lambda: SystemExit(3),
    "interrupt": KeyboardInterrupt,
    "generator exit": GeneratorExit,
    "stop iteration": StopIteration,
    "cancelled": asyncio.CancelledError,
    "a base exception": lambda: Grave("grave"),
    "a group": lambda: BaseExceptionGroup("several", [SystemExit(1), Grave()]),
    "lease lost": LeaseLost,
    "a refusal with an object": lambda: Refused("no", why=object()),
    "a refusal with a surrogate": lambda: Refused(SURROGATE),
    "a refusal that is no text": lambda: Refused(object()),  # type: ignore[arg-type]
}

#: What a handler may put into its transaction.
WRITES: dict[str, Callable[[Effects], None]] = {
    "none": lambda t: t.set("mistake", None),  # type: ignore[arg-type]
    "a boolean": lambda t: t.set("mistake", True),
    "an object": lambda t: t.hset("mistake", {"f": object()}),  # type: ignore[dict-item]
    "an unprintable integer": lambda t: t.set("mistake", UNPRINTABLE),
    "an unprintable field": lambda t: t.hdel("mistake", UNPRINTABLE),
    "an unprintable expectation": lambda t: t.expect("mistake", None, UNPRINTABLE),
    "an unprintable score": lambda t: t.zadd("mistake", {"m": UNPRINTABLE}),
    "a surrogate": lambda t: t.set("mistake", SURROGATE),
    "a surrogate as a key": lambda t: t.set(SURROGATE, 1),
    "a surrogate as a field": lambda t: t.hset("mistake", {SURROGATE: 1}),
    "a surrogate expected": lambda t: t.expect("mistake", SURROGATE),
    "a counter that is text": lambda t: t.incrby("class", 1),
    "a hash that is text": lambda t: t.hset("class", {"f": 1}),
    "no key": lambda t: t.set(None, 1),  # type: ignore[arg-type]
    "70 MB": lambda t: t.set("mistake", "x" * 70_000_000),
    "an unknown verb": lambda t: t.write("FLUSHALL", "mistake"),
    "an option": lambda t: t.set("mistake", 1, "FOO"),
    "no pair": lambda t: t.write("HSET", "mistake", "f"),
    "a text score": lambda t: t.write("ZADD", "mistake", "x", "m"),
    "NaN as a score": lambda t: t.zadd("mistake", {"m": float("nan")}),  # type: ignore[dict-item]
    "an increment that is no number": lambda t: t.write("INCRBY", "mistake", "x"),
    "an increment of 70 bits": lambda t: t.incrby("mistake", 2**70),
    "an expiry that is no number": lambda t: t.set_until(["mistake"], 1, "soon"),  # type: ignore[arg-type]
    "a lifetime that is no number": lambda t: t.keep_until("mistake", None),  # type: ignore[arg-type]
    "two types in one key": lambda t: (t.hset("mistake", {"f": 1}), t.incrby("mistake", 1))[1],
    "a send to text": lambda t: t.send("A", "x.y", {}),  # type: ignore[arg-type]
    "a send of an object": lambda t: t.send(Class("A"), "x.y", {"in": object()}),
    "a send of a list": lambda t: t.send(Class("A"), "x.y", [1]),  # type: ignore[arg-type]
    "a send with a surrogate": lambda t: t.send(Database(1), SURROGATE, {}),
    "a send of 20 MB": lambda t: t.send(Database(1), "x.y", {"in": "x" * 20_000_000}),
    "a send without a name": lambda t: t.send(Database(1), None, {}),  # type: ignore[arg-type]
    "a send until text": lambda t: t.send(Database(1), "x.y", {}, deadline="soon"),  # type: ignore[arg-type]
    "a send that is huge": lambda t: [t.send(Database(1), SINK, {"in": "x" * 10_000_000}) for _ in range(8)][-1],
}

NAMES = [
    f"{kind}: {name}" for kind, table in (("return", RETURNS), ("raise", RAISES), ("write", WRITES)) for name in table
]


#: Those whose answer is at fault, not the work: the caller is told so at once.
UNSENDABLE = [name for name in NAMES if name.startswith(("return: ", "raise: a refusal"))]


async def make(mistake: str, store: Store, transaction: Effects) -> Any:
    """Make a mistake, by its name."""
    kind, _, name = mistake.partition(": ")
    match kind:
        case "return":
            return RETURNS[name]()
        case "raise":
            raise RAISES[name]()
        case "write":
            WRITES[name](transaction)
        case "recurse":
            _recurse()
        case "read":
            await store.hget("mistake", UNPRINTABLE)
        case "block":
            time.sleep(float(name))  # noqa: ASYNC251 - this is the mistake
            raise RuntimeError("it has kept the event loop")
    return {}
