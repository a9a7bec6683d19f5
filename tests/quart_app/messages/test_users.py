"""Accounts: an address belongs to one account, and rights are given explicitly."""

from __future__ import annotations

import asyncio

import pytest
from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from mesh import keys
from mesh.errors import Unavailable
from quart_app.messages.users import (
    AccountChanged,
    EmailTaken,
    LastAdministrator,
    NoSuchAccount,
    NotAdministrator,
    User,
    Users,
)


async def test_one_of_many_registrations_gets_the_address(shared: Redis) -> None:
    """The registrations may come to different replicas."""
    made = await asyncio.gather(
        *(Users(shared).register("a@example.com", f"hash{n}") for n in range(20)), return_exceptions=True
    )
    users = [each for each in made if isinstance(each, User)]
    assert len(users) == 1
    assert sum(isinstance(each, EmailTaken) for each in made) == 19
    assert await Users(shared).find_by_email("a@example.com") == users[0]


async def test_one_of_many_changes_gets_the_address(shared: Redis) -> None:
    """The others keep their addresses, and the winner's former address is free again."""
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
    """An administrator or the command line gives them."""
    user = await Users(shared).register("a@example.com", "hash")
    assert (user.paid_access, user.is_admin, user.is_active) == (False, False, True)


async def test_access_is_changed_of_accounts_that_exist(shared: Redis) -> None:
    """Only the named fields change, and no account comes into being."""
    users = Users(shared)
    admin = await administrator(users)
    user = await users.register("a@example.com", "hash")
    changed = await users.change_access(user.id, {"paid_access": True}, actor=admin, source=None)
    assert (changed.paid_access, changed.is_active, changed.generation) == (True, True, 1)
    with pytest.raises(NoSuchAccount):
        await users.change_access("nobody", {"paid_access": True}, actor=admin, source=None)
    assert await shared.exists("shared:messages:user:nobody") == 0


async def test_every_change_of_a_profile_ends_older_sessions(shared: Redis) -> None:
    """A new address or a new password is a new generation; a change from an older one is refused."""
    users = Users(shared)
    user = await users.register("a@example.com", "hash")
    moved = await users.change_profile(user, email="b@example.com")
    assert moved.generation == 2
    assert (await users.change_profile(moved, password_hash="other hash")).generation == 3
    with pytest.raises(AccountChanged):
        await users.change_profile(moved, email="c@example.com")


async def test_a_deactivated_account_comes_back_as_another_generation(shared: Redis) -> None:
    """Tokens from before the deactivation stay invalid."""
    users = Users(shared)
    admin, user = await administrator(users), await users.register("a@example.com", "hash")
    await users.change_access(user.id, {"is_active": False}, actor=admin, source=None)
    back = await users.change_access(user.id, {"is_active": True}, actor=admin, source=None)
    assert (back.is_active, back.generation) == (True, 2)


async def test_the_right_to_administrate_is_read_when_it_is_used(shared: Redis) -> None:
    """An administrator who was deactivated or demoted after the request was authenticated changes nothing."""
    users = Users(shared)
    first, second = await administrator(users), await promoted(users, "second@example.com")
    await users.change_access(second.id, {"is_active": False}, actor=first, source=None)
    with pytest.raises(NotAdministrator):
        await users.change_access(second.id, {"is_active": True}, actor=second, source=None)
    third = await promoted(users, "third@example.com")
    await users.set_admin("third@example.com", is_admin=False)
    with pytest.raises(NotAdministrator):
        await users.change_access(first.id, {"is_active": False}, actor=third, source=None)


async def test_one_active_administrator_is_always_left(shared: Redis) -> None:
    """Deactivations and demotions come one by one and at the same time."""
    users = Users(shared)
    first = await administrator(users)
    with pytest.raises(LastAdministrator):
        await users.change_access(first.id, {"is_active": False}, actor=first, source=None)
    with pytest.raises(LastAdministrator):
        await users.set_admin(first.email, is_admin=False)
    second = await promoted(users, "second@example.com")
    outcomes = await asyncio.gather(
        users.change_access(second.id, {"is_active": False}, actor=first, source=None),
        users.change_access(first.id, {"is_active": False}, actor=second, source=None),
        users.set_admin(first.email, is_admin=False),
        users.set_admin(second.email, is_admin=False),
        return_exceptions=True,
    )
    assert any(isinstance(each, LastAdministrator | NotAdministrator) for each in outcomes)
    left = [await users.find(each.id) for each in (first, second)]
    assert [each for each in left if each is not None and each.is_admin and each.is_active]


async def test_an_inactive_administrator_does_not_count(shared: Redis) -> None:
    """Two administrators of whom one is deactivated: the other one stays."""
    users = Users(shared)
    first, second = await administrator(users), await promoted(users, "second@example.com")
    await users.change_access(second.id, {"is_active": False}, actor=first, source=None)
    with pytest.raises(LastAdministrator):
        await users.set_admin(first.email, is_admin=False)
    await users.change_access(second.id, {"is_active": True}, actor=first, source=None)
    assert await users.set_admin(first.email, is_admin=False) is True


async def test_the_first_administrator_is_created_once(shared: Redis) -> None:
    """Recorded by its id: neither another address in the settings nor a free address makes a second one."""
    users = Users(shared)
    assert await users.first_admin_email() is None
    made = await asyncio.gather(*(users.create_first_admin("boss@corp.example", "hash") for _ in range(8)))
    assert sorted(made) == ["created", *["recorded"] * 7]
    boss = await users.find_by_email("boss@corp.example")
    assert boss is not None and boss.is_admin
    await users.change_profile(boss, email="new@corp.example")
    assert await users.create_first_admin("boss@corp.example", "hash") == "recorded"
    assert await users.create_first_admin("other@corp.example", "hash") == "recorded"
    assert await users.first_admin_email() == "boss@corp.example"
    assert await users.find_by_email("other@corp.example") is None


async def test_the_first_administrators_address_is_reserved(shared: Redis) -> None:
    """Nobody else takes it, even while its owner uses another one; the owner may return to it."""
    users = Users(shared)
    stranger = await users.register("stranger@example.com", "hash")
    await users.create_first_admin("boss@corp.example", "hash")
    boss = await users.find_by_email("boss@corp.example")
    assert boss is not None
    boss = await users.change_profile(boss, email="new@corp.example")
    with pytest.raises(EmailTaken):
        await users.register("boss@corp.example", "hash")
    with pytest.raises(EmailTaken):
        await users.change_profile(stranger, email="boss@corp.example")
    assert (await users.change_profile(boss, email="boss@corp.example")).email == "boss@corp.example"


async def test_the_address_is_reserved_before_the_account_exists(shared: Redis) -> None:
    """The address is reserved from the first start that names it, with or without a password."""
    users = Users(shared)
    assert await users.create_first_admin("boss@corp.example", None) == "reserved"
    with pytest.raises(EmailTaken):
        await users.register("boss@corp.example", "hash")
    assert await users.create_first_admin("boss@corp.example", "hash") == "created"


async def test_an_account_that_was_there_before_is_not_promoted(shared: Redis) -> None:
    """The account keeps its address, its password and no rights; the command line can promote it."""
    users = Users(shared)
    stranger = await users.register("boss@corp.example", "hash of a stranger")
    assert await users.create_first_admin("boss@corp.example", "hash") == "taken"
    assert await users.find(stranger.id) == stranger
    assert await users.first_admin_email() is None
    assert await users.set_admin("boss@corp.example", is_admin=True) is True
    assert await users.create_first_admin("boss@corp.example", "hash") == "adopted"


async def test_what_administrators_do_is_in_the_audit_log(shared: Redis) -> None:
    """An entry has the ids of both accounts, never an address or a password."""
    users = Users(shared)
    first = await administrator(users)
    second = await promoted(users, "second@example.com")
    await users.change_access(second.id, {"is_active": False, "paid_access": True}, actor=first, source="192.0.2.1")
    assert await users.set_admin(second.email, is_admin=False) is True
    assert await users.set_admin(second.email, is_admin=False) is False
    assert [entry for _, entry in await shared.xrange(keys.AUDIT)] == [
        {"event": "first administrator recorded", "user": first.id, "actor": "settings"},
        {"event": "administrator promoted", "user": second.id, "actor": "cli"},
        {
            **{"event": "access changed", "user": second.id, "actor": first.id, "source": "192.0.2.1"},
            **{"is_active": "0", "paid_access": "1"},
        },
        {"event": "administrator demoted", "user": second.id, "actor": "cli"},
    ]


async def administrator(users: Users) -> User:
    """The first administrator."""
    await users.create_first_admin("first@example.com", "hash")
    user = await users.find_by_email("first@example.com")
    assert user is not None
    return user


async def promoted(users: Users, email: str) -> User:
    """An account that the command line made an administrator."""
    await users.register(email, "hash")
    assert await users.set_admin(email, is_admin=True)
    user = await users.find_by_email(email)
    assert user is not None
    return user


async def test_redis_away_is_unavailable() -> None:
    """An account that cannot be read is not an absent account."""
    users = Users(Redis(host="127.0.0.1", port=1, retry=Retry(NoBackoff(), 0)))
    for action in (users.find("x"), users.find_by_email("a@example.com"), users.register("a@example.com", "hash")):
        with pytest.raises(Unavailable):
            await action


async def test_a_renewed_hash_undoes_no_change_of_the_password(shared: Redis) -> None:
    """Somebody logged in with the former password while it was changed."""
    users = Users(shared)
    before = await users.register("a@example.com", "costs of last year")
    changed = await users.change_profile(before, password_hash="another password")
    await users.renew_hash(before, "former password, costs of today")
    assert (await users.find(before.id)) == changed
    await users.renew_hash(changed, "another password, costs of today")
    renewed = await users.find(before.id)
    assert renewed is not None
    assert (renewed.password_hash, renewed.generation) == ("another password, costs of today", changed.generation)
