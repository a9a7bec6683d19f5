"""Twelve mistakes at the interface of the library; a type checker reports each marked line, and no other."""

from __future__ import annotations

from right import Greet, count, greetings, put, seen, total

from mesh import Class, Mesh, Query, Transaction


async def wrong(mesh: Mesh, tx: Transaction, view: Query) -> None:
    await mesh.call(put, {"name": "x"}, to=Class("A"))  # wrong: a body of another type
    await mesh.call(put, to=Class("A"))  # wrong: no body
    await mesh.call(count, Greet("x"))  # wrong: a body that it does not take
    _ = (await mesh.call(put, Greet("x"))).greetin  # wrong: no such field
    tx.set(total, "7")  # wrong: a value of another type
    n: int = await tx.get(seen["ann"])  # wrong: it may be absent
    view.set(total, 1)  # wrong: a query cannot write
    assert seen[7] and n  # wrong: a field of another type
    tx.send(put)  # wrong: no body
    await mesh.call(put, Greet("x"), key=7)  # wrong: a key that is no text
    a: dict[int, str] = dict(await mesh.gather(count))  # wrong: another reply
    assert a


@greetings.query  # wrong: a query that asks for a transaction
async def bad(tx: Transaction) -> int:
    return 1
