"""What people do with accounts: register, log in, change their own account, and administrate those of others."""

from __future__ import annotations

from collections.abc import Awaitable, Mapping
from dataclasses import dataclass

from pydantic import SecretStr

from mesh import Busy
from quart_app.http.problems import Problem
from quart_app.messages.models import Login, ProfileChange
from quart_app.messages.passwords import Passwords
from quart_app.messages.sessions import Session, Sessions
from quart_app.messages.users import (
    AccountChanged,
    EmailTaken,
    LastAdministrator,
    NoSuchAccount,
    NotAdministrator,
    User,
    Users,
)
from quart_app.security.audit import Audit
from quart_app.security.credentials import CredentialLimiter, fingerprint
from quart_app.security.identity import why_weak


@dataclass(frozen=True, slots=True)
class Requester:
    """Who sends a request: the network address, and the token of a device on which somebody may have logged in.

    Each is None if it is not known.
    """

    source: str | None
    device_token: str | None = None


@dataclass(frozen=True, slots=True)
class LoginTokens:
    """The tokens of a login. `device_token` is None if the client has a valid device token already."""

    session_token: str
    device_token: str | None


@dataclass(frozen=True, slots=True)
class Accounts:
    """All accounts, with the checks of passwords and limits, and the audit log. Methods raise Problem and MeshError."""

    users: Users
    sessions: Sessions
    passwords: Passwords
    limiter: CredentialLimiter
    audit: Audit

    async def register(self, email: str, password: SecretStr, requester: Requester) -> User:
        """Create an account without rights."""
        # The type of the body has checked the password, but did not know the address. This check compares the two.
        _refuse_weak(password, email)
        await self.limiter.admit_registration(requester.source)
        # `users.register` checks this again. The look here saves the hash of a password in most cases.
        if await self.users.find_by_email(email) is not None:
            raise _email_taken_problem()
        password_hash = await self.passwords.hash(password.get_secret_value())
        user = await _with_problems_for_refusals(self.users.register(email, password_hash))
        # From now on the source is known to the account, so wrong passwords from elsewhere do not lock its user out.
        await self.limiter.remember(email, requester.source)
        await self.audit.record("account registered", user=user.id, source=requester.source)
        return user

    async def log_in(self, login: Login, requester: Requester) -> LoginTokens:
        """Begin a session. The 401 is the same for a wrong password, an unknown address and an inactive account."""
        user = await self.users.find_by_email(login.email)
        is_match = await self._check_password(user, login.email, login.password, requester)
        if user is None or not is_match:
            raise Problem(401, "no active account has this address and this password")
        if self.passwords.is_outdated(user.password_hash):
            await self.users.renew_hash(user, await self._hash(login.password))
        await self.audit.record("login", user=user.id, source=requester.source)
        return await self._begin_session(user, requester)

    async def log_out(self, session: Session, requester: Requester) -> None:
        """End a session on every replica."""
        await self.sessions.end(session)
        await self.audit.record("logout", user=session.user.id, source=requester.source)

    async def change_profile(
        self, session: Session, change: ProfileChange, requester: Requester
    ) -> tuple[User, LoginTokens]:
        """Change the user's own address or password. This ends all sessions of the user, so a new session begins."""
        user = session.user
        # Checked first, so that a weak new password costs no attempt.
        if change.password is not None:
            _refuse_weak(change.password, change.email or user.email)
        if not await self._check_password(user, user.email, change.current_password, requester):
            raise _field_problem("/current_password", "this is not the current password")
        password_hash = None if change.password is None else await self._hash(change.password)
        changed_user = await _with_problems_for_refusals(
            self.users.change_profile(user, email=change.email, password_hash=password_hash)
        )
        changed_fields = ", ".join(name for name in ("email", "password") if getattr(change, name) is not None)
        await self.audit.record("profile changed", user=user.id, source=requester.source, changed=changed_fields)
        return changed_user, await self._begin_session(changed_user, requester)

    async def change_access(
        self, session: Session, user_id: str, changes: Mapping[str, bool], requester: Requester
    ) -> User:
        """Change the rights of an account (`is_active`, `paid_access`). Only an administrator may do this."""
        try:
            return await self.users.change_access(user_id, changes, actor=session.user, source=requester.source)
        except NotAdministrator:
            await self.audit.record(
                "access change refused", user=user_id, actor=session.user.id, source=requester.source
            )
            raise Problem(403, "only administrators may change accounts of others") from None
        except NoSuchAccount:
            raise Problem(404, "no account has this id") from None
        except LastAdministrator:
            detail = "the only active administrator cannot be deactivated; promote another one first"
            raise Problem(409, detail) from None

    async def _hash(self, password: SecretStr) -> str:
        """Hash a password of a user who has just given the right one. Such a user is known, and goes before others."""
        return await self.passwords.hash(password.get_secret_value(), is_known=True)

    async def _begin_session(self, user: User, requester: Requester) -> LoginTokens:
        device_id = self.sessions.known_device_id(requester.device_token, user)
        session_token = await self.sessions.begin(user)
        return LoginTokens(session_token, None if device_id else await self.sessions.new_device_token(user))

    async def _check_password(self, user: User | None, email: str, password: SecretStr, requester: Requester) -> bool:
        """Return whether this is the password of an active account. Count and record the attempt.

        Raises TooManyAttempts before any hashing.
        """
        device_id = self.sessions.known_device_id(requester.device_token, user)
        attempt = await self.limiter.admit(email, requester.source, device_id)
        try:
            password_hash = None if user is None else user.password_hash
            is_match = await self.passwords.matches(
                password_hash, password.get_secret_value(), is_known=attempt.is_known
            )
        except Busy:
            # No password was compared, so the attempt must not count.
            await self.limiter.refund(attempt)
            raise
        if user is not None and is_match and user.is_active:
            # The right password costs no attempt, and makes the source known to the account.
            await self.limiter.excuse(attempt)
            return True
        audit_facts = {
            "user": None if user is None else user.id,
            "account": fingerprint(email),
            "source": requester.source,
        }
        await self.audit.record("login failed", **audit_facts)
        # A counter allowed no more than this attempt: further ones are refused until its window ends.
        if attempt.is_last:
            await self.audit.record("login locked", **audit_facts)
        return False


async def _with_problems_for_refusals(change: Awaitable[User]) -> User:
    """Await a change of an account, and raise Problem in place of EmailTaken and AccountChanged."""
    try:
        return await change
    except EmailTaken:
        raise _email_taken_problem() from None
    except AccountChanged:
        raise Problem(401, "this session is over; log in again") from None


def _refuse_weak(password: SecretStr, email: str) -> None:
    if reason := why_weak(password.get_secret_value(), email):
        raise _field_problem("/password", reason)


def _field_problem(pointer: str, detail: str) -> Problem:
    return Problem(422, detail, errors=[{"pointer": pointer, "message": detail}])


def _email_taken_problem() -> Problem:
    return Problem(409, "another account has this e-mail address")
