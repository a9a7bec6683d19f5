"""The routes of one replica, with real providers on real ports."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Any

import pytest
import structlog
from quart import Quart, request
from quart.typing import TestClientProtocol as Client
from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from mesh import keys
from mesh.errors import Busy, Unavailable
from mesh.quota.quota import Quota
from tests.support.server import Server, ServerProgram, server_programs

if TYPE_CHECKING:
    from tests.support.messages import Listening, Providers, Running, Start

ANN = {"email": "Ann@Example.com", "password": "correct horse"}
#: What a change of the own account must say, too.
CURRENT = {"current_password": "correct horse"}


async def answer(sent: Any) -> tuple[int, Any]:
    response = await sent
    return response.status_code, await response.get_json(silent=True)


# users and sessions


async def test_a_user_registers_logs_in_and_out(running: Running) -> None:
    """The session is in a cookie and is over after the logout."""
    client = running.client()
    status, made = await answer(client.post("/auth/register", json=ANN))
    assert status == 201
    assert made == {
        "id": made["id"],
        "email": "ann@example.com",
        "paid_access": False,
        "is_active": True,
        "is_admin": False,
    }
    assert (await answer(client.get("/users/me")))[0] == 401
    assert (await answer(client.post("/auth/login", json=ANN)))[0] == 204
    assert await answer(client.get("/users/me")) == (200, made)
    assert (await answer(client.post("/auth/logout")))[0] == 204
    assert (await answer(client.get("/users/me")))[0] == 401
    assert (await answer(client.post("/auth/logout")))[0] == 401


async def test_the_cookie_is_kept_from_scripts_from_others_and_from_plain_http(shared: Redis, start: Start) -> None:
    """HttpOnly, Secure, SameSite, for this host only; caches do not store the answer."""
    async with start(shared, cookie_secure=True) as running:
        client = running.client()
        await client.post("/auth/register", json=ANN)
        response = await client.post("/auth/login", json=ANN)
        name, _, rest = response.headers["Set-Cookie"].partition("=")
        attributes = {each.strip().lower() for each in rest.split(";")[1:]}
        assert name == "__Host-session"
        assert {"httponly", "secure", "samesite=strict", "path=/", "max-age=3600"} <= attributes
        assert not any(each.startswith("domain") for each in attributes)
        assert response.headers["Cache-Control"] == "no-store"


async def test_an_email_registers_once(running: Running) -> None:
    """Upper case makes no difference."""
    assert (await answer(running.client().post("/auth/register", json=ANN)))[0] == 201
    again = ANN | {"email": "ANN@example.com"}
    assert (await answer(running.client().post("/auth/register", json=again)))[0] == 409


NO_CREDENTIALS = [
    ({"email": "no email", "password": "correct horse"}, "/email"),
    ({"email": "a@example.com", "password": "short"}, "/password"),
    ({"email": "a@example.com", "password": "x" * 257}, "/password"),
    ({"email": "a@example.com", "password": "\ufdfa" * 100}, "/password"),
    ({"email": "a@example.com", "password": "correct horse", "paid_access": True}, "/paid_access"),
    ({"email": "a@example.com", "password": "correct horse", "is_admin": True}, "/is_admin"),
    ({"email": "a@example.com", "password": 12345678}, "/password"),
    ({"email": "a@example.com", "password": "Password1!"}, "/password"),
    ({"email": "ann.ames@example.com", "password": "Ann.Ames@example.com"}, "/password"),
    ({"email": "ann.ames@example.com", "password": "ann.ames2026"}, "/password"),
    ({"password": "correct horse"}, "/email"),
]


async def test_an_invalid_registration_is_422(running: Running) -> None:
    """422 with a pointer, also for rights that a user tries to take."""
    for body, pointer in NO_CREDENTIALS:
        status, problem = await answer(running.client().post("/auth/register", json=body))
        assert (status, problem["errors"][0]["pointer"]) == (422, pointer), body


async def test_a_wrong_login_does_not_say_what_is_wrong(running: Running) -> None:
    """The answer is the same for a wrong password, an unknown address and an invalid address."""
    await running.client().post("/auth/register", json=ANN)
    for wrong in ({"password": "wrong horse"}, {"email": "bob@example.com"}, {"email": "no email"}):
        status, problem = await answer(running.client().post("/auth/login", json=ANN | wrong))
        assert (status, problem["detail"]) == (401, "no active account has this address and this password")


async def test_guessing_is_slowed_down(shared: Redis, start: Start) -> None:
    """429 with Retry-After, even with the right password; an earlier success starts the count anew."""
    async with start(shared, login_tries=3) as running:
        client = running.client()
        await client.post("/auth/register", json=ANN)
        wrong = ANN | {"password": "wrong horse"}
        tries = [wrong, wrong, ANN, wrong, wrong, wrong, ANN]
        answers = [await client.post("/auth/login", json=each) for each in tries]
        assert [each.status_code for each in answers] == [401, 401, 204, 401, 401, 401, 429]
        assert int(answers[-1].headers["Retry-After"]) > 0


def at(source: str) -> dict[str, Any]:
    """A request from this address."""
    return {"scope_base": {"client": (source, 1)}}


async def test_guesses_do_not_shut_the_owner_out(running: Running) -> None:
    """The owner logs in from a known address, on a known device, and from any other address."""
    body = {"email": "ann@example.com", "password": "correct horse"}
    device = running.client()
    await device.post("/auth/register", json=body, **at("198.51.100.1"))
    assert (await device.post("/auth/login", json=body, **at("192.0.2.1"))).status_code == 204
    wrong = body | {"password": "wrong horse"}
    guesses = [await running.client().post("/auth/login", json=wrong, **at("203.0.113.9")) for _ in range(15)]
    assert [each.status_code for each in guesses] == [401] * 10 + [429] * 5
    assert int(guesses[-1].headers["Retry-After"]) > 0
    for client, source in ((running.client(), "192.0.2.1"), (device, "203.0.113.9"), (running.client(), "192.0.2.2")):
        assert (await client.post("/auth/login", json=body, **at(source))).status_code == 204, source
    assert (await running.client().post("/auth/login", json=body, **at("203.0.113.9"))).status_code == 429


async def test_one_password_is_not_tried_on_every_account(running: Running) -> None:
    """300 addresses from one source: most of them are refused before anything is hashed."""
    bodies = [{"email": f"user-{number}@example.com", "password": "letmein"} for number in range(300)]
    answers = [await running.client().post("/auth/login", json=body, **at("203.0.113.9")) for body in bodies]
    assert [each.status_code for each in answers] == [401] * 50 + [429] * 250


async def test_a_flood_of_logins_does_not_starve_the_owner(running: Running) -> None:
    """300 invented addresses at once, from the same source and from many: the known client logs in at once."""
    client = await running.user("ann@example.com")
    body = {"email": "ann@example.com", "password": "correct horse"}
    for many in (False, True):
        flood = [
            asyncio.create_task(
                running.client().post(
                    "/auth/login",
                    json={"email": f"invented-{number}-{many}@example.com", "password": "letmein"},
                    **at(f"203.0.113.{number % 200 if many else 9}"),
                )
            )
            for number in range(60)
        ]
        await asyncio.sleep(0.05)
        began = time.monotonic()
        assert (await client.post("/auth/login", json=body, **at("203.0.113.9"))).status_code == 204
        assert time.monotonic() - began < 5
        assert {(await each).status_code for each in flood} <= {401, 429, 503}


async def test_what_happened_is_in_the_audit_log(running: Running, shared: Redis) -> None:
    """Registrations, logins, failures, changes, refused origins; no address of a person, no secret."""
    body = {"email": "ann@example.com", "password": "correct horse"}
    client = running.client()
    made = await (await client.post("/auth/register", json=body, **at("192.0.2.1"))).get_json()
    await client.post("/auth/login", json=body | {"password": "wrong horse"}, **at("192.0.2.1"))
    await client.post("/auth/login", json=body, **at("192.0.2.1"))
    await client.patch("/users/me", json={"password": "battery staple"} | CURRENT, **at("192.0.2.1"))
    await client.patch(f"/users/{made['id']}", json={"paid_access": True}, **at("192.0.2.1"))
    await client.post("/auth/logout", headers={"Origin": "https://evil.example"}, **at("192.0.2.1"))
    await client.post("/auth/logout", **at("192.0.2.1"))
    entries = [entry for _, entry in await shared.xrange(keys.AUDIT)]
    assert [entry["event"] for entry in entries] == [
        "account registered", "login failed", "login", "profile changed", "access change refused", "origin refused",
        "logout",
    ]  # fmt: skip
    assert {entry["source"] for entry in entries} == {"192.0.2.1"}
    assert {entry.get("user") for entry in entries} == {made["id"], None}
    for secret in ("ann@", "horse", "staple", "eyJ"):
        assert secret not in str(entries)


async def test_users_change_their_own_address_and_password_only(running: Running, shared: Redis) -> None:
    """An address that is taken is a conflict; a field other than email and password is an error."""
    client = await running.user("a@example.com")
    await running.user("b@example.com")
    change = {"email": "c@example.com"} | CURRENT
    assert (await answer(client.patch("/users/me", json=change)))[1]["email"] == "c@example.com"
    assert (await answer(client.patch("/users/me", json={"email": "B@example.com"} | CURRENT)))[0] == 409
    for wrong in ({}, {"paid_access": True}, {"is_admin": True}, {"email": None}, {"email": "x"}):
        assert (await answer(client.patch("/users/me", json=wrong | CURRENT)))[0] == 422
    assert (await answer(client.get("/users/me")))[1]["paid_access"] is False


async def test_a_new_password_ends_the_other_sessions(running: Running) -> None:
    """The session that changed it goes on."""
    client, body = await running.user("a@example.com"), {"email": "a@example.com", "password": "correct horse"}
    other = running.client()
    await other.post("/auth/login", json=body)
    assert (await answer(client.patch("/users/me", json={"password": "battery staple"} | CURRENT)))[0] == 200
    assert (await answer(client.get("/users/me")))[0] == 200
    assert (await answer(other.get("/users/me")))[0] == 401
    assert (await answer(other.post("/auth/login", json=body)))[0] == 401
    assert (await answer(other.post("/auth/login", json=body | {"password": "battery staple"})))[0] == 204


async def test_a_new_address_ends_the_other_sessions(running: Running) -> None:
    """A stolen session does not survive it, and the new address logs in, in any spelling."""
    client, stolen = await running.user("ann@example.com"), running.client()
    await stolen.post("/auth/login", json={"email": "ann@example.com", "password": "correct horse"})
    change = {"email": "Ann@xn--bcher-kva.example"} | CURRENT
    assert (await answer(client.patch("/users/me", json=change)))[1]["email"] == "ann@bücher.example"
    assert (await answer(client.get("/users/me")))[0] == 200
    assert (await answer(stolen.get("/users/me")))[0] == 401
    for spelling in ("ann@xn--bcher-kva.example", "ANN@BÜCHER.example"):
        login = {"email": spelling, "password": "correct horse"}
        assert (await answer(running.client().post("/auth/login", json=login)))[0] == 204


async def test_a_change_of_the_account_needs_the_current_password(running: Running) -> None:
    """A session alone is not enough; guessing is limited as it is for logins."""
    client = await running.user("ann@example.com")
    for change in ({"email": "new@example.com"}, {"password": "battery staple"}):
        for proof in ({}, {"current_password": "wrong horse"}, {"current_password": ""}):
            status, problem = await answer(client.patch("/users/me", json=change | proof))
            assert (status, problem["errors"][0]["pointer"]) == (422, "/current_password")
    guesses = [await client.patch("/users/me", json={"current_password": f"guess {n}", **change}) for n in range(20)]
    assert {each.status_code for each in guesses} == {422, 429}
    assert (await answer(client.get("/users/me")))[1]["email"] == "ann@example.com"


async def test_only_administrators_change_others(running: Running, shared: Redis) -> None:
    """401, 403, 404, 422, then 200; a deactivated account loses its session at once."""
    ann = await running.user("ann@example.com")
    ann_id = (await answer(ann.get("/users/me")))[1]["id"]
    change = {"paid_access": True}
    assert (await answer(running.client().patch(f"/users/{ann_id}", json=change)))[0] == 401
    assert (await answer(ann.patch(f"/users/{ann_id}", json=change)))[0] == 403
    admin = await running.user("admin@example.com", shared, is_admin=True)
    assert (await answer(admin.patch("/users/nobody", json=change)))[0] == 404
    for wrong in ({}, {"paid_access": "yes"}, {"paid_access": None}, {"is_admin": True}):
        assert (await answer(admin.patch(f"/users/{ann_id}", json=wrong)))[0] == 422
    status, changed = await answer(admin.patch(f"/users/{ann_id}", json=change))
    assert (status, changed["paid_access"], changed["is_active"]) == (200, True, True)
    assert (await answer(admin.patch(f"/users/{ann_id}", json={"is_active": False})))[0] == 200
    assert (await answer(ann.get("/users/me")))[0] == 401
    login = {"email": "ann@example.com", "password": "correct horse"}
    assert (await answer(ann.post("/auth/login", json=login)))[0] == 401


async def test_the_first_administrator_comes_from_the_settings(shared: Redis, start: Start) -> None:
    """Three replicas create it once; a restart does not change the password."""
    settings = {"admin_email": "Root@example.com", "admin_password": "from a file"}
    login = {"email": "root@example.com", "password": "from a file"}
    async with AsyncExitStack() as stack:
        running = (await asyncio.gather(*(stack.enter_async_context(start(shared, **settings)) for _ in range(3))))[0]
        client = running.client()
        assert (await answer(client.post("/auth/login", json=login)))[0] == 204
        assert (await answer(client.get("/users/me")))[1]["is_admin"] is True
        change = {"password": "battery staple", "current_password": "from a file"}
        assert (await answer(client.patch("/users/me", json=change)))[0] == 200
    async with start(shared, **settings) as running:
        client = running.client()
        assert (await answer(client.post("/auth/login", json=login)))[0] == 401
        assert (await answer(client.post("/auth/login", json=login | {"password": "battery staple"})))[0] == 204


SPELLINGS = [
    "Boss@corp.example",
    "BOSS@Corp.Example",
    " boss@corp.example",
    "ｂｏｓｓ@corp.example",
    "boss@ｃｏｒｐ.example",
]


async def test_a_stranger_does_not_become_administrator(shared: Redis, start: Start) -> None:
    """An account that is older than the setting keeps its rights and its password, in every spelling."""
    stranger = {"email": "boss@corp.example", "password": "of a stranger"}
    async with start(shared) as running:
        assert (await answer(running.client().post("/auth/register", json=stranger)))[0] == 201
    for spelling in SPELLINGS:
        async with start(shared, admin_email=spelling, admin_password="of the operator") as running:
            client = running.client()
            assert (await answer(client.post("/auth/login", json=stranger)))[0] == 204
            assert (await answer(client.get("/users/me")))[1]["is_admin"] is False


async def test_nobody_takes_the_administrators_old_address(shared: Redis, start: Start) -> None:
    """Registering and changing the address fail in every spelling; a restart promotes nobody."""
    settings = {"admin_email": "Boss@corp.example", "admin_password": "of the operator"}
    async with start(shared, **settings) as running:
        stranger, admin = await running.user("stranger@example.com"), running.client()
        login = {"email": "boss@corp.example", "password": "of the operator"}
        assert (await answer(admin.post("/auth/login", json=login)))[0] == 204
        change = {"email": "new@corp.example", "current_password": "of the operator"}
        assert (await answer(admin.patch("/users/me", json=change)))[0] == 200
        for spelling in SPELLINGS:
            body = {"email": spelling, "password": "of a stranger"}
            assert (await answer(running.client().post("/auth/register", json=body)))[0] == 409
            assert (await answer(stranger.patch("/users/me", json={"email": spelling} | CURRENT)))[0] == 409
    async with start(shared, **settings) as running:
        stranger = running.client()
        await stranger.post("/auth/login", json={"email": "stranger@example.com", "password": "correct horse"})
        assert (await answer(stranger.get("/users/me")))[1]["is_admin"] is False
        assert (await answer(running.client().post("/auth/login", json=login)))[0] == 401
        login["email"] = "new@corp.example"
        assert (await answer(running.client().post("/auth/login", json=login)))[0] == 204


async def test_another_address_in_the_settings_changes_nothing(shared: Redis, start: Start) -> None:
    """The log says that the setting has no effect."""
    async with start(shared, admin_email="boss@corp.example", admin_password="of the operator"):
        pass
    with structlog.testing.capture_logs() as logged:
        async with start(shared, admin_email="new@corp.example", admin_password="of the operator") as running:
            login = {"email": "new@corp.example", "password": "of the operator"}
            assert (await answer(running.client().post("/auth/login", json=login)))[0] == 401
    warned = next(each["event"] for each in logged if each["log_level"] == "warning")
    assert warned.startswith("setting ignored")


async def test_the_last_administrator_cannot_be_deactivated(shared: Redis, start: Start) -> None:
    """409, and the answer says what to do."""
    settings = {"admin_email": "boss@corp.example", "admin_password": "of the operator"}
    async with start(shared, **settings) as running:
        admin = running.client()
        await admin.post("/auth/login", json={"email": "boss@corp.example", "password": "of the operator"})
        me = (await answer(admin.get("/users/me")))[1]["id"]
        status, problem = await answer(admin.patch(f"/users/{me}", json={"is_active": False}))
        assert (status, "promote another one first" in problem["detail"]) == (409, True)
        assert (await answer(admin.get("/users/me")))[0] == 200


async def test_a_deactivated_session_stays_over(running: Running, shared: Redis) -> None:
    """Activating the account again does not revive tokens from before."""
    ann, admin = await running.user("ann@example.com"), await running.user("root@example.com", shared, is_admin=True)
    ann_id = (await answer(ann.get("/users/me")))[1]["id"]
    for is_active in (False, True):
        assert (await answer(admin.patch(f"/users/{ann_id}", json={"is_active": is_active})))[0] == 200
    assert (await answer(ann.get("/users/me")))[0] == 401
    login = {"email": "ann@example.com", "password": "correct horse"}
    assert (await answer(ann.post("/auth/login", json=login)))[0] == 204


async def test_other_sites_are_refused(running: Running) -> None:
    """403 for an Origin that is not allowed."""
    client = await running.user("a@example.com")
    response = await client.post("/messages", json={"message": "m"}, headers={"Origin": "https://evil.example"})
    assert response.status_code == 403


# messages


async def send(client: Client, message: str, key: str | None = None, **more: Any) -> tuple[int, Any, Any]:
    headers = {"Idempotency-Key": key} if key is not None else {}
    response = await client.post("/messages", json={"message": message, **more}, headers=headers)
    return response.status_code, await response.get_json(silent=True), response.headers


async def test_free_then_paid_then_free(running: Running, shared: Redis, providers: Providers) -> None:
    """A whole window of the free provider, with the allowance in each answer."""
    client = await running.user("a@example.com", shared, paid_access=True)
    shown = [(await send(client, f"m{n}"))[1] for n in range(3)]
    assert [each["provider"] for each in shown] == ["free", "free", "paid"]
    assert [each["quota"]["remaining"] for each in shown] == [1, 0, 0]
    assert shown[0]["response"] == "handled by the free provider: m0"
    assert shown[0]["quota"]["blocked_until"] is None
    assert shown[2]["quota"]["blocked_until"].endswith("Z")
    assert 0 < shown[2]["quota"]["retry_after"] <= 1
    again = await send(client, "m3", max_wait_ms=2_000)
    assert again[1]["provider"] == "free"
    assert (providers.free.refused, providers.messages) == (0, ["m0", "m1", "m2", "m3"])
    assert running.metric("mesh_messages_delivered_total", provider="paid", reason="closed") == 1
    assert running.metric("mesh_messages_paid_avoidable_total") == 0


async def test_paid_access_is_read_from_the_store(running: Running, shared: Redis, providers: Providers) -> None:
    """Granting and revoking it takes effect during a session."""
    client = await running.user("a@example.com")
    user_id = (await answer(client.get("/users/me")))[1]["id"]
    for n in range(2):
        assert (await send(client, f"m{n}"))[0] == 200
    status, problem, headers = await send(client, "m2")
    assert (status, problem["status"]) == (403, 403)
    assert int(headers["Retry-After"]) >= 1
    await shared.hset(f"shared:messages:user:{user_id}", "paid_access", "1")
    assert (await send(client, "m3"))[1]["provider"] == "paid"
    await shared.hset(f"shared:messages:user:{user_id}", "paid_access", "0")
    assert (await send(client, "m4"))[0] == 403
    assert providers.messages == ["m0", "m1", "m3"]


async def test_messages_are_for_users(running: Running, providers: Providers) -> None:
    """Without a session, messages and the quota are 401."""
    assert (await send(running.client(), "m"))[0] == 401
    assert (await answer(running.client().get("/quota")))[0] == 401
    assert providers.messages == []


async def test_the_quota_is_shown(running: Running) -> None:
    """Limit, remaining requests, and when the provider opens."""
    client = await running.user("a@example.com")
    shown = {"limit": 2, "remaining": 2, "blocked_until": None, "retry_after": None}
    assert await answer(client.get("/quota")) == (200, shown)
    for n in range(2):
        await send(client, f"m{n}")
    closed = (await answer(client.get("/quota")))[1]
    assert (closed["remaining"], closed["blocked_until"] is not None) == (0, True)


NO_MESSAGES: list[tuple[Any, str]] = [
    ({"message": ""}, "/message"),
    ({"message": "x" * 10_001}, "/message"),
    ({"message": 1}, "/message"),
    ({}, "/message"),
    ({"message": "m", "max_wait_ms": -1}, "/max_wait_ms"),
    ({"message": "m", "max_wait_ms": 30_001}, "/max_wait_ms"),
    ({"message": "m", "max_wait_ms": 1.5}, "/max_wait_ms"),
    ({"message": "m", "paid": True}, "/paid"),
]
NO_KEYS = ["", " ", "x" * 256, "a b", "ключ".encode().decode("latin-1")]


async def test_a_message_that_is_not_valid_goes_nowhere(running: Running, providers: Providers) -> None:
    """422 with a pointer; an invalid key is refused, not ignored."""
    client = await running.user("a@example.com")
    for body, pointer in NO_MESSAGES:
        status, problem = await answer(client.post("/messages", json=body))
        assert (status, problem["errors"][0]["pointer"]) == (422, pointer), body
    for key in NO_KEYS:
        assert (await send(client, "m", key))[0] == 422
    assert providers.messages == []


async def test_a_key_reaches_a_provider_once(running: Running, shared: Redis, providers: Providers) -> None:
    """Requests with the same key get the same answer; another body is a conflict; each user has their own keys."""
    client = await running.user("a@example.com", shared, paid_access=True)
    answers = await asyncio.gather(*(send(client, "m", "k1") for _ in range(10)))
    answers.append(await send(client, "m", "k1"))
    assert {(status, body["id"], body["provider"]) for status, body, _ in answers} == {
        (200, answers[0][1]["id"], "free")
    }
    assert (await send(client, "other", "k1"))[0] == 409
    assert (await send(await running.user("b@example.com"), "m", "k1"))[1]["provider"] == "free"
    assert providers.messages == ["m", "m"]


async def test_a_paid_key_is_paid_once(running: Running, shared: Redis, providers: Providers) -> None:
    """The message is not sent again when the free provider has opened."""
    client = await running.user("a@example.com", shared, paid_access=True)
    for n in range(2):
        await send(client, f"m{n}")
    first = await send(client, "paid for", "k1")
    assert first[1]["provider"] == "paid"
    assert (await send(client, "wait", max_wait_ms=5_000))[1]["provider"] == "free"
    assert (await send(client, "paid for", "k1"))[1]["id"] == first[1]["id"]
    assert providers.messages.count("paid for") == 1


async def test_a_key_that_reached_nobody_is_free_again(running: Running, shared: Redis, providers: Providers) -> None:
    """After 403, or when no provider was reached, the same request may be sent again."""
    client = await running.user("a@example.com")
    for n in range(2):
        await send(client, f"m{n}")
    assert (await send(client, "m", "k1"))[0] == 403
    assert (await send(client, "m", "k1", max_wait_ms=5_000))[1]["provider"] == "free"


async def test_providers_that_cannot_be_reached(shared: Redis, start: Start) -> None:
    """502 at once, and the allowance does not change."""
    async with start(shared, free_url="http://127.0.0.1:1/", paid_url="http://127.0.0.1:1/") as running:
        client = await running.user("a@example.com", shared, paid_access=True)
        assert (await send(client, "m", "k1"))[0] == 502
        assert (await answer(client.get("/quota")))[1]["remaining"] == 2


async def test_a_second_request_with_the_key_waits_for_the_first(
    shared: Redis, start: Start, providers: Providers
) -> None:
    """The second request is on another replica, which gives the answer of the first."""
    providers.free.latency_s = 0.5
    urls = {"free_url": providers.free_url, "paid_url": providers.paid_url}
    async with start(shared, **urls) as one, start(shared, **urls) as two:
        client = await one.user("a@example.com")
        other = two.client()
        await other.post("/auth/login", json={"email": "a@example.com", "password": "correct horse"})
        first = asyncio.create_task(send(client, "m", "k1"))
        await asyncio.sleep(0.1)
        second = await send(other, "m", "k1")
        assert second[1]["id"] == (await first)[1]["id"]
        assert providers.messages == ["m"]


async def test_a_message_that_a_provider_has_seen_is_not_sent_again(
    shared: Redis, start: Start, listening: Listening
) -> None:
    """Free answers with an error and paid cannot be reached: the answer is kept, and free is asked once."""
    seen: list[str] = []
    broken = Quart(__name__)

    @broken.post("/")
    async def take() -> tuple[str, int]:
        seen.append((await request.get_json())["message"])
        return "", 500

    async with listening(broken) as url, start(shared, free_url=url, paid_url="http://127.0.0.1:1/") as running:
        client = await running.user("a@example.com", shared, paid_access=True)
        answers = [(await send(client, "m", "k1"))[0] for _ in range(3)]
    assert (answers, seen) == ([502] * 3, ["m"])


async def test_a_delivered_message_is_200_if_the_quota_cannot_be_read(
    running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The message may have been paid for, so the answer must not be an error."""

    async def away(_: Quota) -> Any:
        raise Unavailable

    client = await running.user("a@example.com")
    monkeypatch.setattr(Quota, "look", away)
    status, body, _ = await send(client, "m")
    assert (status, body["provider"], body["quota"]) == (200, "free", None)


async def test_redis_away_is_503(start: Start) -> None:
    """Every route is 503, not 401 or 404, and no message is paid for."""
    away = Redis(host="127.0.0.1", port=1, retry=Retry(NoBackoff(), 0))
    from mesh.testing.fake_server import FakeClient

    redis = FakeClient(decode_responses=True)
    async with start(redis) as running:
        client = await running.user("a@example.com")
        redis.connection_pool = away.connection_pool
        for sent in (
            client.get("/users/me"),
            client.get("/quota"),
            client.post("/messages", json={"message": "m"}),
            client.post("/auth/login", json=ANN),
            client.post("/auth/register", json=ANN),
            client.post("/auth/logout"),
        ):
            response = await sent
            assert response.status_code == 503
            assert response.headers["Retry-After"]


async def test_a_full_redis_refuses_accounts_and_messages_and_lets_people_in(
    shared: Redis, start: Start, providers: Providers
) -> None:
    """No provider gets a message whose answer cannot be kept; logins, accounts and the quota are there."""

    def full(amount: int) -> None:
        raise Busy("Redis is full", retry_after=5)

    async with start(shared, free_url=providers.free_url, paid_url=providers.paid_url) as running:
        client = await running.user("a@example.com")
        running.store_room = full
        assert (await answer(client.post("/messages", json={"message": "m"})))[0] == 503
        assert (await answer(client.post("/auth/register", json=ANN)))[0] == 503
        for path in ("/users/me", "/quota"):
            assert (await answer(client.get(path)))[0] == 200
    assert providers.messages == []


@pytest.mark.parametrize("program", server_programs())
async def test_a_really_full_memory_refuses_new_accounts_alone(
    make_server: Callable[..., Server], start: Start, program: ServerProgram | None
) -> None:
    """Logins, logouts, new passwords, deactivations and grants go on. They replace what is there, or end soon."""
    redis = Redis.from_url(make_server(program=program).url, decode_responses=True)
    async with redis, start(redis) as running:
        admin = await running.user("admin@example.com", redis, is_admin=True)
        user, other = await running.user("user@example.com"), await running.user("other@example.com")
        ids = {each: (await (await each.get("/users/me")).get_json())["id"] for each in (user, other)}
        await redis.config_set("maxmemory", 1)
        refused = await running.client().post("/auth/register", json=ANN)
        assert (refused.status_code, refused.headers["Retry-After"]) == (503, "5")
        assert "Redis is full" in (await refused.get_json())["detail"]
        assert (await user.post("/auth/logout")).status_code == 204
        assert (await user.get("/users/me")).status_code == 401
        again = {"email": "user@example.com", "password": "correct horse"}
        assert (await user.post("/auth/login", json=again)).status_code == 204
        changed = CURRENT | {"password": "another horse", "email": "new@example.com"}
        assert (await user.patch("/users/me", json=changed)).status_code == 200
        assert (await admin.patch(f"/users/{ids[user]}", json={"paid_access": True})).status_code == 200
        assert (await user.get("/users/me")).status_code == 200
        assert (await admin.patch(f"/users/{ids[other]}", json={"is_active": False})).status_code == 200
        assert (await other.get("/users/me")).status_code == 401
        async with start(redis) as second:
            assert (await second.client().post("/auth/login", json=again)).status_code == 401
