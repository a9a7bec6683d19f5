"""The accounts of the message service. In the code, a `User` is one account as it was read.

    shared:messages:user:{id}        hash    id, email, password (a hash), paid_access, is_active, is_admin, generation
    shared:messages:email:{email}    string  the id of the account that has this address
    shared:messages:first-admin      hash    id and email of the administrator that the settings named; the address is
                                             reserved for this one account
    shared:messages:administrators   set     ids of the active administrators

Every change is one atomic script. So an address never belongs to two accounts, whichever replicas make the changes.
A change of the address or password raises `generation`, and so does a deactivation. Sessions of earlier generations are
over.
"""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Literal

from redis.asyncio import Redis
from redis.exceptions import RedisError

from mesh import Busy, Script, Unavailable, failures, keys
from quart_app.messages.models import Profile
from quart_app.security import audit

#: Two keys of Redis; see above.
FIRST_ADMIN = "shared:messages:first-admin"
ADMINISTRATORS = "shared:messages:administrators"
#: The scripts that change accounts, by the names of their files.
SCRIPTS = {
    name: Script.beside(__file__, f"{name}.lua")
    for name in ("register", "change_profile", "change_access", "first_admin", "set_admin", "renew_hash")
}


class EmailTaken(Exception):
    """Another account has this address, or the address is reserved for the first administrator."""


class AccountChanged(Exception):
    """Somebody else changed the account after the caller read it."""


class NotAdministrator(Exception):
    """The account that asks for a change is not an active administrator at that moment."""


class LastAdministrator(Exception):
    """The account is the only active administrator."""


class NoSuchAccount(Exception):
    """No account has this id or address."""


@dataclass(frozen=True, slots=True)
class User:
    """One account as it was at the moment of reading."""

    id: str
    email: str
    password_hash: str
    paid_access: bool
    is_active: bool
    is_admin: bool
    generation: int

    @classmethod
    def of(cls, stored: Mapping[Any, Any]) -> User | None:
        """Return the account that a hash in Redis holds, or None if the hash is empty."""
        if not stored:
            return None
        return cls(
            id=stored["id"],
            email=stored["email"],
            password_hash=stored["password"],
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
async def translated_redis_errors() -> AsyncIterator[None]:
    """Raise Busy if Redis is full, and Unavailable for any other failure of Redis.

    So a failure never looks like an absent account.
    """
    try:
        yield
    except (RedisError, OSError) as error:
        if isinstance(busy := failures.translate(error), Busy):
            raise busy from None
        raise Unavailable(f"the message service cannot reach its store ({type(error).__name__}); try again") from None


def user_key(user_id: str) -> str:
    return f"shared:messages:user:{user_id}"


def _email_key(email: str) -> str:
    return f"shared:messages:email:{email}"


class Users:
    """All accounts. Every method raises Unavailable when Redis does not answer.

    Callers pass addresses in normal form (`normal_email`).
    """

    def __init__(self, redis: Redis) -> None:
        self._redis = redis

    async def register(self, email: str, password_hash: str) -> User:
        """Create an account without rights. Raises EmailTaken."""
        new_account = _new_account(email, password_hash, is_admin=False)
        redis_keys = [_email_key(email), user_key(new_account["id"]), FIRST_ADMIN]
        if (
            await self._run_script("register", redis_keys, new_account["id"], email, *_flattened(new_account))
            == "taken"
        ):
            raise EmailTaken
        # `User.of` never returns None here, because the fields are not empty. The call narrows the type.
        return _must_be_stored(User.of(new_account))

    async def find(self, user_id: str) -> User | None:
        """Return the account with this id, or None."""
        async with translated_redis_errors():
            return User.of(await self._redis.hgetall(user_key(user_id)))

    async def find_by_email(self, email: str) -> User | None:
        """Return the account with this address, or None."""
        async with translated_redis_errors():
            user_id = await self._redis.get(_email_key(email))
        return await self.find(str(user_id)) if user_id else None

    async def change_profile(self, user: User, *, email: str | None = None, password_hash: str | None = None) -> User:
        """Change the address, the password, or both. Raises EmailTaken, AccountChanged."""
        redis_keys = [user_key(user.id), _email_key(user.email), _email_key(email or user.email), FIRST_ADMIN]
        # The script changes nothing if the account has another generation than the one that the caller has read. An
        # address or a hash that is "" stays as it is.
        outcome = await self._run_script(
            "change_profile", redis_keys, user.id, user.generation, email or "", password_hash or ""
        )
        if outcome == "taken":
            raise EmailTaken
        if outcome == "changed":
            raise AccountChanged
        return _must_be_stored(await self.find(user.id))

    async def change_access(
        self, user_id: str, changes: Mapping[str, bool], *, actor: User, source: str | None
    ) -> User:
        """Change `is_active`, `paid_access` or both, and write an audit entry. `actor` is the administrator who asks.

        `source` is the administrator's network address, or None if it is not known.
        Raises NoSuchAccount, NotAdministrator, LastAdministrator.
        """
        new_flags = {name: str(int(is_set)) for name, is_set in changes.items()}
        facts = {"user": user_id, "actor": actor.id, "source": source, **new_flags}
        audit_entry = audit.entry_words("access changed", **facts)
        redis_keys = [user_key(user_id), user_key(actor.id), ADMINISTRATORS, keys.AUDIT]
        # The script leaves a flag unchanged if its new value is "".
        arguments = [user_id, actor.id, new_flags.get("is_active", ""), new_flags.get("paid_access", "")]
        _raise_if_refused(
            await self._run_script("change_access", redis_keys, *arguments, keys.AUDIT_KEPT, *audit_entry)
        )
        # The script has added the entry to the audit stream. The log gets it here.
        audit.say("access changed", **facts)
        return _must_be_stored(await self.find(user_id))

    async def set_admin(self, email: str, *, is_admin: bool) -> bool:
        """Make an account an administrator, or end that. Return False if nothing had to be changed.

        Only the commands `mesh admin promote` and `mesh admin demote` call this.
        Raises NoSuchAccount, LastAdministrator.
        """
        user = await self.find_by_email(email)
        if user is None:
            raise NoSuchAccount
        audit_entry = audit.entry_words(
            "administrator promoted" if is_admin else "administrator demoted", user=user.id, actor="cli"
        )
        redis_keys = [user_key(user.id), ADMINISTRATORS, keys.AUDIT]
        outcome = await self._run_script("set_admin", redis_keys, user.id, int(is_admin), keys.AUDIT_KEPT, *audit_entry)
        _raise_if_refused(outcome)
        return outcome == "done"

    async def first_admin_email(self) -> str | None:
        """Return the address under which the first administrator was recorded, or None if none was recorded yet."""
        async with translated_redis_errors():
            stored = await self._redis.hgetall(FIRST_ADMIN)
        # Without an id, the address is only reserved, and no administrator has been recorded yet.
        return str(stored["email"]) if "id" in stored else None

    async def create_first_admin(
        self, email: str, password_hash: str | None
    ) -> Literal["created", "adopted", "reserved", "taken", "recorded"]:
        """Create the first administrator, unless one was created before. first_admin.lua explains the outcomes.

        If the hash is None, the address is only reserved. An existing account with this address never becomes an
        administrator.
        """
        present_owner = await self.find_by_email(email)
        new_account = _new_account(email, password_hash or "", is_admin=True)
        # An administrator who already has this address is recorded as the first one.
        user_id = present_owner.id if present_owner is not None and present_owner.is_admin else new_account["id"]
        audit_entry = audit.entry_words("first administrator recorded", user=user_id, actor="settings")
        redis_keys = [FIRST_ADMIN, _email_key(email), user_key(user_id), ADMINISTRATORS, keys.AUDIT]
        fields = _flattened(new_account) if password_hash is not None else []
        # The script needs the number of words in the audit entry, because the fields of the account follow them.
        outcome: Any = await self._run_script(
            "first_admin", redis_keys, user_id, email, keys.AUDIT_KEPT, len(audit_entry), *audit_entry, *fields
        )
        # The script returns only the words of this method's type.
        return outcome  # type: ignore[no-any-return]

    async def renew_hash(self, user: User, new_hash: str) -> None:
        """Replace the hash by a new one of the same password, unless the password was changed meanwhile.

        No session ends.
        """
        await self._run_script("renew_hash", [user_key(user.id)], user.password_hash, new_hash)

    async def _run_script(self, name: str, redis_keys: list[str], *arguments: str | int) -> str:
        async with translated_redis_errors():
            return str(await SCRIPTS[name].run(self._redis, redis_keys, *arguments))


def _new_account(email: str, password_hash: str, *, is_admin: bool) -> dict[str, str]:
    """Return the fields of the hash of a new account."""
    return {
        "id": uuid.uuid4().hex,
        "email": email,
        "password": password_hash,
        "paid_access": "0",
        "is_active": "1",
        "is_admin": str(int(is_admin)),
        "generation": "1",
    }


def _flattened(account: Mapping[str, str]) -> list[str]:
    """Return the fields of an account, each followed by its value, as the scripts take them."""
    return [text for item in account.items() for text in item]


def _raise_if_refused(outcome: str) -> None:
    """Raise the error for an outcome of a script that changes rights. "done" and "unchanged" are no errors."""
    match outcome:
        case "absent":
            raise NoSuchAccount
        case "forbidden":
            raise NotAdministrator
        case "last":
            raise LastAdministrator


def _must_be_stored(user: User | None) -> User:
    """Return an account that has just been written. Raises Unavailable if it is gone."""
    if user is None:
        raise Unavailable("the account is gone from the store; was the store emptied?")
    return user
