"""Acts over one replica: who may, from where, what they are asked and told."""

from __future__ import annotations

import asyncio
import base64
from typing import Any

import pytest
from quart.testing.connections import Headers

from mesh import MeshSettings, keys
from quart_app.dashboard.acts import ACTS
from tests.support.nodes import Node, node
from tests.support.server import Server

PASSWORD = "correct horse battery"
A = keys.class_requests("D")


@pytest.fixture
def settings(server: Server) -> MeshSettings:
    """Settings of a mesh on the real server."""
    return MeshSettings(redis=server.settings)


def operator(password: str = PASSWORD, **headers: str) -> Headers:
    token = base64.b64encode(f"operator:{password}".encode()).decode()
    return Headers({"Authorization": f"Basic {token}", **headers})


async def add_letters(one: Node, count: int, reason: str = "it crashed") -> list[str]:
    """Add dead letters of a class without replicas, so that a replayed one stays on its stream."""
    redis: Any = one.replica.shared
    async with redis.pipeline(transaction=True) as pipeline:  # in one step: a replica that starts looks at the books
        pipeline.hincrby(keys.BOOKS, "accepted", count)
        pipeline.hincrby(keys.BOOKS, "dead", count)
        await pipeline.execute()
    letter = {"kind": "request", "stream": A, "id": "1-0", "reason": reason, "deliveries": "3", "op": "x", "body": "{}"}
    return [await redis.xadd(keys.DEAD, letter) for _ in range(count)]


async def text_of(one: Node, path: str, headers: Headers | None = None) -> str:
    response = await one.private.get(path, headers=headers)
    return (await response.get_data()).decode()


async def test_without_a_password_the_page_only_reads(settings: MeshSettings) -> None:
    """No button is shown, and every act is refused, with the right words or without."""
    async with node(settings) as one:
        (id,) = await add_letters(one, 1)
        html = await text_of(one, "/mesh/dead", operator())
        assert "/mesh/confirm" not in html and "PAGE_PASSWORD" in html
        for act in ACTS:
            for headers in (None, operator(), operator("")):
                refused = await one.private.post(
                    f"/mesh/acts/{act}", json={"ids": [id], "word": ACTS[act].word}, headers=headers
                )
                assert refused.status_code == 403
                assert (await one.private.get(f"/mesh/confirm/{act}", headers=headers)).status_code == 403
        assert await one.replica.shared.xlen(keys.DEAD) == 1


async def test_with_a_password_only_the_operator_may_act(settings: MeshSettings) -> None:
    """A viewer without it sees no button; a wrong one is refused by every route, and counted."""
    async with node(settings, page_password=PASSWORD) as one:
        (id,) = await add_letters(one, 1)
        assert "/mesh/confirm" not in await text_of(one, "/mesh/dead")
        for path in ("/mesh/sign-in", "/mesh/confirm/replay?ids=" + id):
            refused = await one.private.get(path)
            assert refused.status_code == 401 and "Basic" in refused.headers["WWW-Authenticate"]
        for headers in (None, operator("wrong")):
            assert (await one.private.post("/mesh/acts/replay", json={"ids": [id]}, headers=headers)).status_code == 401
        assert (await one.private.get("/mesh/dead", headers=operator("wrong"))).status_code == 401
        html = await text_of(one, "/mesh/dead", operator())
        assert "/mesh/confirm/replay" in html and "/mesh/confirm/discard" in html
        signed_in = await one.private.get("/mesh/sign-in", headers=operator())
        assert (signed_in.status_code, signed_in.headers["Location"]) == (303, "/mesh/dead")
        for before, after in (
            ("http://localhost/mesh/requests?request=r-1", "/mesh/requests?request=r-1"),
            ("http://localhost/mesh/services", "/mesh/services"),
            ("https://evil.example//evil.example", "/mesh/dead"),
            ("http://localhost/mesh/acts/replay", "/mesh/dead"),
            ("http://[", "/mesh/dead"),
        ):
            signed_in = await one.private.get("/mesh/sign-in", headers=operator(Referer=before))
            assert signed_in.headers["Location"] == after
        statuses = [(await one.private.get("/mesh/dead", headers=operator("wrong"))).status_code for _ in range(30)]
        assert 429 in statuses


async def test_a_page_of_another_site_acts_for_nobody(settings: MeshSettings) -> None:
    """A browser sends the operator's password with any form."""
    async with node(settings, page_password=PASSWORD) as one:
        (id,) = await add_letters(one, 1)
        for headers in ({"Origin": "https://evil.example"}, {"Sec-Fetch-Site": "cross-site"}, {"Origin": "null"}):
            refused = await one.private.post("/mesh/acts/replay", form={"ids": id}, headers=operator(**headers))
            assert refused.status_code == 403
        for act in ACTS:
            assert (await one.private.get(f"/mesh/acts/{act}", headers=operator())).status_code == 405
        assert await one.replica.shared.xlen(keys.DEAD) == 1
        own = operator(Origin="http://localhost", Host="localhost")
        assert (await one.private.post("/mesh/acts/replay", form={"ids": id}, headers=own)).status_code == 200


async def test_a_group_is_confirmed_and_replayed(settings: MeshSettings) -> None:
    """The question names the consequence; the answer says what was done."""
    async with node(settings, page_password=PASSWORD) as one:
        await add_letters(one, 2, "another")
        *_, newest = await add_letters(one, 3)
        html = await text_of(one, f"/mesh/confirm/replay?like={newest}", operator())
        assert "Replay 3 dead letters?" in html and "will go back to mesh:requests:D" in html and "it crashed" in html
        response = await one.private.post("/mesh/acts/replay", form={"like": newest}, headers=operator())
        assert "3 replayed." in (await response.get_data()).decode()
        assert (await one.replica.shared.xlen(A), await one.replica.shared.xlen(keys.DEAD)) == (3, 2)
        books = await one.replica.books()
        assert books["accepted"] == sum(count for name, count in books.items() if name != "accepted")
        again = await one.private.post("/mesh/acts/replay", json={"like": newest}, headers=operator())
        assert (await again.get_json()) == {
            "text": "0 replayed, 1 was gone already.", "done": 0, "gone": 1, "problem": "",
        }  # fmt: skip


async def test_discarding_needs_a_word(settings: MeshSettings) -> None:
    """The word is asked for because discarding cannot be undone."""
    async with node(settings, page_password=PASSWORD) as one:
        ids = await add_letters(one, 2)
        html = await text_of(one, "/mesh/confirm/discard?ids=" + "+".join(ids), operator())
        assert "Discard 2 dead letters?" in html and "cannot be undone" in html and 'name="word"' in html
        refused = await one.private.post("/mesh/acts/discard", json={"ids": ids}, headers=operator())
        assert refused.status_code == 422 and await one.replica.shared.xlen(keys.DEAD) == 2
        done = await one.private.post("/mesh/acts/discard", json={"ids": ids, "word": "discard"}, headers=operator())
        assert (await done.get_json())["text"] == "2 discarded."
        redis: Any = one.replica.shared
        ((_, entry),) = await redis.xrevrange(keys.AUDIT, count=1)
        assert (entry["event"], entry["actor"], entry["ids"]) == ("dead letters discarded", "operator", " ".join(ids))


async def test_an_operation_is_paused_and_resumed(settings: MeshSettings) -> None:
    """The view of services says so, and by whom."""
    async with node(settings, page_password=PASSWORD) as one:
        about = {"op": "values.put"}
        assert "No replica serves" in await text_of(one, "/mesh/confirm/pause?op=value.put", operator())
        assert "every replica refuses its calls" in await text_of(one, "/mesh/confirm/pause?op=values.put", operator())
        for act, changed in (("pause", True), ("pause", False), ("resume", True), ("resume", False)):
            done = await one.private.post(f"/mesh/acts/{act}", json=about, headers=operator())
            assert (await done.get_json())["changed"] is changed
            if act == "pause":
                html = await text_of(one, "/mesh/services", operator())
                assert "paused</b> since" in html and "/mesh/confirm/resume?op=values.put" in html
        refused = await one.private.post("/mesh/acts/pause", json={"op": ""}, headers=operator())
        assert refused.status_code == 422


async def test_a_request_is_cancelled_and_a_replica_asked_to_drain(settings: MeshSettings) -> None:
    """What is not there is said; the question about the last replica of a class says that it is the last."""
    async with node(settings, page_password=PASSWORD) as one:
        redis: Any = one.replica.shared
        id = await redis.xadd(A, {"op": "x", "request": "r", "from": "f", "body": "{}"})
        html = await text_of(one, f"/mesh/requests?request={id}", operator())
        assert "1 part; 1 not answered yet, accepted " in html and f"/mesh/confirm/cancel?id={id}" in html
        assert "Sign in</a> to cancel it" in await text_of(one, f"/mesh/requests?request={id}")
        texts = []
        for _ in range(2):
            done = await one.private.post("/mesh/acts/cancel", json={"id": id}, headers=operator())
            texts.append((await done.get_json())["text"])
        assert texts == [
            f"Cancelled x on {A}.",
            "No stream has this request: it has ended already, or it never was there.",
        ]
        heard: list[str] = []
        one.replica.on_drain(lambda: heard.append("drain"))
        html = await text_of(one, f"/mesh/confirm/drain?replica={one.replica.id}", operator())
        assert "the last replica of class" in html
        asked = {"replica": one.replica.id, "word": "drain"}
        done = await one.private.post("/mesh/acts/drain", json=asked, headers=operator())
        assert (await done.get_json())["changed"]
        nobody = await one.private.post("/mesh/acts/drain", json={"replica": "x", "word": "drain"}, headers=operator())
        assert not (await nobody.get_json())["changed"]
        async with asyncio.timeout(5):
            while not heard:
                await asyncio.sleep(0.01)


async def test_what_cannot_be_meant_is_said(settings: MeshSettings) -> None:
    """An act that does not exist, and ids that are none."""
    async with node(settings, page_password=PASSWORD) as one:
        assert (await one.private.post("/mesh/acts/explode", json={}, headers=operator())).status_code == 404
        for about in ({"ids": ["first"]}, {"like": "+"}):
            refused = await one.private.post("/mesh/acts/replay", json=about, headers=operator())
            assert refused.status_code == 422 and "not the id" in (await refused.get_json())["detail"]
        for act in ("replay", "discard"):
            nothing = await one.private.post(f"/mesh/acts/{act}", json={"word": act}, headers=operator())
            assert nothing.status_code == 422 and "name letters" in (await nothing.get_json())["detail"]
        response = await one.private.get("/mesh/confirm/replay?like=x", headers=operator())
        assert response.status_code == 422


async def test_a_job_is_cancelled(settings: MeshSettings) -> None:
    """The question says how far it is; afterwards its client gets 404."""
    hard = [{"value": 10**150 + 7 * 10**75 + 3, "ttl": 60, "cls": "A"}]
    async with node(settings, page_password=PASSWORD) as one:
        posted = await one.public.post("/values", json=hard, headers=Headers({"Prefer": "respond-async"}))
        id = (await posted.get_json())["id"]
        html = await text_of(one, f"/mesh/confirm/cancel-job?id={id}", operator())
        assert "Finished so far: 0 of 1 value" in html and "404 from then on" in html
        assert f"/mesh/confirm/cancel-job?id={id}" in await text_of(one, "/mesh/services", operator())
        assert (await one.private.post("/mesh/acts/cancel-job", json={"id": id})).status_code == 401
        texts = []
        for _ in range(2):
            done = await one.private.post("/mesh/acts/cancel-job", json={"id": id}, headers=operator())
            texts.append((await done.get_json())["text"])
        assert texts[0] == "Cancelled with 0 of 1 value finished."
        assert texts[1] == "There is no such job: it was deleted, or its time is over."
        assert (await one.public.get(f"/jobs/{id}")).status_code == 404
        redis: Any = one.replica.shared
        ((_, entry),) = await redis.xrange(keys.AUDIT)
        assert (entry["event"], entry["actor"], entry["ids"]) == ("job cancelled", "operator", id)
        for nonsense in ("", "x", "1-0", "x" * 300):
            refused = await one.private.post("/mesh/acts/cancel-job", json={"id": nonsense}, headers=operator())
            assert refused.status_code == 422
