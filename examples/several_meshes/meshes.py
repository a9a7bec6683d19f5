"""Several meshes as one: each value belongs to exactly one of them, and the hash of the value decides which.

Each mesh is a whole mesh of its own: a Redis, and up to sixteen replicas with the service `/values`. This module asks
them as a client without a lease, with a contract for each operation. It has no state, so any number of processes may
use it at the same time, as long as all of them have the same names of meshes.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Iterable, Mapping, Sequence
from hashlib import blake2b
from typing import NamedTuple, TypeVar

from msgspec import Struct, field

from mesh import Class, MeshClient, MeshError, Operation, Replies
from quart_app.values.notation import rank
from quart_app.values.store import without_prefix

T = TypeVar("T")

#: Values that travel in one request to a replica.
CHUNK = 125
#: Values that a database returns at a time, and the most in one answer.
PART, MOST = 5_000, 100_000


class Asked(Struct, frozen=True):
    """What a client asks for: a value, its time to live in seconds, and the class that is to keep it."""

    value: str
    ttl: int
    cls: str


class Item(Struct):
    """A value in a request to a replica."""

    value: str
    ttl: int


class Put(Struct):
    """Values of one class."""

    items: list[Item]


class Find(Struct):
    """The values with a prime factor, above `after`, at most `limit` of them."""

    prime: str
    after: str
    limit: int
    form: str = field(default="text", name="as")


class Found(Struct):
    """What one database has: all values up to `until`, or all if that is "".

    The text is "c120=2^3 3 5;c144=2^4 3^2". Each value has its length before it as a letter, so lines sort as numbers.
    """

    until: str
    found: str


#: The operations of /values, as contracts without code. `put` answers with the factors of each value.
put = Operation("values.put", Put, dict[str, str])
find = Operation("values.find", Find, Found)


class MeshesFailed(Exception):
    """Some meshes did not do their part: `errors` by the name of the mesh; `done` has what the others did."""

    def __init__(self, errors: Mapping[str, MeshError], done: Mapping[str, str] | None = None) -> None:
        self.errors = dict(errors)
        self.done = dict(done or {})
        super().__init__("; ".join(f"mesh {name}: {error.detail}" for name, error in sorted(errors.items())))


class Result(NamedTuple):
    """The factors of each value that was found, ascending; `left_out` are databases without a replica, by mesh."""

    factors: dict[str, str]
    left_out: dict[str, list[int]]


def owner(value: str, names: Iterable[str]) -> str:
    """Return the mesh to which a value belongs: each name gets a score from the value, and the highest wins.

    When a mesh is added, only the values that it wins move. When one is removed, only its own values move.
    """
    return max(names, key=lambda name: blake2b(f"{name} {value}".encode(), digest_size=8).digest())


class Meshes:
    """Clients of several meshes, by name."""

    def __init__(self, clients: Mapping[str, MeshClient]) -> None:
        self._clients = dict(clients)

    async def put(self, items: Iterable[Asked]) -> dict[str, str]:
        """Store each value in its mesh; return the factors of all. Of several items for one value the last one counts.

        Raises MeshesFailed: its `done` has the values that are stored nevertheless.
        """
        parts: dict[tuple[str, str], list[Item]] = {}
        for one in {item.value: item for item in items}.values():
            parts.setdefault((owner(one.value, self._clients), one.cls), []).append(Item(one.value, one.ttl))
        chunks = [
            (name, self._clients[name].parts(put, Put(part[at : at + CHUNK]), to=Class(cls)))
            for (name, cls), part in parts.items()
            for at in range(0, len(part), CHUNK)
        ]
        answers, errors = await _together(chunks)
        done = {value: factors for _, replies in answers for reply in replies for value, factors in reply.items()}
        if errors:
            raise MeshesFailed(errors, done)
        return done

    async def find(self, prime: str) -> Result:
        """Return all values with a prime factor. Every mesh is asked, because each may have some.

        Raises MeshesFailed if a mesh does not answer: no answer lacks values silently.
        """
        after, factors, left_out = "", dict[str, str](), dict[str, set[int]]()
        while True:
            answers = await self._ask_all(Find(prime, after, PART))
            for name, replies in answers:
                left_out.setdefault(name, set()).update(replies.left_out)
            found = [reply for _, replies in answers for reply in replies.values()]
            # Everything is known up to the least value at which a database had to stop.
            after = min((reply.until for reply in found if reply.until), key=rank, default="")
            # A value that moves from one database to another may be in both, with its only factorisation.
            lines = {line for reply in found if reply.found for line in reply.found.split(";")}
            for line in sorted(lines):
                name, _, text = line.partition("=")
                if not after or rank(without_prefix(name)) <= rank(after):
                    factors[without_prefix(name)] = text
            if not after or len(factors) >= MOST:
                return Result(factors, {name: sorted(numbers) for name, numbers in left_out.items() if numbers})

    async def _ask_all(self, question: Find) -> list[tuple[str, Replies[Found]]]:
        answers, errors = await _together([(name, one.gather(find, question)) for name, one in self._clients.items()])
        if errors:
            raise MeshesFailed(errors)
        return answers


async def _together(calls: Sequence[tuple[str, Awaitable[T]]]) -> tuple[list[tuple[str, T]], dict[str, MeshError]]:
    """Wait for calls to meshes; return the answers, and an error for each mesh that had one."""
    answers: list[tuple[str, T]] = []
    errors: dict[str, MeshError] = {}
    results = await asyncio.gather(*(call for _, call in calls), return_exceptions=True)
    for (name, _), result in zip(calls, results, strict=True):
        if isinstance(result, MeshError):
            errors[name] = result
        elif isinstance(result, BaseException):
            raise result
        else:
            answers.append((name, result))
    return answers, errors
