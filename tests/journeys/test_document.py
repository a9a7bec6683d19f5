"""The whole application held against its OpenAPI document.

Two replicas with all five services, both providers, users, an administrator, a movement. Each operation is used as it
should be, then asked whatever the document allows and much that it does not: no 500, no stall, and no answer that the
document does not describe.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import random
import secrets
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from hypothesis.errors import Unsatisfiable
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from quart_app.movements.producer import sample
from tests.support.faults.matrix import SEED
from tests.support.providers import ADMIN, providers
from tests.support.replicas import PROFILE, Process, Replicas
from tests.support.waiting import eventually

#: The deadline of a request, and a second.
PATIENCE_S = int(PROFILE["MESH_DEADLINE_MS"]) / 1000 + 1
CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
]
PASSWORD = "correct horse"
DEPARTURE, ARRIVAL = (message["data"] for message in sample())
#: After these requests the client is no longer logged in as before.
UNMAKING = {("POST", "/auth/logout"), ("PATCH", "/users/me")}


@dataclass
class World:
    """A mesh in use, and a client of it."""

    public: str
    private: str
    client: httpx.Client = field(default_factory=lambda: httpx.Client(timeout=PATIENCE_S + 5))
    admin: str = ""

    def post(self, path: str, body: Any, **headers: str) -> httpx.Response:
        answer = self.client.post(self.public + path, json=body, headers=headers)
        self.client.cookies.clear()
        assert answer.is_success, answer.text
        return answer

    def log_in(self, email: str, password: str) -> str:
        """The cookie of a session."""
        return self.post("/auth/login", {"email": email, "password": password}).headers["Set-Cookie"].partition(";")[0]

    def newcomer(self) -> str:
        """The cookie of somebody new."""
        email = f"{secrets.token_hex(8)}@example.com"
        self.post("/auth/register", {"email": email, "password": PASSWORD})
        return self.log_in(email, PASSWORD)

    def headers(self, method: str, path: str) -> dict[str, str]:
        """Return the headers of the administrator, or of a new user if the request would end the session."""
        cookie = self.newcomer() if (method, path) in UNMAKING else self.admin
        return {"Cookie": cookie, "Authorization": "Basic Z3JhZGVzOmdyYWRlcw=="}

    def known(self) -> dict[tuple[str, str], dict[str, Any]]:
        """A call of each operation that is known to succeed, in an order in which all do."""
        subject = self.client.get(f"{self.public}/users/me", headers={"Cookie": self.newcomer()}).json()["id"]
        phone, address = "+7 911 123-45-67", "1 Long Street, Somewhere"
        first, second = ({"phone": phone, "address": address}, {"address": address})
        at = {"path_parameters": {"phone": "+7 911 123-45-68"}}
        self.post("/addr_by_phone", {"phone": at["path_parameters"]["phone"], "address": address})
        product, warehouse = ARRIVAL["product_id"], ARRIVAL["warehouse_id"]
        hard = [{"value": 2**61 - 1, "ttl": 60, "cls": "A"}]
        job = self.post("/values", hard, Prefer="respond-async").json()["id"]
        return {
            ("GET", "/classes"): {},
            ("POST", "/values"): {"body": [{"value": 6, "ttl": 60, "cls": "A"}]},
            ("GET", "/values/{prime}"): {"path_parameters": {"prime": "3"}, "query": {"limit": 1}},
            ("GET", "/jobs/{id}"): {"path_parameters": {"id": job}},
            ("DELETE", "/jobs/{id}"): {"path_parameters": {"id": job}},
            ("POST", "/addr_by_phone"): {"body": first},
            ("GET", "/addr_by_phone"): {"query": {"phone": phone}},
            ("PUT", "/addr_by_phone"): {"body": first},
            ("DELETE", "/addr_by_phone"): {"query": {"phone": phone}},
            ("GET", "/addr_by_phone/{phone}"): at,
            ("PUT", "/addr_by_phone/{phone}"): {**at, "body": second},
            ("DELETE", "/addr_by_phone/{phone}"): at,
            ("POST", "/auth/register"): {"body": {"email": "known@example.com", "password": PASSWORD}},
            ("POST", "/auth/login"): {"body": {"email": "known@example.com", "password": PASSWORD}},
            ("POST", "/auth/logout"): {},
            ("GET", "/users/me"): {},
            ("PATCH", "/users/me"): {"body": {"password": "another horse", "current_password": PASSWORD}},
            ("PATCH", "/users/{user_id}"): {"path_parameters": {"user_id": subject}, "body": {"paid_access": True}},
            ("POST", "/messages"): {"body": {"message": "hello"}},
            ("GET", "/quota"): {},
            ("POST", "/set"): {"body": {"user_id": "known", "spp": 7}},
            ("GET", "/get"): {"query": {"user_id": "known"}},
            ("GET", "/backup"): {},
            ("GET", "/api/movements/{movement_id}"): {"path_parameters": {"movement_id": ARRIVAL["movement_id"]}},
            ("GET", "/api/warehouses/{warehouse_id}/products/{product_id}"): {
                "path_parameters": {"warehouse_id": warehouse, "product_id": product}
            },
            ("GET", "/health"): {},
            ("GET", "/readyz"): {},
        }


@pytest.fixture
async def world(replicas: Replicas, tmp_path: Path) -> AsyncIterator[World]:
    async with providers(limit=1000, block_s=1, latency_ms=0) as both:
        env = {
            **both.env,
            "SERVICES": "values,addresses,messages,grades,movements",
            "MOVEMENTS_DB_PATH": str(tmp_path / "movements.db"),
            "GRADES_SNAPSHOT_DIR": str(tmp_path / "grades"),
            "MESSAGES_MAX_WAIT_MS": "1000",
            # Made-up logins are wrong, and all come from one address.
            "MESSAGES_LOGIN_SOURCE_TRIES": "100000",
            "MESSAGES_REGISTRATIONS": "100000",
        }
        first, _ = await replicas(2, env)
        with replicas.server.redis() as redis:
            for message in sample():
                redis.xadd("events:movements", {"body": json.dumps(message)})
        made = World(first.public, first.private)
        made.admin = made.log_in(ADMIN["email"], ADMIN["password"])
        await _heard(replicas, first)
        yield made
        made.client.close()
        assert all(process.popen.poll() is None for process in replicas.processes), "a replica has ended"


async def _heard(replicas: Replicas, replica: Process) -> None:
    path = f"{replica.public}/api/movements/{ARRIVAL['movement_id']}"

    async def completed() -> bool:
        answer = await replicas.client.get(path)
        return answer.status_code == 200 and answer.json()["status"] == "completed"

    await eventually(completed, 20)


@pytest.mark.slow
@pytest.mark.timeout(180)
async def test_answers_are_what_the_document_says(world: World) -> None:
    """Each operation is called as it should be, then with a dozen generated calls, then with a dozen invalid ones."""
    await asyncio.to_thread(_hold_against_document, world, 12, 0)


@pytest.mark.faults
@pytest.mark.timeout(600)
async def test_answers_are_what_the_document_says_at_length(world: World) -> None:
    """The test above has more requests here, made up from the seed of the matrix."""
    try:
        await asyncio.to_thread(_hold_against_document, world, 50, SEED)
    except BaseException as error:
        error.add_note(f"FAULTS_SEED={SEED} makes up the same again")
        raise


#: Bytes that a header or a field may hold by the grammar of HTTP, and that no handler expects.
BYTES = (
    b"", b"\xa7", b"\xff\xfe", b"\xc3\x28", b"\xed\xa0\x80", "\u00a7\U0001f600".encode(), b"%ff%00%", b'"', b'"\\',
    b"=;,=", b"\t", b"9" * 5000, b"-1", b"1e999", b"\xa7" * 5000, b":" * 300,
)  # fmt: skip
#: Headers that some part of the application reads, and how a value may begin there.
HEADERS = {
    "Accept": (b"", b"text/html;q="), "Accept-Encoding": (b"", b"gzip;q="), "Accept-Language": (b"", b"de;q="),
    "Authorization": (b"Basic ", b"Basic cGE", b"Bearer ", b"Digest username="), "Connection": (b"", b"close, "),
    "Content-Encoding": (b"",), "Cookie": (b"", b"session=", b"__Host-session=e30.e30."), "Expect": (b"",),
    "Content-Type": (b"", b"application/json; charset=", b"multipart/form-data; boundary="),
    "Forwarded": (b"", b"for="), "Idempotency-Key": (b"",), "If-Match": (b"", b"W/"), "If-Modified-Since": (b"",),
    "If-None-Match": (b"", b'W/"'), "If-Range": (b"",), "Origin": (b"", b"http://", b"http://["),
    "Prefer": (b"", b"wait=", b'handling="', b"respond-async;"), "Range": (b"", b"bytes=", b"bytes=0-"),
    "Referer": (b"", b"http://", b"http://["), "Sec-Fetch-Site": (b"",), "Traceparent": (b"", b"00-"),
    "User-Agent": (b"",), "X-Forwarded-For": (b"", b"10.0.0.1, ", b"["), "X-Forwarded-Host": (b"",),
    "X-Forwarded-Proto": (b"",), "X-Request-Id": (b"",),
}  # fmt: skip
PLACE = "a place for bytes"


@pytest.mark.slow
@pytest.mark.timeout(300)
async def test_no_bytes_in_a_header_or_field_are_an_internal_error(world: World) -> None:
    """Every header with strange values at every route, then every field; whatever is wrong has a 4xx."""
    failed = await asyncio.to_thread(_fuzzed, world, random.Random(SEED))
    assert not failed, (f"FAULTS_SEED={SEED}", failed[:20])


def _fuzzed(world: World, chance: random.Random) -> list[tuple[str, str, str, bytes, int]]:
    operations = {(one.method.upper(), one.path): one for one in _operations(world)}
    failed = []
    for (method, path), arguments in world.known().items():
        private = "private" in (operations[method, path].definition.raw.get("tags") or ())
        base = world.private if private else world.public
        usual = {"Content-Type": "application/json", **world.headers(method, path)}
        for name, url, body, headers in _strange(path, arguments, usual, chance):
            request = world.client.build_request(method, base + url, content=body, headers=list(headers.items()))
            status = world.client.send(request).status_code
            if status == 500 or status > 504:
                failed.append((method, path, name, url.encode() + (body or b"")[:200], status))
    return failed


Strange = tuple[str, str, bytes | None, dict[str, str | bytes]]


def _strange(path: str, arguments: dict[str, Any], usual: dict[str, str], chance: random.Random) -> Iterator[Strange]:
    """What is asked: the header or field that is strange, the URL, the body, the headers."""
    url, body = _written(path, arguments)
    for name, begins in HEADERS.items():
        for begin, value in chance.sample(list(itertools.product(begins, BYTES)), 2):
            yield f"{name}: {begin + value!r}", url, body, {**usual, name: (begin + value).strip()}
    for name, place in _places(path, arguments):
        url, body = _written(path, place)
        for value in BYTES:
            strange_url = url.replace(quote(PLACE), quote(value))
            strange_body = body and body.replace(PLACE.encode(), value)
            yield f"{name}: {value!r}", strange_url, strange_body, {**usual}


def _places(path: str, arguments: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """The arguments with each field of path, query and body in turn made a place for bytes."""
    for kind in ("path_parameters", "query"):
        for name in arguments.get(kind, {}):
            yield name, {**arguments, kind: {**arguments[kind], name: PLACE}}
    body = arguments.get("body")
    for name in body[0] if isinstance(body, list) else body or {}:
        made = [{**body[0], name: PLACE}] if isinstance(body, list) else {**body, name: PLACE}
        yield name, {**arguments, "body": made}


def _written(path: str, arguments: dict[str, Any]) -> tuple[str, bytes | None]:
    parameters = {name: quote(str(value), safe="") for name, value in arguments.get("path_parameters", {}).items()}
    query = "&".join(f"{name}={quote(str(value), safe='')}" for name, value in arguments.get("query", {}).items())
    body = json.dumps(arguments["body"]).encode() if "body" in arguments else None
    return path.format(**parameters) + ("?" + query if query else ""), body


def _hold_against_document(world: World, examples: int, chance: int) -> None:
    operations = {(one.method.upper(), one.path): one for one in _operations(world)}
    known = world.known()
    assert operations.keys() == known.keys()
    for (method, path), arguments in known.items():
        answer = _ask(world, operations[method, path].Case(**arguments))
        assert 200 <= answer.status_code < 300, (method, path, answer.text)
    for key, operation in operations.items():
        allowed = operation.as_strategy(generation_mode=GenerationMode.POSITIVE)
        _make_up(world, st.builds(_usable, allowed, st.just(known[key]), st.booleans()), examples, chance)
        # Nothing can be wrong with an operation that takes nothing, or any text.
        with contextlib.suppress(Unsatisfiable):
            _make_up(world, operation.as_strategy(generation_mode=GenerationMode.NEGATIVE), examples, chance)


def _operations(world: World) -> Iterator[Any]:
    document = world.client.get(f"{world.public}/openapi.json").json()
    for found in schemathesis.openapi.from_dict(document).get_all_operations():
        yield found.ok()


def _usable(case: Any, known: dict[str, Any], there: bool) -> Any:
    """Return a call that can succeed: about something that exists, to one of two replicas, and without 1.0 for 1.

    JSON Schema takes 1.0 for an integer, but this interface does not, and no schema can express that.
    """
    if there and "path_parameters" in known:
        case.path_parameters = known["path_parameters"]
    case.body = _fitting(case.body)
    return case


def _fitting(body: Any) -> Any:
    match body:
        case dict():
            return {name: _fitting(value) for name, value in body.items()}
        case list():
            return [_fitting(value) for value in body]
        case float() if body.is_integer():
            return int(body)
        case "C" | "D":
            return "A"
    return body


def _make_up(world: World, calls: Any, examples: int, chance: int) -> None:
    @seed(chance)
    @settings(
        max_examples=examples, deadline=None, phases=[Phase.generate],
        suppress_health_check=list(HealthCheck), database=None,
    )  # fmt: skip
    @given(case=calls)
    def one(case: Any) -> None:
        _ask(world, case)

    one()


def _ask(world: World, case: Any) -> Any:
    """Send a call, and compare the answer with the document."""
    operation = case.operation
    private = "private" in (operation.definition.raw.get("tags") or ())
    answer = case.call(
        base_url=world.private if private else world.public,
        headers=world.headers(operation.method.upper(), operation.path),
        timeout=PATIENCE_S,
    )
    case.validate_response(answer, checks=CHECKS)
    return answer
