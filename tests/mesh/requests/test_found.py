"""A shared key that is read with the submission: its value reaches the handler, once, and is never trusted blindly."""

from __future__ import annotations

import json
from collections.abc import Sequence

import pytest

from mesh import Class, UsageError, keys
from mesh.raw import Ask, Body, Effects, Replica, Request, Store, Worker
from mesh.requests.protocol import Request as Entry
from tests.support.backend import Backend
from tests.support.waiting import eventually

KEY = "x:key"


class Noting:
    """Notes what each run of a request found, and then changes the key as the request says."""

    def __init__(self) -> None:
        self.found: list[str | None] = []
        self.changes = True
        self.worker = Worker()
        self.worker.handles("x.put")(self.put)

    async def put(self, request: Request, store: Store, transaction: Effects) -> Body:
        self.found.append(request.found)
        if not self.changes:
            return {}
        before = await store.shared.get(KEY) if request.found is None else request.found or None
        transaction.shared.expect(KEY, before)
        transaction.shared.set(KEY, request.body["text"])
        return {}


async def ask(replica: Replica, text: str, read: Sequence[str] = (KEY,)) -> None:
    (answer,) = await replica.ask([Ask(Class("A"), "x.put", {"text": text}, read=read)])
    assert answer.error is None


async def test_a_handler_gets_what_the_key_had_when_the_request_was_sent(backend: Backend) -> None:
    """The handler gets a text, nothing, or None where the sender names no key."""
    noting = Noting()
    one = await backend.join(noting.worker, class_="A")
    await ask(one, "a b")
    await ask(one, "c")
    await ask(one, "d", read=())
    assert noting.found == ["", "a b", None]


async def test_a_handler_gets_what_several_keys_had(backend: Backend) -> None:
    """As a JSON list, in the order of the names."""
    noting = Noting()
    one = await backend.join(noting.worker, class_="A")
    await ask(one, 'a "b", c')
    transaction = one.transaction()
    transaction.shared.set("x:other", "d")
    assert await one.commit(transaction)
    noting.changes = False
    await ask(one, "", read=["x:other", "x:none", KEY])
    assert json.loads(noting.found[-1] or "") == ["d", "", 'a "b", c']


async def test_a_value_that_has_changed_since_is_a_conflict_and_the_next_run_does_not_get_it(backend: Backend) -> None:
    """With the old value, the next run would meet the same conflict."""
    noting = Noting()
    one = await backend.join(noting.worker, class_="A")
    await ask(one, "old")
    redis = backend.redis()
    fields = {"op": "x.put", "body": '{"text":"newest"}', "read": f"shared:{KEY}", "found": "older"}
    # No script has accepted what was written by hand.
    await redis.hincrby(keys.BOOKS, "accepted", 1)
    await redis.xadd(Class("A").stream, fields)

    async def done() -> bool:
        return await redis.xlen(Class("A").stream) == 0

    await eventually(done)
    assert noting.found == ["", "older", None]
    assert await one.store().shared.get(KEY) == "newest"
    await redis.aclose()


async def test_a_key_of_another_kind_is_left_to_the_handler(backend: Backend) -> None:
    """Somebody has overwritten it; the submission of others must not fail."""
    noting = Noting()
    one = await backend.join(noting.worker, class_="A")
    redis = backend.redis()
    await redis.rpush(f"shared:{KEY}", "an element")
    (answer,) = await one.ask([Ask(Class("A"), "x.put", {"text": "a"}, read=[KEY])])
    assert answer.error is not None and noting.found[0] is None
    await redis.aclose()


async def test_such_a_request_is_asked_alone(backend: Backend) -> None:
    """The fields of a group are those of all its requests."""
    one = await backend.join(Noting().worker, class_="A")
    asks = [Ask(Class("A"), "x.put", {}, read=[KEY]), Ask(Class("A"), "x.put", {})]
    with pytest.raises(UsageError, match="is sent without others"):
        await one.ask(asks)


def test_a_later_delivery_does_not_get_it() -> None:
    """The value is old by then, and may be what made the first delivery fail."""
    flat = ["op", "x.put", "body", "{}", "read", "shared:x", "found", "1"]
    assert [Entry.from_entry("mesh:requests:A", "1-0", flat, n).found for n in (1, 2)] == ["1", None]
