"""Who uses the service.

    shared:messages:user:{id}      hash    id, email, password (a hash), paid_access, is_active, is_admin, generation
    shared:messages:email:{email}  string  the id of the user who has it

Both change in one MULTI, watched, so that an email belongs to one user at every moment. `generation` counts the
changes of the password; a session of an earlier one is over.
"""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from redis.asyncio import Redis
from redis.exceptions import RedisError, WatchError

from mesh.errors import Busy, Unavailable
from quart_app.messages.models import Profile

#: Tries of a change that others keep overtaking.
TRIES = 5


class EmailTaken(Exception):
    """Another user has this email."""


@dataclass(frozen=True, slots=True)
class User:
    """One user, as the store has it now."""

    id: str
    email: str
    password: str
    paid_access: bool
    is_active: bool
    is_admin: bool
    generation: int

    @classmethod
    def of(cls, stored: Mapping[Any, Any]) -> User | None:
        """From the hash; None where there is none."""
        if not stored:
            return None
        return cls(
            id=stored["id"],
            email=stored["email"],
            password=stored["password"],
            paid_access=stored["paid_access"] == "1",
            is_active=stored["is_active"] == "1",
            is_admin=stored["is_admin"] == "1",
            generation=int(stored["generation"]),
        )

    @property
    def profile(self) -> Profile:
        return Profile(
            id=self.id,
            email=self.email,
            paid_access=self.paid_access,
            is_active=self.is_active,
            is_admin=self.is_admin,
        )


@asynccontextmanager
async def redis_at_work() -> AsyncIterator[None]:
    """What Redis cannot do just now is Unavailable, never "no such user"."""
    try:
        yield
    except WatchError:
        raise
    except (RedisError, OSError) as error:
        raise Unavailable(f"the message service cannot reach its store just now ({type(error).__name__})") from None


def user_key(user_id: str) -> str:
    return f"shared:messages:user:{user_id}"


def _email_key(email: str) -> str:
    return f"shared:messages:email:{email}"


class Users:
    """All users. Every method raises Unavailable when Redis does not do its part."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis

    async def register(self, email: str, password: str, *, is_admin: bool = False) -> User:
        """A new user; `password` is a hash. Raises EmailTaken."""
        user_id = uuid.uuid4().hex
        stored: dict[Any, Any] = {
            "id": user_id,
            "email": email,
            "password": password,
            "paid_access": "0",
            "is_active": "1",
            "is_admin": "1" if is_admin else "0",
            "generation": "1",
        }
        async with redis_at_work(), self._redis.pipeline() as change:
            await change.watch(_email_key(email))
            if await change.get(_email_key(email)):
                raise EmailTaken
            change.multi()
            change.set(_email_key(email), user_id)
            change.hset(user_key(user_id), mapping=stored)
            try:
                await change.execute()
            except WatchError:
                raise EmailTaken from None
        return User.of(stored) or _impossible()

    async def find(self, user_id: str) -> User | None:
        async with redis_at_work():
            return User.of(await self._redis.hgetall(user_key(user_id)))

    async def find_by_email(self, email: str) -> User | None:
        async with redis_at_work():
            user_id = await self._redis.get(_email_key(email))
        return await self.find(str(user_id)) if user_id else None

    async def change_profile(self, user: User, *, email: str | None = None, password: str | None = None) -> User:
        """Another email, another password (a hash), or both. Raises EmailTaken."""
        for _ in range(TRIES):
            try:
                return await self._change_profile(user.id, email, password)
            except WatchError:
                continue
        raise Busy("this user is being changed by others; try again", retry_after=1)

    async def change_access(self, user_id: str, changes: Mapping[str, bool]) -> User | None:
        """Grant or take away. None: there is no such user."""
        if await self.find(user_id) is None:
            return None
        async with redis_at_work():
            await self._redis.hset(user_key(user_id), mapping={name: str(int(to)) for name, to in changes.items()})
        return await self.find(user_id)

    async def make_admin(self, user: User) -> None:
        async with redis_at_work():
            await self._redis.hset(user_key(user.id), "is_admin", "1")

    async def renew_hash(self, user: User, password: str) -> None:
        """The same password, hashed with today's costs: sessions stay."""
        async with redis_at_work():
            await self._redis.hset(user_key(user.id), "password", password)

    async def _change_profile(self, user_id: str, email: str | None, password: str | None) -> User:
        async with redis_at_work(), self._redis.pipeline() as change:
            watched = [user_key(user_id)] + ([_email_key(email)] if email else [])
            await change.watch(*watched)
            user = User.of(await change.hgetall(user_key(user_id))) or _impossible()
            moves = email is not None and email != user.email
            if moves and await change.get(_email_key(email or "")):
                raise EmailTaken
            change.multi()
            if email is not None and moves:
                change.delete(_email_key(user.email))
                change.set(_email_key(email), user_id)
                change.hset(user_key(user_id), "email", email)
            if password is not None:
                change.hset(user_key(user_id), "password", password)
                change.hincrby(user_key(user_id), "generation", 1)
            await change.execute()
        return await self.find(user_id) or _impossible()


def _impossible() -> User:
    raise Unavailable("a user that was there is gone; was the store emptied?")
