"""The routes of the message service: parse, call, present."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from pydantic import TypeAdapter
from quart import Blueprint, Response, jsonify, request
from quart_schema import document_headers, document_request, document_response, security_scheme, tag

from mesh import MeshError, Unavailable
from quart_app.http.body import read_json
from quart_app.http.openapi import SESSION
from quart_app.http.problems import Problem
from quart_app.messages.accounts import Accounts, LoginTokens, Requester
from quart_app.messages.intake import MessageIntake
from quart_app.messages.models import (
    AccessChange,
    Delivered,
    IdempotencyKeyHeader,
    Login,
    NewMessage,
    Profile,
    ProfileChange,
    QuotaShown,
    Registration,
)
from quart_app.messages.sessions import DEVICE_KNOWN_S, NotLoggedIn, Session
from quart_app.messages.settings import MessageSettings
from quart_app.messages.users import User
from quart_app.security.audit import Audit
from quart_app.security.csrf import is_foreign

_REGISTRATION_BODY = TypeAdapter(Registration)
_LOGIN_BODY = TypeAdapter(Login)
_PROFILE_CHANGE_BODY = TypeAdapter(ProfileChange)
_ACCESS_CHANGE_BODY = TypeAdapter(AccessChange)
_MESSAGE_BODY = TypeAdapter(NewMessage)
_VALID_IDEMPOTENCY_KEY = re.compile(r"[\x21-\x7e]{1,255}")
_tagged = tag(["messages"])
#: Shows on the page /docs that a route needs a session. The methods check the session with `_logged_in_session`.
_documented_with_session = security_scheme([{SESSION: []}])
#: About how many bytes of Redis's memory a new account takes, and the idempotency key of a message with its answer.
#: These are estimates: too small a number lets Redis fill up, too large a one refuses requests early.
ACCOUNT_BYTES, MESSAGE_BYTES = 1200, 1000


@dataclass(frozen=True, slots=True)
class Backend:
    """What the routes need while the replica is a member of the mesh."""

    accounts: Accounts
    intake: MessageIntake
    audit: Audit
    #: called with the number of bytes that are about to be stored; counts them, or raises Busy if Redis has no room
    require_room: Callable[[int], None]


class MessageRoutes:
    """One method per route. `current_backend` raises Unavailable while the replica is not a member of the mesh."""

    def __init__(self, settings: MessageSettings, current_backend: Callable[[], Backend]) -> None:
        self._settings = settings
        self._current_backend = current_backend
        # A cookie with this prefix is safer: a browser accepts it only over TLS, and sends it only to the host that set
        # it.
        prefix = "__Host-" if settings.cookie_secure else ""
        self._session_cookie_name, self._device_cookie_name = f"{prefix}session", f"{prefix}device"
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
    @document_request(Registration)
    @document_response(Profile, 201)
    async def register(self) -> tuple[Response, int]:
        """Create an account. 409: another account has this address; 422: the password is too common."""
        backend = self._current_backend()
        accounts, registration = backend.accounts, await read_json(_REGISTRATION_BODY)
        backend.require_room(ACCOUNT_BYTES)
        return _profile_answer(
            await accounts.register(registration.email, registration.password, self._requester())
        ), 201

    @_tagged
    @document_request(Login)
    async def login(self) -> tuple[Response, int]:
        """Begin a session, kept in a cookie. 401: wrong address or password; 429: too many wrong passwords."""
        accounts = self._current_backend().accounts
        return self._with_login_cookies(
            Response(""), await accounts.log_in(await read_json(_LOGIN_BODY), self._requester())
        ), 204

    @_tagged
    @_documented_with_session
    async def logout(self) -> tuple[Response, int]:
        """End the session, on every replica."""
        await self._current_backend().accounts.log_out(await self._logged_in_session(), self._requester())
        answer = Response("")
        # The cookie of the device stays, so that the device keeps login attempts of its own.
        answer.delete_cookie(
            self._session_cookie_name, path="/", secure=self._settings.cookie_secure, httponly=True, samesite="Strict"
        )
        return answer, 204

    @_tagged
    @_documented_with_session
    @document_response(Profile)
    async def me(self) -> Response:
        """Return the account that is logged in."""
        return _profile_answer((await self._logged_in_session()).user)

    @_tagged
    @_documented_with_session
    @document_request(ProfileChange)
    @document_response(Profile)
    async def change_me(self) -> Response:
        """Change your own address or password; this needs the current password. All other sessions end."""
        accounts, session = self._current_backend().accounts, await self._logged_in_session()
        change = await read_json(_PROFILE_CHANGE_BODY)
        user, tokens = await accounts.change_profile(session, change, self._requester())
        return self._with_login_cookies(_profile_answer(user), tokens)

    @_tagged
    @_documented_with_session
    @document_request(AccessChange)
    @document_response(Profile)
    async def change_access(self, user_id: str) -> Response:
        """Grant or revoke paid access, activate or deactivate an account; for administrators.

        409: the account is the only active administrator and cannot be deactivated.
        """
        accounts, session = self._current_backend().accounts, await self._logged_in_session()
        changes = (await read_json(_ACCESS_CHANGE_BODY)).model_dump(exclude_none=True)
        return _profile_answer(await accounts.change_access(session, user_id, changes, self._requester()))

    @_tagged
    @_documented_with_session
    @document_headers(IdempotencyKeyHeader)
    @document_request(NewMessage)
    @document_response(Delivered)
    async def send(self) -> Response:
        """Deliver a message: through the free provider while it is open, otherwise through the paid one.

        With the header Idempotency-Key the same message can safely be sent again. It then gets the same answer and is
        not delivered again. 403: the free provider is closed and this account has no paid access. Retry-After says
        when the free provider opens.
        """
        backend, session = self._current_backend(), await self._logged_in_session()
        # A message without an idempotency key is counted, too, although Redis keeps nothing of it.
        backend.require_room(MESSAGE_BYTES)
        idempotency_key = _read_idempotency_key()
        new_message = await read_json(_MESSAGE_BODY)
        if new_message.max_wait_ms > self._settings.max_wait_ms:
            detail = f"at most {self._settings.max_wait_ms}"
            raise Problem(422, detail, errors=[{"pointer": "/max_wait_ms", "message": detail}])
        receipt = await backend.intake.handle(session.user.id, new_message, idempotency_key)
        delivered = {"id": receipt.id, "provider": receipt.provider, "response": receipt.response}
        return jsonify(delivered | {"quota": await _allowance_or_none(backend)})

    @_tagged
    @_documented_with_session
    @document_response(QuotaShown)
    async def quota(self) -> Response:
        """Return what is left of the free provider's allowance, which all replicas share."""
        backend = self._current_backend()
        await self._logged_in_session()
        return jsonify(QuotaShown.of(await backend.intake.delivery.quota.look()).model_dump())

    async def _refuse_foreign(self) -> None:
        """Refuse a request that a page of another site sends with this site's cookies. Raises Problem."""
        if is_foreign(request.method, request.headers, self._settings.origins):
            # A client can send an Origin of any length, so the audit keeps only its beginning.
            facts = {"origin": request.headers.get("Origin", "")[:200], "source": request.remote_addr}
            await self._current_backend().audit.record("origin refused", **facts, path=request.path)
            raise Problem(403, "this origin may not use the cookies of this site; see MESSAGES_ALLOWED_ORIGINS")

    async def _logged_in_session(self) -> Session:
        try:
            return await self._current_backend().accounts.sessions.check(request.cookies.get(self._session_cookie_name))
        except NotLoggedIn as error:
            raise Problem(401, str(error)) from None

    def _requester(self) -> Requester:
        return Requester(request.remote_addr, request.cookies.get(self._device_cookie_name))

    def _with_login_cookies(self, answer: Response, tokens: LoginTokens) -> Response:
        self._set_cookie(answer, self._session_cookie_name, tokens.session_token, self._settings.session_s)
        if tokens.device_token is not None:
            self._set_cookie(answer, self._device_cookie_name, tokens.device_token, DEVICE_KNOWN_S)
        # The answer has the tokens, so no proxy may store it.
        answer.headers["Cache-Control"] = "no-store"
        return answer

    def _set_cookie(self, answer: Response, name: str, token: str, max_age_s: int) -> None:
        secure = self._settings.cookie_secure
        answer.set_cookie(name, token, max_age=max_age_s, path="/", secure=secure, httponly=True, samesite="Strict")


async def _allowance_or_none(backend: Backend) -> dict[str, Any] | None:
    """Return the allowance, or None if it cannot be read.

    The message is already delivered and perhaps paid for, so a failure here must not become an error for the client.
    """
    try:
        return QuotaShown.of(await backend.intake.delivery.quota.look()).model_dump()
    except MeshError:
        return None


def _profile_answer(user: User) -> Response:
    answer = jsonify(user.profile.model_dump())
    # The answer is for this user only, so no proxy may store it.
    answer.headers["Cache-Control"] = "no-store"
    return answer


def _read_idempotency_key() -> str | None:
    """Return the idempotency key of the present request, or None if it has none. Raises Problem for an invalid one."""
    values = request.headers.getlist("Idempotency-Key")
    if not values:
        return None
    if len(values) > 1 or not _VALID_IDEMPOTENCY_KEY.fullmatch(values[0]):
        raise Problem(422, "Idempotency-Key: one value of 1 to 255 visible ASCII characters")
    return str(values[0])


def raise_not_ready() -> Backend:
    """Raise Unavailable while the replica is not a member of the mesh. The return type is for `backend or …`."""
    raise Unavailable("this replica is not ready for messages; try again")
