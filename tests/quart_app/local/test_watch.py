"""`mesh watch`: one readable line per request and reply."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from mesh import Class, Database, keys
from mesh.raw import Body, Effects, Request, Store, Worker
from quart_app.local import watch
from quart_app.local.watch import LONGEST_BODY_CHARACTERS, Watcher, entry_line
from tests.support.backend import Backend
from tests.support.server import Server

AT = "1700000000123-0"
FIELDS = {"op": "values.put", "request": "replica-1-7", "from": "replica-1", "body": '{"items":[]}'}


def test_a_request_says_when_what_from_whom_to_whom() -> None:
    """The time is that of its id."""
    text = entry_line(AT, "mesh:requests:A", FIELDS).plain
    assert text == '22:13:20.123 request values.put replica-1 -> A {"items":[]}'


def test_a_reply_says_how_it_went_and_a_dead_letter_why() -> None:
    """Both are shown also where fields are missing."""
    assert (
        "reply   values.put busy replica-1 -> replica-2"
        in entry_line(AT, "mesh:replies:replica-2", {**FIELDS, "status": "busy"}).plain
    )
    assert "dead    values.put it crashed" in entry_line(AT, keys.DEAD, {**FIELDS, "reason": "it crashed"}).plain
    assert "request ? ? -> db3" in entry_line(AT, "mesh:requests:db3", {}).plain


def test_a_long_body_is_cut_and_says_so() -> None:
    """A terminal has few lines."""
    text = entry_line(AT, "mesh:requests:A", {**FIELDS, "body": "x" * 5000}).plain
    assert text.endswith("… (5000 characters)") and len(text) < LONGEST_BODY_CHARACTERS + 120


@pytest.mark.parametrize(
    ("cls", "op", "seen"),
    [
        (None, None, {"request x.one A", "request x.one db1", "request x.two A", "reply x.one", "reply x.two"}),
        ("A", None, {"request x.one A", "request x.two A", "reply x.one", "reply x.two"}),
        ("db1", None, {"request x.one db1", "reply x.one", "reply x.two"}),
        (None, "x.o", {"request x.one A", "request x.one db1", "reply x.one"}),
    ],
)
async def test_a_watcher_shows_what_it_is_asked_for(
    mesh_of: Backend, server: Server, cls: str | None, op: str | None, seen: set[str]
) -> None:
    """A class or database, and the first letters of the operation, select requests."""
    worker = Worker()
    gate = asyncio.Event()

    async def handle(request: Request, store: Store, transaction: Effects) -> Body:
        # Wait until the watcher has read it: an answered request is deleted from its stream.
        await gate.wait()
        return {}

    for name in ("x.one", "x.two"):
        worker.handles(name, effect=False)(handle)
    (one,) = await mesh_of(1, worker)
    client = one._connections.client("test", block_ms=watch.BLOCK_MS)
    watcher = Watcher(cls, op)
    watcher.follow([*keys.request_streams("ABCD", 16), keys.replies(one.id), keys.DEAD], "0")
    calls = [
        asyncio.ensure_future(one.call(to, name, {}))
        for to, name in ((Class("A"), "x.one"), (Class("A"), "x.two"), (Database(1), "x.one"))
    ]
    found: set[str] = set()
    async with asyncio.timeout(5):
        while found != seen:
            found |= {_short(text.plain) for text in await watcher.read(client)}
            assert found <= seen
            if {words for words in seen if words.startswith("request")} <= found:
                gate.set()
    await asyncio.gather(*calls)
    await client.aclose()


def _short(text: Any) -> str:
    words = text.split()
    return f"{words[1]} {words[2]}" + (f" {words[5]}" if words[1] == "request" else "")
