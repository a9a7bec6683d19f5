"""`python -m tests.support.raising json|console`: requests with secrets, each failing unexpectedly at several depths.

It logs to standard error as a replica does, and prints to standard output which routes answered 500. The services run
in this process, over a fake Redis, because a logger of structlog is configured once in a process.
"""

from __future__ import annotations

import asyncio
import json
import sys
from base64 import b64encode
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

from prometheus_client import CollectorRegistry
from pydantic import SecretStr
from quart import Blueprint, request

from mesh.testing.fake_server import FakeClient
from quart_app import logs
from quart_app.http.application import Application
from quart_app.http.metrics import RequestMetrics
from quart_app.messages.passwords import Passwords
from quart_app.messages.service import create
from quart_app.messages.sessions import Sessions
from quart_app.messages.users import Users
from quart_app.security import basic
from quart_app.security.audit import Audit
from quart_app.security.basic import BasicAuth
from quart_app.security.credentials import CredentialLimiter, Limits
from quart_app.service import Context
from quart_app.settings import AppSettings

EMAIL = "ann@example.com"
PASSWORD, NEW_PASSWORD, BASIC_PASSWORD = "horse-secret-one", "horse-secret-two", "horse-secret-three"
#: Where an unexpected error may happen while a secret is at hand.
DEPTHS = (
    (Users, "find_by_email"),
    (Passwords, "_verify"),
    (Passwords, "hash"),
    (Sessions, "check"),
    (Sessions, "begin"),
    (Sessions, "end"),
    (CredentialLimiter, "admit"),
    (CredentialLimiter, "excuse"),
    (Audit, "record"),
    (BasicAuth, "_is_right"),
)


def fail(*_: Any, **__: Any) -> Any:
    raise RuntimeError("unexpected")


async def main() -> None:
    settings = AppSettings(services="messages", log_format=sys.argv[1])  # type: ignore[arg-type]
    logs.configure(settings)
    registry = CollectorRegistry()
    replica: Any = SimpleNamespace(
        shared=FakeClient(decode_responses=True), memory=SimpleNamespace(store=lambda _: None)
    )
    service = create(Context(settings, registry))
    assert service.lifespan is not None
    auth = BasicAuth("grades", "grades", SecretStr(BASIC_PASSWORD))
    auth.open(
        CredentialLimiter(replica.shared, Limits(most_per_pair=1000, most_per_source=1000)), Audit(replica.shared)
    )
    guarded = Blueprint("guarded", __name__)

    async def backup() -> str:
        await auth.check(request)
        return "all grades"

    guarded.add_url_rule("/backup", "backup", backup)
    public = Application("public", settings, RequestMetrics(registry), lambda: False)
    for blueprint in (*service.public, guarded):
        public.register_blueprint(blueprint)
    async with service.lifespan(replica):
        sys.stdout.write(json.dumps(sorted(await failures(public))))


async def failures(public: Application) -> set[str]:
    """Send every request with every depth failing; the routes that answered 500."""
    client = public.test_client()
    base: dict[str, Any] = {"json": {"email": EMAIL, "password": PASSWORD}}
    assert (await client.post("/auth/register", **base)).status_code == 201
    answer = await client.post("/auth/login", **base)
    cookies = "; ".join(each.partition(";")[0] for each in answer.headers.getlist("Set-Cookie"))
    sys.stdout.write(cookies.split("session=")[1].partition(";")[0] + "\n")
    change = {"password": NEW_PASSWORD, "current_password": PASSWORD}
    authorization = "Basic " + b64encode(f"grades:{BASIC_PASSWORD}".encode()).decode()
    asked: list[tuple[str, str, dict[str, Any]]] = [
        ("POST", "/auth/register", {"json": {"email": "bob@example.com", "password": PASSWORD}}),
        ("POST", "/auth/login", base),
        ("GET", "/users/me", {}),
        ("PATCH", "/users/me", {"json": change}),
        ("PATCH", "/users/nobody", {"json": {"paid_access": True}}),
        ("POST", "/messages", {"json": {"message": "m"}}),
        ("GET", "/quota", {}),
        ("POST", "/auth/logout", {}),
        ("GET", "/backup", {}),
    ]
    # Compare the password every time.
    basic.BELIEVED_S = -1.0
    failed = set()
    for owner, name in DEPTHS:
        for method, path, options in asked:
            headers = {"Cookie": cookies, "Authorization": authorization}
            with patch.object(owner, name, fail):
                answer = await public.test_client().open(path, method=method, headers=headers, **options)
            if answer.status_code == 500:
                failed.add(f"{method} {path}")
    return failed


if __name__ == "__main__":
    asyncio.run(main())
