"""The HTTP routes of one replica in this process: parsing, authentication, errors."""

from __future__ import annotations

import gzip
import json
from base64 import b64encode
from collections.abc import AsyncIterator, Callable

import pytest
from prometheus_client import CollectorRegistry
from quart import Blueprint, Quart

from mesh import Busy
from mesh.testing.fake_server import FakeClient
from quart_app.grades.backup import BackupReader
from quart_app.grades.replication import GradesStage
from quart_app.grades.routes import GradesRoutes
from quart_app.http.application import Application
from quart_app.http.metrics import RequestMetrics
from quart_app.security.audit import Audit
from quart_app.security.credentials import CredentialLimiter, Limits
from quart_app.settings import AppSettings
from tests.support.grades import Node, Nodes

AUTH = {"Authorization": "Basic " + b64encode(b"grades:grades").decode()}


class Site:
    """The two ports of one replica."""

    def __init__(self, node: Node) -> None:
        self.node = node
        self.store_room: Callable[[int], None] = lambda _: None
        routes = GradesRoutes(node.replication, node.settings, self._store_room)
        redis = FakeClient(decode_responses=True)
        routes.auth.open(CredentialLimiter(redis, Limits()), Audit(redis))
        self.public = self._app("public", routes.public).test_client()
        self.private = self._app("private", routes.private).test_client()

    def _store_room(self, amount: int) -> None:
        self.store_room(amount)

    @staticmethod
    def _app(name: str, blueprint: Blueprint) -> Quart:
        app = Application(name, AppSettings(), RequestMetrics(CollectorRegistry()), lambda: False)
        app.register_blueprint(blueprint)
        return app


@pytest.fixture
async def site(nodes: Nodes) -> AsyncIterator[Site]:
    (node,) = await nodes.up("one")
    yield Site(node)


async def test_set_answers_the_merged_record(site: Site) -> None:
    """The answer has the five fields after the change."""
    await site.private.post("/set", json={"user_id": "alice", "spp": 5}, headers=AUTH)
    answer = await site.private.post("/set", json={"user_id": "alice", "return_fee": 2}, headers=AUTH)
    assert answer.status_code == 200
    assert await answer.get_json() == {
        "user_id": "alice", "postpaid_limit": 0, "spp": 5, "shipping_fee": 0, "return_fee": 2,
    }  # fmt: skip
    shown = await site.public.get("/get?user_id=alice")
    assert await shown.get_json() == await answer.get_json()


@pytest.mark.parametrize(
    "header",
    [
        None, "", "Basic", "Basic !!!", "Bearer grades", "Basic " + b64encode(b"grades:wrong").decode(),
        "Basic " + b64encode(b"wrong:grades").decode(), "Basic " + b64encode(b"grades").decode(),
        "Basic " + b64encode("grädes:\ud7ff".encode()).decode(), "Basic " + b64encode(b"\xff\xfe:\xff").decode(),
        "Digest username=grades", "Basic §", "Basic \u00a7\u00a7", "Basic Z3JhZGVz\u00ff", "§", "Bearer §",
    ],
)  # fmt: skip
@pytest.mark.parametrize(("method", "path"), [("POST", "/set"), ("GET", "/backup"), ("HEAD", "/backup")])
async def test_a_request_without_the_right_user_and_password_is_401(
    site: Site, header: str | None, method: str, path: str
) -> None:
    """The answer is 401 with a challenge for any header, and the body is not read before."""
    headers = {} if header is None else {"Authorization": header}
    answer = await site.private.open(path, method=method, headers=headers)
    assert answer.status_code == 401
    assert answer.headers["WWW-Authenticate"].startswith('Basic realm="grades"')
    assert site.node.replication.get("alice") is None


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"", 400), (b"{", 400), (b'{"user_id":"a","user_id":"b"}', 400), (b"[]", 422), (b"{}", 422), (b"null", 422),
        (b'{"user_id":""}', 422), (b'{"user_id":7}', 422), (b'{"user_id":null}', 422), (b'{"user_id":"a\\nb"}', 422),
        (b'{"user_id":"a","spp":null}', 422), (b'{"user_id":"a","spp":"5"}', 422), (b'{"user_id":"a","spp":1.0}', 422),
        (b'{"user_id":"a","spp":true}', 422), (b'{"user_id":"a","spp":9223372036854775808}', 422),
        (b'{"user_id":"a","spp":-9223372036854775809}', 422), (b'{"user_id":"a","ssp":5}', 422),
        (b'{"user_id":"a","spp":NaN}', 400), (b'{"user_id":"\\ud800"}', 400), (b"\xff", 400),
        (json.dumps({"user_id": "x" * 256}).encode(), 422),
    ],
)  # fmt: skip
async def test_a_body_that_is_no_change_is_refused(site: Site, body: bytes, status: int) -> None:
    """A body that is not JSON is 400, one that is not valid (such as null) is 422, and nothing is changed."""
    headers = {**AUTH, "Content-Type": "application/json"}
    answer = await site.private.post("/set", data=body, headers=headers)
    assert answer.status_code == status
    assert answer.content_type == "application/problem+json"
    assert site.node.number() == 1


async def test_null_is_named(site: Site) -> None:
    """null means neither unchanged nor 0; the answer has a pointer to it."""
    answer = await site.private.post("/set", json={"user_id": "a", "spp": None}, headers=AUTH)
    assert (await answer.get_json())["errors"][0]["pointer"] == "/spp"


@pytest.mark.parametrize("query", ["", "?user_id=", "?user=alice", "?user_id=a&user_id=b"])
async def test_get_needs_one_user_id(site: Site, query: str) -> None:
    """A user_id that is missing, empty or repeated is 400."""
    assert (await site.public.get("/get" + query)).status_code == 400


@pytest.mark.parametrize("user_id", ["alice", "a b", "a+b", "a/b?c=d&e", "Алиса", "#", "💰", "' OR 1=1", "%00"])
async def test_any_user_id_can_be_set_and_read(site: Site, user_id: str) -> None:
    """A grade is found under the id that it was set under, URL-encoded."""
    answer = await site.private.post("/set", json={"user_id": user_id, "spp": 1}, headers=AUTH)
    assert answer.status_code == 200
    shown = await site.public.get("/get", query_string={"user_id": user_id})
    assert (await shown.get_json())["user_id"] == user_id


async def test_an_unknown_user_is_404(site: Site) -> None:
    """A user whose id can never be set is unknown, too."""
    for user_id in ("bob", "x" * 3000, "\n"):
        assert (await site.public.get("/get", query_string={"user_id": user_id})).status_code == 404


async def test_each_route_is_on_one_port(site: Site) -> None:
    """`/get` is only on the public port, `/set` and `/backup` only on the private one."""
    assert (await site.public.post("/set", json={"user_id": "a"}, headers=AUTH)).status_code == 404
    assert (await site.public.get("/backup", headers=AUTH)).status_code == 404
    assert (await site.private.get("/get?user_id=a", headers=AUTH)).status_code == 404


async def test_a_backup_names_log_position_and_time(site: Site) -> None:
    """Position and time are in the headers, in the file name and in the content."""
    await site.node.set("alice", spp=5)
    answer = await site.private.get("/backup", headers=AUTH)
    data = await answer.get_data()
    assert answer.status_code == 200 and answer.content_type == "application/gzip"
    about = json.loads(gzip.decompress(data).split(b"\n")[0][2:])
    assert answer.headers["Log-Identity"] == about["log"]
    assert answer.headers["Log-Position"] == str(about["number"]) == "2"
    assert answer.headers["Log-Entry"] == about["id"]
    assert answer.headers["Backup-Time"] == about["time"]
    assert answer.headers["Backup-Digest"] == about["digest"] == site.node.digest()
    assert f"-{about['log']}-2.csv.gz" in answer.headers["Content-Disposition"]
    reader = BackupReader(10)
    reader.feed(data)
    assert reader.result()[1].get("alice").spp == 5


async def test_head_of_a_backup_has_the_position(site: Site) -> None:
    """It has the headers, and no backup is made."""
    answer = await site.private.head("/backup", headers=AUTH)
    assert answer.headers["Backup-Digest"] == site.node.digest()
    assert await answer.get_data() == b""


async def test_too_many_backups_at_once_are_refused(nodes: Nodes) -> None:
    """The answer is 503 with Retry-After; a peer asks the next replica. The place is free again afterwards."""
    nodes.settings["backups_at_once"] = 1
    (node,) = await nodes.up("one")
    await node.set("alice", spp=1)
    site = Site(node)
    async with site.private.request("/backup", headers=AUTH) as first:
        await first.send_complete()
        while not await first.receive():
            pass
        refused = await site.private.get("/backup", headers=AUTH)
        assert refused.status_code == 503 and refused.headers["Retry-After"] == "1"
        await first.disconnect()
    answer = await site.private.get("/backup", headers=AUTH)
    assert answer.status_code == 200


async def test_while_restoring_every_route_is_503(site: Site) -> None:
    """There is no 404 for a user that may exist, no backup of a part of the state, and no change."""
    assert (await site.private.head("/backup", headers=AUTH)).status_code == 200
    await site.node.pause()  # or it would be ready again at the next look at the log
    site.node.replication._move(GradesStage.RESTORING, "the grades are being restored")
    for answer in (
        await site.public.get("/get?user_id=alice"),
        await site.private.post("/set", json={"user_id": "alice"}, headers=AUTH),
        await site.private.get("/backup", headers=AUTH),
        await site.private.head("/backup", headers=AUTH),
    ):
        assert answer.status_code == 503
        assert answer.headers["Retry-After"] == "1"


async def test_a_full_redis_refuses_changes_and_goes_on_reading(site: Site) -> None:
    """503 before the log is touched; reads and backups need no memory of Redis."""
    assert (await site.private.post("/set", json={"user_id": "alice", "spp": 5}, headers=AUTH)).status_code == 200

    def full(amount: int) -> None:
        raise Busy("Redis is full", retry_after=5)

    site.store_room = full
    assert (await site.private.post("/set", json={"user_id": "alice", "spp": 6}, headers=AUTH)).status_code == 503
    assert (await (await site.public.get("/get?user_id=alice")).get_json())["spp"] == 5
