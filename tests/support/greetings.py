"""A table of operations for tests, as a user of the library writes it."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any

from msgspec import Struct
from pydantic import BaseModel, PositiveInt

from mesh import Class, Database, Operation, Operations, Query, Refused, Transaction

greetings = Operations("greetings")
total = greetings.value("total", int, 0)
last = greetings.value("last", str)
seen = greetings.hash("seen", str, int)
names = greetings.set("names", str)
ages = greetings.sorted_set("ages", str)
#: how often each handler has read what it needs, by its name
runs: dict[str, int] = {}


class Greet(Struct):
    """To greet somebody."""

    name: str


class Greeted(Struct):
    """What became of it."""

    greeting: str
    times: int


class Birthday(BaseModel):
    """A pydantic body."""

    name: str
    age: PositiveInt


@dataclass
class Person:
    """A dataclass as a reply."""

    name: str
    age: int


class NameTaken(Refused, code="tests.name-taken"):
    """Somebody else has this name."""

    name: str
    ages: tuple[int, ...]


@greetings.command
async def put(tx: Transaction, body: Greet) -> Greeted:
    """Greet somebody, and count."""
    _began("put")
    times = (await tx.get(seen[body.name]) or 0) + 1
    tx.set(seen[body.name], times)
    tx.set(total, await tx.get(total) + 1)
    tx.set(last, body.name)
    return Greeted(f"hello {body.name}", times)


@greetings.query
async def count(view: Query) -> int:
    """Return how many greetings there were."""
    return await view.get(total)


@greetings.command
async def birthday(tx: Transaction, body: Birthday) -> Person:
    """Store an age."""
    known = await tx.score(ages, body.name)
    tx.put(ages, {body.name: body.age})
    tx.insert(names, body.name)
    return Person(body.name, int(known or 0))


@greetings.command
async def take(tx: Transaction, body: Greet) -> None:
    """Take a name that nobody has."""
    if await tx.contains(names, body.name):
        raise NameTaken(name=body.name, ages=(1, 2))
    tx.insert(names, body.name)


@greetings.command
async def census(tx: Transaction) -> dict[str, int]:
    """Add up all of the hash, with time for others in between."""
    found = await tx.items(seen)
    _began("census")
    await asyncio.sleep(0.05)
    tx.set(total, sum(found.values()))
    return found


@greetings.command
async def adults(tx: Transaction) -> list[str]:
    """Read a range, a set and write, with time for others in between."""
    found = await tx.range(ages, 18)
    everybody = await tx.members(names)
    _began("adults")
    await asyncio.sleep(0.05)
    tx.set(total, len(found))
    return [*found, *sorted(everybody)]


@greetings.command
async def wrong(tx: Transaction) -> int:
    """Return what the annotation does not say."""
    tx.set(total, 77)
    return "seven"  # type: ignore[return-value]


@greetings.command
async def spread(tx: Transaction, body: Greet) -> Greeted | None:
    """Let the holder of database 2 answer, too, or for us."""
    if tx.database == 2:
        return Greeted(body.name, 2)
    tx.forward(spread, body, to=Database(2))
    return None if body.name == "whole" else Greeted(body.name, tx.database)


@greetings.command
async def tell(tx: Transaction, body: Greet) -> None:
    """Send a greeting to a class, or wherever a mistake leads."""
    to: Any = "A" if body.name == "mistake" else Class(tx.cls)
    tx.send(put, body, to=to)


contract = Operation("greetings.contract", Greet, Greeted)


@greetings.implements(contract)
async def answer_contract(tx: Transaction, body: Greet) -> Greeted:
    """Answer an operation that another program knows by its contract."""
    return Greeted(body.name, 1)


def _began(name: str) -> None:
    runs[name] = runs.get(name, 0) + 1
