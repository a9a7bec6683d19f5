"""One record per phone; a failure of Redis never looks like a missing record."""

from __future__ import annotations

import asyncio

import pytest
from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from mesh.errors import Unavailable
from quart_app.addresses.phone import PhoneReader
from quart_app.addresses.store import Addresses

PHONE = PhoneReader().for_writing("+7 911 123 45 67")


async def test_of_many_who_create_at_once_one_does(shared: Redis) -> None:
    """A create is one command: one caller succeeds, the others get False, and the first address stays."""
    addresses = Addresses(shared)
    created = await asyncio.gather(*(addresses.create(PHONE, f"Address number {n}") for n in range(20)))
    assert sum(created) == 1
    assert await addresses.read(PHONE) == f"Address number {created.index(True)}"


async def test_updating_never_creates(shared: Redis) -> None:
    """An update of a missing or deleted record changes nothing."""
    addresses = Addresses(shared)
    assert not await addresses.update(PHONE, "Nowhere in particular")
    assert await addresses.read(PHONE) is None
    assert await addresses.create(PHONE, "Somewhere for now")
    assert await addresses.update(PHONE, "Somewhere else now")
    assert await addresses.read(PHONE) == "Somewhere else now"


async def test_deleting_returns_whether_there_was_a_record(shared: Redis) -> None:
    """The second deletion returns False."""
    addresses = Addresses(shared)
    await addresses.create(PHONE, "Somewhere for now")
    assert [await addresses.delete(PHONE), await addresses.delete(PHONE)] == [True, False]


async def test_the_key_is_the_phone_as_rfc_3966(shared: Redis) -> None:
    """People can read it with redis-cli: the phone is the key, the address is the value."""
    await Addresses(shared).create(PHONE, "Somewhere for now")
    assert await shared.get("shared:addresses:tel:+79111234567") == "Somewhere for now"


async def test_a_failure_of_redis_is_unavailable() -> None:
    """It is not a missing record, and the error contains no phone."""
    addresses = Addresses(Redis(host="127.0.0.1", port=1, retry=Retry(NoBackoff(), 0)))
    for action in (
        addresses.read(PHONE),
        addresses.delete(PHONE),
        addresses.create(PHONE, "Somewhere for now"),
        addresses.update(PHONE, "Somewhere for now"),
    ):
        with pytest.raises(Unavailable) as failed:
            await action
        assert "911" not in repr(failed.value)
