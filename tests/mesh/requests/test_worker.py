"""The table of operations."""

from __future__ import annotations

import json

import pytest

from mesh.raw import Body, Effects, Request, Store, Worker
from mesh.requests.verbs import ServiceVerbs


async def handle(request: Request, store: Store, transaction: Effects) -> Body:
    return {}


def test_an_operation_has_one_handler() -> None:
    """Two would mean that one of them never runs."""
    worker = Worker()
    assert worker.handles("a.put")(handle) is handle
    with pytest.raises(ValueError, match=r"a\.put has a handler already"):
        worker.handles("a.put")(handle)


def test_a_handler_has_an_effect_unless_it_says_otherwise() -> None:
    """Only what says so runs beside its neighbours on a database's stream."""
    worker = Worker()
    worker.handles("a.put")(handle)
    worker.handles("a.find", effect=False)(handle)
    put, find = worker.handler("a.put"), worker.handler("a.find")
    assert put is not None and put.has_effect
    assert find is not None and not find.has_effect
    assert worker.handler("a.drop") is None


def test_services_bring_verbs_under_names_of_their_own() -> None:
    """A second verb of one name would take the place of the first."""
    one, other, verbs = Worker(), Worker(), ServiceVerbs("-- a", {"note-all": ("hash", "zset")})
    other.writes_with(verbs)
    one.include(other)
    assert one.verbs["note-all"].needs == ("hash", "zset")
    assert one.fragments == ["-- a"]
    for taken in ("note-all", "keep", "HSET"):
        with pytest.raises(ValueError, match=rf"the verbs \['{taken}'\] are there already"):
            one.writes_with(ServiceVerbs("", {taken: ()}))


def test_a_worker_takes_over_anothers_table_once() -> None:
    """How an application puts its services together."""
    one, other = Worker(), Worker()
    one.handles("a.put")(handle)
    other.handles("b.put")(handle)
    one.include(other)
    assert one.operations == ["a.put", "b.put"]
    with pytest.raises(ValueError):
        one.include(other)


def test_an_operation_belongs_to_the_service_that_its_name_begins_with() -> None:
    """A name without a dot belongs to none."""
    worker = Worker()
    worker.handles("a.put")(handle)
    worker.handles("find", effect=False)(handle)
    found = {op: json.loads(text) for op, text in worker.definitions("v1").items()}
    assert {op: (each["service"], each["kind"]) for op, each in found.items()} == {
        "a.put": ("a", "command"),
        "find": ("", "query"),
    }
