"""An email belongs to one user at every moment."""

from __future__ import annotations

import asyncio

import pytest
from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from mesh.errors import Unavailable
from quart_app.messages.users import EmailTaken, User, Users


async def test_of_many_who_register_one_email_one_gets_it(shared: Redis) -> None:
    """However many replicas they ask."""
    made = await asyncio.gather(
        *(Users(shared).register("a@example.com", f"hash{n}") for n in range(20)), return_exceptions=True
    )
    users = [each for each in made if isinstance(each, User)]
    assert len(users) == 1
    assert sum(isinstance(each, EmailTaken) for each in made) == 19
    assert await Users(shared).find_by_email("a@example.com") == users[0]


async def test_of_many_who_move_to_one_email_one_gets_it(shared: Redis) -> None:
    """The others keep theirs, and the old email of the one is free again."""
    users = Users(shared)
    made = [await users.register(f"u{n}@example.com", "hash") for n in range(5)]
    moved = await asyncio.gather(
        *(users.change_profile(user, email="new@example.com") for user in made), return_exceptions=True
    )
    (winner,) = [each for each in moved if isinstance(each, User)]
    assert await users.find_by_email("new@example.com") == winner
    for user in made:
        holder = await users.find_by_email(user.email)
        assert (holder is None) is (user.id == winner.id)


async def test_a_user_starts_without_rights(shared: Redis) -> None:
    """Paid access and administration are given, never taken."""
    user = await Users(shared).register("a@example.com", "hash")
    assert (user.paid_access, user.is_admin, user.is_active) == (False, False, True)


async def test_access_is_changed_of_users_that_exist(shared: Redis) -> None:
    """Only what is named changes; nobody comes into being."""
    users = Users(shared)
    user = await users.register("a@example.com", "hash")
    changed = await users.change_access(user.id, {"paid_access": True})
    assert changed is not None and (changed.paid_access, changed.is_active) == (True, True)
    assert await users.change_access("nobody", {"paid_access": True}) is None
    assert await shared.exists("shared:messages:user:nobody") == 0


async def test_a_new_password_is_a_new_generation(shared: Redis) -> None:
    """And a new email alone is not."""
    users = Users(shared)
    user = await users.register("a@example.com", "hash")
    assert (await users.change_profile(user, email="b@example.com")).generation == 1
    assert (await users.change_profile(user, password="other hash")).generation == 2


async def test_redis_away_is_no_absence() -> None:
    """Never "no such user"."""
    users = Users(Redis(host="127.0.0.1", port=1, retry=Retry(NoBackoff(), 0)))
    for action in (users.find("x"), users.find_by_email("a@example.com"), users.register("a@example.com", "hash")):
        with pytest.raises(Unavailable):
            await action
