"""Each code of the submission script is the error that says what a caller can do."""

from __future__ import annotations

import asyncio

import pytest

from mesh import Busy, Class, Incomplete, KeyReused, Limited, MeshError, NoReplica, SetupError, Unavailable
from mesh.raw import Body, Effects, Request, Store, Worker
from mesh.requests.refusals import commit_error, refusal
from tests.support.backend import Backend

WORKER = Worker()


@WORKER.handles("refusals.echo")
async def echo(request: Request, store: Store, transaction: Effects) -> Body:
    """Say which database has handled the request."""
    return {"database": store.database}


@pytest.mark.parametrize(
    ("code", "about", "kind", "text", "retry_after"),
    [
        ("no-replica", "B", NoReplica, "no live replica has class B", None),
        ("no-replica", "db3", NoReplica, "no live replica has database 3", None),
        ("missing", "B", Unavailable, "class B has no replica at the moment, and its replica is expected back", 1),
        ("missing", "db3", Unavailable, "database 3 has no replica at the moment", 1),
        ("missing", "3 11", Incomplete, "databases that hold data have no replica at the moment: 3, 11; retry", 1),
        ("busy", "A", Busy, "the queue of class A is full; retry after 1 s", 1),
        ("busy", "db3", Busy, "the queue of database 3 is full; retry after 1 s", 1),
        ("full", "", Busy, "Redis is full", 5),
        ("forbidden", "NOPERM no", SetupError, "this Redis user may not send requests for later: NOPERM no", None),
        ("key-reused", "k", KeyReused, "the idempotency key k was used with another body", None),
        ("limited", "1500 a.do:ann", Limited, "too many requests of a.do for 'ann'; retry after 1.5 s", 1.5),
        ("limited", "20 a.do:", Limited, "too many requests of a.do; retry after 0.02 s", 0.02),
        ("too-many", "", Busy, "too many requests wait for their time; retry after 1 s", 1),
        ("wrong-type", "mesh:lane:x", Unavailable, "mesh:lane:x is a key of the wrong type", 5),
    ],
)
def test_a_refusal_names_what_is_lacking(
    code: str, about: str, kind: type[MeshError], text: str, retry_after: float | None
) -> None:
    """Only what cannot come back by itself is final."""
    error = refusal(code, about)
    assert type(error) is kind and text in error.detail and error.retry_after == retry_after
    assert error.facts.get("missing", []) == ([3, 11] if kind is Incomplete else [])


@pytest.mark.parametrize(
    ("word", "kind", "text", "retry_after"),
    [
        ("full", Busy, "Redis is full", 5),
        ("too-many mesh:later", Busy, "too many requests wait for their time; retry after 1 s", 1),
        ("key-reused k", KeyReused, "the idempotency key k was used with another body", None),
        ("limited 1500 a.do:ann", Limited, "too many requests of a.do for 'ann'; retry after 1.5 s", 1.5),
        ("x holds a hash", MeshError, "the transaction was not applied: x holds a hash", None),
    ],
)
def test_a_commit_that_is_refused_says_the_same(
    word: str, kind: type[MeshError], text: str, retry_after: float | None
) -> None:
    """A handler's sends are refused in the commit, for the reasons for which a caller's are."""
    error = commit_error(word)
    assert type(error) is kind and text in error.detail and error.retry_after == retry_after


async def test_an_overwritten_queue_refuses_only_its_own_requests(backend: Backend) -> None:
    """Requests of the same batch to other queues are submitted, answered and counted."""
    one = await backend.join(WORKER, class_="A")
    two = await backend.join(WORKER, class_="B")
    client, stream = backend.redis(), "mesh:requests:A"
    entries = await client.dump(stream)
    before = await two.books()
    await client.set(stream, "overwritten")
    addresses = [Class("B"), Class("A"), Class("B"), Class("A")]
    calls = [two.call(to, "refusals.echo", {}, deadline_ms=5000) for to in addresses]
    first, refused, second, also_refused = await asyncio.gather(*calls, return_exceptions=True)
    assert first == second == {"database": two.database}
    for error in (refused, also_refused):
        assert isinstance(error, Unavailable) and error.retry_after == 5 and stream in error.detail
    await client.delete(stream)
    await client.restore(stream, 0, entries)
    await client.aclose()
    after = await two.books()
    assert after["accepted"] - before["accepted"] == after["answered"] - before["answered"] == 2
    assert await two.call(Class("A"), "refusals.echo", {}, deadline_ms=5000) == {"database": one.database}
