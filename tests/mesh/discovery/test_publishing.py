"""What `mesh:operations` holds: what each live replica serves, and nothing that none serves."""

from __future__ import annotations

import json
from typing import Any

import pytest
from msgspec import Struct

from mesh import Operation, Operations, Query, Refused, Transaction, Unserved, keys
from mesh.testing import MeshKit
from tests.support.greetings import greetings

ONE_CLASS = {"classes": "A"}


class Note(Struct):
    text: str


class NoRoom(Refused, code="notes.no-room"):
    """There is no room for this note."""

    left: int


def notes(*, count: bool = False, summary: str = "Put a note.") -> Operations:
    """A table in one of its releases."""
    table = Operations("notes")

    async def put(tx: Transaction, body: Note) -> Note:
        return body

    put.__doc__ = summary
    table.command(put)
    if count:

        @table.query(name="count")
        async def number(view: Query) -> int:
            return 0

    return table


async def stored(kit: MeshKit) -> dict[str, Any]:
    found = await kit.redis().hgetall(keys.OPERATIONS)
    return {op: json.loads(text) for op, text in found.items()}


async def test_a_replica_writes_what_it_serves() -> None:
    async with MeshKit(notes(count=True), **ONE_CLASS) as kit:
        await kit.advance(seconds=1)
        found = await stored(kit)
        assert found.keys() == {"notes.put", "notes.count"}
        put = found["notes.put"]
        assert (put["kind"], put["service"], put["summary"], put["version"]) == ("command", "notes", "Put a note.", "")
        assert put["request"]["$defs"]["Note"]["required"] == ["text"]
        assert put["errors"] == {
            "notes.no-room": {"detail": "There is no room for this note.", "facts": {"left": {"type": "integer"}}}
        }
        count = found["notes.count"]
        assert (count["kind"], count["request"], count["reply"]) == ("query", None, {"type": "integer"})
        row = await kit.redis().hgetall(keys.row(kit[0].database))
        served = await kit.redis().hgetall(keys.SERVED)
        assert served == {row["serves"]: "notes.count notes.put"}


async def test_operations_of_all_live_replicas_are_there_and_no_others() -> None:
    """Those of a replica that has left are removed within seconds."""
    async with MeshKit(greetings) as kit:
        await kit.start(notes(count=True))
        await kit.advance(seconds=1)
        assert {"greetings.put", "notes.count"} <= (await stored(kit)).keys()
        await kit.stop(1)
        await kit.advance(seconds=20)
        found = await stored(kit)
        assert {op.partition(".")[0] for op in found} == {"greetings"}
        assert len(await kit.redis().hgetall(keys.SERVED)) == 1


async def test_a_replica_without_operations_is_known_to_serve_none() -> None:
    """Its empty table is written, too; otherwise it might serve anything, and no operation would be refused."""
    async with MeshKit(greetings) as kit:
        await kit.start(Operations("none"))
        await kit.advance(seconds=1)
        row = await kit.redis().hgetall(keys.row(kit[1].database))
        assert (await kit.redis().hgetall(keys.SERVED))[row["serves"]] == ""
        with pytest.raises(Unserved):
            await kit[0].send(Operation("notes.gone", Note, Note), Note("a"))


async def test_definitions_stay_while_the_row_of_their_replica_is_overwritten() -> None:
    """Nobody knows what that replica serves, until it writes its row anew."""
    async with MeshKit(notes(), **ONE_CLASS) as kit:
        other = await kit.start(greetings)
        await kit.advance(seconds=1)
        before = (await stored(kit)).keys()
        assert before > {"notes.put"}
        row = f"mesh:replica:{kit[0].database}"
        await kit.redis().set(row, "overwritten")
        await other.replica._publication.publish(other.replica._link)
        assert (await stored(kit)).keys() == before
        await kit.redis().delete(row)
        await other.replica._publication.publish(other.replica._link)
        assert "notes.put" not in await stored(kit)


async def test_of_two_releases_the_one_that_joined_last_defines_an_operation() -> None:
    """When it has left, the other one writes its definition again."""
    async with MeshKit(notes()) as kit:
        await kit.advance(seconds=1)
        await kit.start(notes(count=True, summary="Put a note here."))
        await kit.advance(seconds=1)
        assert (await stored(kit))["notes.put"]["summary"] == "Put a note here."
        await kit.stop(1)
        await kit.advance(seconds=20)
        found = await stored(kit)
        assert found.keys() == {"notes.put"}
        assert found["notes.put"]["summary"] == "Put a note."


async def test_an_emptied_server_gets_them_again() -> None:
    async with MeshKit(notes(), **ONE_CLASS) as kit:
        await kit.advance(seconds=1)
        await kit.redis().delete(keys.OPERATIONS, keys.SERVED)
        await kit.advance(seconds=10)
        assert (await stored(kit)).keys() == {"notes.put"}


async def test_lost_answers_change_nothing() -> None:
    async with MeshKit(notes(), **ONE_CLASS) as kit:
        kit.lose_answers(3)
        await kit.advance(seconds=10)
        assert (await stored(kit)).keys() == {"notes.put"}
