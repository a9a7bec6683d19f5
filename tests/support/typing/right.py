"""A service as its user writes it: both type checkers accept all of it. See tests/mesh/operations/test_typing.py."""

import asyncio
from dataclasses import dataclass
from datetime import timedelta

from msgspec import Struct
from pydantic import BaseModel

from mesh import Class, Database, Operation, Operations, Query, Refused, Transaction, join

greetings = Operations("typing")
total = greetings.value("total", int, 0)
last = greetings.value("last", str)
seen = greetings.hash("seen", str, int)
pages = greetings.values("page", int, str)
names = greetings.set("names", str)
ages = greetings.sorted_set("ages", str)


class Greet(Struct):
    name: str


class Greeted(Struct):
    greeting: str
    times: int


class Birthday(BaseModel):
    name: str
    age: int


@dataclass
class Person:
    name: str
    age: int


class NameTaken(Refused, code="typing.name-taken"):
    name: str


@greetings.command
async def put(tx: Transaction, body: Greet) -> Greeted:
    times = (await tx.get(seen[body.name]) or 0) + 1
    tx.set(seen[body.name], times)
    tx.set(pages[7], "text", ttl=timedelta(minutes=1))
    tx.set(total, await tx.get(total) + 1)
    tx.send(put, body, to=Database(1))
    tx.send(reset)
    return Greeted(f"hello {body.name}", times)


@greetings.command(name="other-name")
async def birthday(tx: Transaction, body: Birthday) -> Person:
    if await tx.contains(names, body.name):
        raise NameTaken(name=body.name)
    tx.insert(names, body.name)
    tx.put(ages, {body.name: body.age})
    adults: list[str] = await tx.range(ages, 18)
    return Person(body.name, len(adults))


@greetings.command
async def reset(tx: Transaction) -> None:
    tx.delete(total)
    tx.delete(seen)
    tx.add(total, 1)


@greetings.query
async def count(view: Query) -> int:
    everything: dict[str, int] = await view.items(seen)
    some: list[int | None] = await view.many([seen["a"], seen["b"]])
    return await view.get(total) + len(everything) + len(some)


contract = Operation("typing.contract", Greet, Greeted)


@greetings.implements(contract)
async def answer(tx: Transaction, body: Greet) -> Greeted:
    return Greeted(body.name, 1)


async def main() -> None:
    async with join(greetings) as mesh:
        text: str = (await mesh.call(put, Greet("world"))).greeting
        person: Person = await mesh.call(birthday, Birthday(name="ann", age=7), to=Class("A"))
        numbers: dict[int, int] = await mesh.gather(count)
        parts: list[Greeted] = await mesh.parts(contract, Greet("x"), to=Database(2), deadline=timedelta(seconds=1))
        await mesh.send(reset, key="reset-1", keep=timedelta(minutes=5))
        text = (await mesh.call(put, Greet("world"), key="put-1")).greeting
        assert text and person.age and sum(numbers.values()) and parts


if __name__ == "__main__":
    asyncio.run(main())
