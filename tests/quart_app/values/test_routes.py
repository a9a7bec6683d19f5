"""/values over its routes, with whole replicas in this process: what is asked, what is refused, what is shown."""

from __future__ import annotations

import contextlib
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest

from mesh import MeshSettings
from tests.support.nodes import Node, node
from tests.support.server import Server
from tests.support.waiting import eventually


@pytest.fixture
async def nodes(server: Server, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[list[Node]]:
    """Two replicas, of the classes A and B."""
    monkeypatch.setenv("VALUES_PROCESSES", "1")
    async with contextlib.AsyncExitStack() as stack:
        settings = MeshSettings(redis=server.settings)
        yield [await stack.enter_async_context(node(settings)) for _ in range(2)]


async def post(one: Node, items: Any, **headers: str) -> tuple[int, Any]:
    response = await one.public.post("/values", json=items, headers=headers)
    return response.status_code, json.loads(await response.get_data())


async def get(one: Node, path: str) -> tuple[int, Any]:
    response = await one.public.get(path)
    return response.status_code, json.loads(await response.get_data())


def item(value: Any, cls: str = "A", ttl: int = 300) -> dict[str, Any]:
    return {"value": value, "ttl": ttl, "cls": cls}


async def test_answers_come_in_the_requests_order_one_element_per_item(nodes: list[Node]) -> None:
    """The order holds for all classes and sizes; an empty request has an empty answer."""
    one, two = nodes
    values = [15, 1, 2**64 + 13, 15, 4]
    status, answer = await post(one, [item(v, "AB"[n % 2]) for n, v in enumerate(values)])
    assert status == 200
    assert [element["value"] for element in answer] == values
    assert [element["prime_factors"] for element in answer if element["value"] in (1, 4, 15)] == [
        [3, 5], [], [3, 5], [2, 2],
    ]  # fmt: skip
    assert await post(two, []) == (200, [])


async def test_of_items_with_the_same_value_the_last_one_counts(nodes: list[Node]) -> None:
    """The result is the same as if the items had come one after the other."""
    one, two = nodes
    assert (await post(one, [item(21, "A"), item(21, "B")]))[0] == 200
    assert await two.replica.store().hget("values:records", 21) is not None
    assert await one.replica.store().hget("values:records", 21) is None


@pytest.mark.parametrize(("most", "page"), [("3", "?limit=3"), ("5000", "?limit=1000")])
async def test_an_answer_that_is_too_long_names_a_page_that_can_be_asked_for(
    server: Server, monkeypatch: pytest.MonkeyPatch, most: str, page: str
) -> None:
    """However few values one answer may have, the first page is the address in `next`, and is answered."""
    monkeypatch.setenv("VALUES_PROCESSES", "1")
    monkeypatch.setenv("VALUES_MAX_ANSWER", most)
    async with node(MeshSettings(redis=server.settings)) as one:
        count = int(most) + 1
        for begin in range(2, 2 * count + 2, 4000):
            await post(one, [item(value) for value in range(begin, min(begin + 4000, 2 * count + 2), 2)])
        status, problem = await get(one, "/values/2")
        assert (status, problem["next"]) == (422, f"/values/2{page}") and page in problem["detail"]
        status, answer = await get(one, problem["next"])
        assert (status, len(answer)) == (200, min(int(most), 1000))


async def test_numbers_are_exact_at_any_size(nodes: list[Node]) -> None:
    """Numbers are read as integers and as decimal strings, and answered as integers."""
    big = 3 * (2**127 - 1)
    for given in (big, str(big)):
        status, answer = await post(nodes[0], [item(given)])
        assert (status, answer) == (200, [{"value": big, "prime_factors": [3, 2**127 - 1]}])
    assert (await get(nodes[1], f"/values/{2**127 - 1}"))[1] == answer


async def test_a_class_without_a_live_replica_is_404_and_nothing_is_done(nodes: list[Node]) -> None:
    """Nothing is done for items of other classes, either."""
    before = await nodes[0].replica.books()
    status, problem = await post(nodes[0], [item(33, "A"), item(55, "D")])
    assert status == 404 and problem["address"] == "D"
    assert await nodes[0].replica.books() == before
    assert await get(nodes[0], "/values/11") == (200, [])


@pytest.mark.parametrize(
    ("items", "pointer"),
    [
        ([item(1, "E")], "/0/cls"),
        ([item(6), item(0)], "/1/value"),
        ([item(6, ttl=0)], "/0/ttl"),
        ([item("9" * 1001)], "/0/value"),
        ([{"value": 6, "ttl": 1}], "/0/cls"),
        ({"value": 6}, ""),
    ],
)
async def test_what_is_not_valid_is_422_and_says_where(nodes: list[Node], items: Any, pointer: str) -> None:
    """The answer has a JSON pointer."""
    status, problem = await post(nodes[0], items)
    assert status == 422 and [error["pointer"] for error in problem["errors"]] == [pointer]


@pytest.mark.parametrize(
    "prime", ["1", "0", "4", "10", "-7", "7.0", "x", "0x7", "٣", "9" * 1001, "%20", str(7 * 10**300)]
)
async def test_what_is_no_prime_is_422(nodes: list[Node], prime: str) -> None:
    """The number is composite, huge, or no number at all."""
    status, problem = await get(nodes[0], f"/values/{prime}")
    assert status == 422 and "prime" in problem["detail"]


async def test_values_are_shown_ascending_each_once_and_in_pages(nodes: list[Node]) -> None:
    """Values come from every database; a page that is full says where the next one is."""
    one, two = nodes
    values = [7 * n for n in (10, 2, 33, 4, 15)]
    await post(one, [item(v, "AB"[n % 2]) for n, v in enumerate(values)])
    status, answer = await get(two, "/values/7")
    assert (status, [element["value"] for element in answer]) == (200, sorted(values))

    path, pages = "/values/7?limit=2", []
    while path:
        response = await two.public.get(path)
        pages.append([element["value"] for element in await response.get_json()])
        link = response.headers.get("Link")
        assert link is None or link.endswith('; rel="next"')
        path = link[1 : link.index(">")] if link else ""
    assert pages == [sorted(values)[:2], sorted(values)[2:4], sorted(values)[4:]]


@pytest.mark.parametrize(
    "query", ["limit=0", "limit=-1", "limit=x", "limit=1.5", "limit=999999999", "after=-1", "after=x"]
)
async def test_pages_that_cannot_be_are_422(nodes: list[Node], query: str) -> None:
    """Such a page is never a 500, and never answered with something else."""
    assert (await get(nodes[0], f"/values/7?{query}"))[0] == 422


async def test_classes_are_those_with_a_live_replica(nodes: list[Node]) -> None:
    """Classes are sorted, and each is there once."""
    assert await get(nodes[1], "/classes") == (200, ["A", "B"])


@pytest.mark.parametrize("prefer", ["wait=1", "handling=strict, wait=1", "wait = 1; x=y"])
async def test_prefer_wait_sets_the_deadline(nodes: list[Node], prefer: str) -> None:
    """A number that cannot be done in that time is a 504 then, and names what is missing."""
    hard = (10**70 + 33) * (10**75 + 129)
    status, problem = await post(nodes[0], [item(hard), item(6)], Prefer=prefer)
    assert status == 504 and problem["missing"] == [hard]
    assert "Prefer: wait=" in problem["detail"] and "Prefer: respond-async" in problem["detail"]
    assert (await get(nodes[0], "/values/3"))[1] == [{"value": 6, "prime_factors": [2, 3]}]


@contextlib.asynccontextmanager
async def killed(server: Server, **settings: Any) -> AsyncIterator[Node]:
    """Yield a replica that ends without releasing its lease."""
    with contextlib.suppress(ZeroDivisionError):
        async with node(MeshSettings(redis=server.settings, lease_ttl_ms=600, **settings)) as one:
            yield one
            raise ZeroDivisionError


async def test_data_without_a_replica_are_never_left_out_silently(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """GET and POST are 503 while the replica is expected back; then GET names the database, and POST is 404."""
    monkeypatch.setenv("VALUES_PROCESSES", "1")
    async with node(MeshSettings(redis=server.settings, lease_ttl_ms=600)) as one:
        async with killed(server, missing_ms=2000) as two:
            assert await post(one, [item(6, "A"), item(10, "B")]) == (
                200,
                [{"value": 6, "prime_factors": [2, 3]}, {"value": 10, "prime_factors": [2, 5]}],
            )
            number = two.replica.database
        for _ in range(2):  # one that waits for the row to end, one that is refused at once
            response = await one.public.get("/values/2")
            assert (response.status_code, response.headers["Retry-After"]) == (503, "1")
            assert json.loads(await response.get_data())["missing"] == [number]
        response = await one.public.post("/values", json=[item(10, "B")])
        assert (response.status_code, response.headers["Retry-After"]) == (503, "1")
        job = await one.public.post("/values", json=[item(10, "B")], headers={"Prefer": "respond-async"})
        assert job.status_code == 503
        assert await get(one, "/classes") == (200, ["A", "B"])

        async def is_given_up() -> bool:
            return (await get(one, "/classes"))[1] == ["A"]

        await eventually(is_given_up, 5)
        response = await one.public.get("/values/2")
        assert (response.status_code, response.headers["Missing-Databases"]) == (200, str(number))
        assert json.loads(await response.get_data()) == [{"value": 6, "prime_factors": [2, 3]}]
        response = await one.public.get("/values/2", headers={"Prefer": "Handling=Strict"})
        assert (response.status_code, response.headers["Retry-After"]) == (503, "30")
        assert json.loads(await response.get_data())["missing"] == [number]
        assert (await post(one, [item(10, "B")]))[0] == 404
        assert (await post(one, [item(10, "B")], Prefer="respond-async"))[0] == 404
        metrics = await (await one.private.get("/metrics")).get_data(as_text=True)
        assert "mesh_missing_databases 1.0" in metrics
        page = await (await one.private.get("/mesh")).get_data(as_text=True)
        assert f"Missing databases: <b>{number}</b>" in page


async def test_other_methods_are_405(nodes: list[Node]) -> None:
    """The answer says which methods are allowed."""
    for path, allowed in (("/values", "POST"), ("/classes", "GET"), ("/values/7", "GET")):
        response = await nodes[0].public.delete(path)
        assert response.status_code == 405 and allowed in response.headers["Allow"]


async def test_a_clock_that_steps_back_ends_no_value_early(nodes: list[Node], server: Server) -> None:
    """After a step of a minute, some streams have entries from after the step, and others have none."""
    with server.redis() as admin:
        seconds, _ = admin.time()
        ahead = (seconds + 60) * 1000
        admin.set("mesh:clock", ahead)
        for node_ in nodes:
            stream = f"mesh:requests:db{node_.replica.database}"
            admin.xdel(stream, admin.xadd(stream, {"op": "open"}, id=f"{ahead}-0"))
        assert (await post(nodes[0], [item(15, "A", ttl=30), item(21, "B", ttl=2)]))[0] == 200
        for one in nodes:
            assert [found["value"] for found in (await get(one, "/values/3"))[1]] == [15, 21]
        assert int(admin.get("mesh:clock")) == ahead, "time stands still"


async def test_time_does_not_go_back_behind_the_latest_request(nodes: list[Node], server: Server) -> None:
    """The ids of requests of all streams, those of commits too, are in the order of their submission."""
    with server.redis() as admin:
        assert (await post(nodes[0], [item(15, "A")]))[0] == 200
        before = int(admin.get("mesh:clock"))
        assert (await post(nodes[0], [item(15, "B")]))[0] == 200
        place = admin.get("shared:values:where:15")
        assert before <= int(place.split(" ")[2].partition("-")[0]) <= int(admin.get("mesh:clock"))
