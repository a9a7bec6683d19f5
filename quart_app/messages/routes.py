"""The routes of the messages: parse, call, present."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from pydantic import TypeAdapter
from quart import Blueprint, Response, jsonify, request
from quart_schema import document_request, document_response, tag

from mesh.errors import MeshError, Unavailable
from quart_app.http.body import read_json
from quart_app.http.problems import Problem
from quart_app.messages.csrf import is_foreign
from quart_app.messages.identity import why_weak
from quart_app.messages.intake import Desk
from quart_app.messages.models import (
    AccessChange,
    Credentials,
    Delivered,
    Login,
    NewMessage,
    Profile,
    ProfileChange,
    QuotaShown,
)
from quart_app.messages.passwords import Passwords
from quart_app.messages.sessions import NotLoggedIn, Session, Sessions
from quart_app.messages.settings import MessageSettings
from quart_app.messages.users import (
    AccountChanged,
    EmailTaken,
    LastAdministrator,
    NoSuchAccount,
    NotAdministrator,
    User,
    Users,
)

_CREDENTIALS = TypeAdapter(Credentials)
_LOGIN = TypeAdapter(Login)
_PROFILE_CHANGE = TypeAdapter(ProfileChange)
_ACCESS_CHANGE = TypeAdapter(AccessChange)
_MESSAGE = TypeAdapter(NewMessage)
_KEY = re.compile(r"[\x21-\x7e]{1,255}")
_tagged = tag(["messages"])


@dataclass(frozen=True, slots=True)
class Office:
    """All that the routes need while the replica is a member."""

    users: Users
    sessions: Sessions
    passwords: Passwords
    desk: Desk


class MessageRoutes:
    """One method per route. `office` raises Unavailable while there is none."""

    def __init__(self, settings: MessageSettings, office: Callable[[], Office]) -> None:
        self._settings = settings
        self._office = office
        # A browser keeps a cookie of this name only for this host, over TLS, and for all paths.
        self._cookie = "__Host-session" if settings.cookie_secure else "session"
        self.blueprint = Blueprint("messages", __name__)
        self.blueprint.before_request(self._refuse_foreign)
        for path, method, view in (
            ("/auth/register", "POST", self.register),
            ("/auth/login", "POST", self.login),
            ("/auth/logout", "POST", self.logout),
            ("/users/me", "GET", self.me),
            ("/users/me", "PATCH", self.change_me),
            ("/users/<user_id>", "PATCH", self.change_access),
            ("/messages", "POST", self.send),
            ("/quota", "GET", self.quota),
        ):
            self.blueprint.add_url_rule(path, view.__name__, view, methods=[method])

    @_tagged
    @document_request(Credentials)
    @document_response(Profile, 201)
    async def register(self) -> tuple[Response, int]:
        """Create an account. 409: another account has this address."""
        office = self._office()
        given = await read_json(_CREDENTIALS)
        password = given.password.get_secret_value()
        _refuse_weak(password, given.email)
        if await office.users.find_by_email(given.email) is not None:
            raise _taken()
        user = await _unless_taken(office.users.register(given.email, await office.passwords.hash(password)))
        return _shown(user), 201

    @_tagged
    @document_request(Login)
    async def login(self) -> tuple[Response, int]:
        """Begin a session, kept in a cookie. 401: wrong; 429: wrong too often, wait."""
        office = self._office()
        given = await read_json(_LOGIN)
        email, password = given.email, given.password.get_secret_value()
        wait_s = await office.sessions.count_attempt(email)
        if wait_s is not None:
            raise Problem(429, "too many logins with this email; wait", retry_after=wait_s)
        user = await office.users.find_by_email(email)
        if not await office.passwords.matches(user.password if user else None, password):
            raise Problem(401, "no user has this email and this password")
        if user is None or not user.is_active:
            raise Problem(401, "no user has this email and this password")
        await office.sessions.forget_attempts(email)
        if office.passwords.is_outdated(user.password):
            await office.users.renew_hash(user, await office.passwords.hash(password))
        return self._with_cookie(Response(""), await office.sessions.begin(user)), 204

    @_tagged
    async def logout(self) -> tuple[Response, int]:
        """End the session, wherever its cookie is kept."""
        await self._office().sessions.end(await self._session())
        answer = Response("")
        answer.delete_cookie(
            self._cookie, path="/", secure=self._settings.cookie_secure, httponly=True, samesite="Strict"
        )
        return answer, 204

    @_tagged
    @document_response(Profile)
    async def me(self) -> Response:
        """Who is logged in."""
        return _shown((await self._session()).user)

    @_tagged
    @document_request(ProfileChange)
    @document_response(Profile)
    async def change_me(self) -> Response:
        """Change the own address or password, which ends all other sessions."""
        office, session = self._office(), await self._session()
        given = await read_json(_PROFILE_CHANGE)
        hashed = None
        if given.password is not None:
            password = given.password.get_secret_value()
            _refuse_weak(password, given.email or session.user.email)
            hashed = await office.passwords.hash(password)
        user = await _unless_taken(office.users.change_profile(session.user, email=given.email, password=hashed))
        return self._with_cookie(_shown(user), await office.sessions.begin(user))

    @_tagged
    @document_request(AccessChange)
    @document_response(Profile)
    async def change_access(self, user_id: str) -> Response:
        """Grant or revoke paid access, activate or deactivate an account; for administrators.

        409: the account is the only active administrator and cannot be deactivated.
        """
        office, session = self._office(), await self._session()
        if not session.user.is_admin:
            raise _not_administrator()
        given = await read_json(_ACCESS_CHANGE)
        changes = given.model_dump(exclude_none=True)
        try:
            user = await office.users.change_access(user_id, changes, by=session.user, source=request.remote_addr)
        except NotAdministrator:
            raise _not_administrator() from None
        except NoSuchAccount:
            raise Problem(404, "no account has this id") from None
        except LastAdministrator:
            raise Problem(
                409, "the only active administrator cannot be deactivated; promote another one first"
            ) from None
        return _shown(user)

    @_tagged
    @document_request(NewMessage)
    @document_response(Delivered)
    async def send(self) -> Response:
        """Have a message handled: by the free provider while it is open, by the paid one otherwise.

        With the header Idempotency-Key the same message can be sent again safely: it is answered again, not
        handled again. 403: free is closed, and paid is not for this user; Retry-After says until when.
        """
        office, session = self._office(), await self._session()
        key = _key()
        given = await read_json(_MESSAGE)
        if given.max_wait_ms > self._settings.max_wait_ms:
            message = f"at most {self._settings.max_wait_ms}"
            raise Problem(422, message, errors=[{"pointer": "/max_wait_ms", "message": message}])
        receipt = await office.desk.handle(session.user.id, given, key)
        shown = {"id": receipt.id, "provider": receipt.provider, "response": receipt.response}
        return jsonify(shown | {"quota": await _quota_if_it_can_be_read(office)})

    @_tagged
    @document_response(QuotaShown)
    async def quota(self) -> Response:
        """What is left of the free provider's allowance, one for all replicas."""
        office = self._office()
        await self._session()
        return jsonify(QuotaShown.of(await office.desk.dispatcher.quota.look()).model_dump())

    async def _refuse_foreign(self) -> None:
        if is_foreign(request.method, request.headers, self._settings.origins):
            raise Problem(403, "another site may not send this")

    async def _session(self) -> Session:
        try:
            return await self._office().sessions.check(request.cookies.get(self._cookie))
        except NotLoggedIn as error:
            raise Problem(401, str(error)) from None

    def _with_cookie(self, answer: Response, token: str) -> Response:
        answer.set_cookie(
            self._cookie,
            token,
            max_age=self._settings.session_s,
            path="/",
            secure=self._settings.cookie_secure,
            httponly=True,
            samesite="Strict",
        )
        answer.headers["Cache-Control"] = "no-store"
        return answer


async def _unless_taken(change: Awaitable[User]) -> User:
    try:
        return await change
    except EmailTaken:
        raise _taken() from None
    except AccountChanged:
        raise Problem(401, "this session is over; log in again") from None


def _refuse_weak(password: str, email: str) -> None:
    """Refuse a password that is common or made of the address."""
    if reason := why_weak(password, email):
        raise Problem(422, reason, errors=[{"pointer": "/password", "message": reason}])


async def _quota_if_it_can_be_read(office: Office) -> dict[str, Any] | None:
    """The message is handled, and maybe paid: nothing may turn that into an error any more."""
    try:
        return QuotaShown.of(await office.desk.dispatcher.quota.look()).model_dump()
    except MeshError:
        return None


def _taken() -> Problem:
    return Problem(409, "another account has this e-mail address")


def _not_administrator() -> Problem:
    return Problem(403, "only administrators may change accounts of others")


def _shown(user: User) -> Response:
    answer = jsonify(user.profile.model_dump())
    answer.headers["Cache-Control"] = "no-store"
    return answer


def _key() -> str | None:
    keys = request.headers.getlist("Idempotency-Key")
    if not keys:
        return None
    if len(keys) > 1 or not _KEY.fullmatch(keys[0]):
        raise Problem(422, "Idempotency-Key: one value of 1 to 255 visible ASCII characters")
    return str(keys[0])


def no_office() -> Office:
    """What there is before the replica is a member, and after."""
    raise Unavailable("this replica is not ready for messages")
