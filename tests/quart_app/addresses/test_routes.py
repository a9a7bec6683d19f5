"""The HTTP routes: what each accepts and answers."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import pytest
from quart.typing import TestClientProtocol as Client
from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from mesh import Busy

Make = Callable[..., Client]

ROOT = "/addr_by_phone"
HOME = {"phone": "8 (911) 123-45-67", "address": "  Nevsky 1, Saint Petersburg  "}
SHOWN = {"phone": "tel:+7-911-123-45-67", "address": "Nevsky 1, Saint Petersburg"}


async def answer(sent: Any) -> tuple[int, Any]:
    response = await sent
    return response.status_code, await response.get_json(silent=True)


async def test_a_created_record_is_read_in_any_notation(client: Client) -> None:
    """The record is found by a raw plus in the query, by path, as a tel: URI, and in other digits."""
    assert await answer(client.post(ROOT, json=HOME)) == (201, {"detail": "Created", "customer_addr": SHOWN})
    for where in (
        "?phone=+79111234567",
        "?phone=%2B7+911+123-45-67",
        "?phone=8(911)1234567",
        "?phone=tel:+7-911-123-45-67",
        "?phone=%D9%A8%D9%A9%D9%A1%D9%A1%D9%A1%D9%A2%D9%A3%D9%A4%D9%A5%D9%A6%D9%A7",
        "/+79111234567",
        "/89111234567",
        "/tel:+79111234567",
        "/8%20911%20123/45/67",
        "/?phone=89111234567",
    ):
        assert await answer(client.get(ROOT + where)) == (200, SHOWN), where


async def test_creating_twice_is_a_conflict(client: Client) -> None:
    """The first address stays, also when the second create uses another notation."""
    await client.post(ROOT, json=HOME)
    other = {"phone": "+79111234567", "address": "Another address"}
    status, problem = await answer(client.post(ROOT, json=other))
    assert (status, problem["status"]) == (409, 409)
    assert (await answer(client.get(ROOT + "/89111234567")))[1] == SHOWN


async def test_an_update_replaces_and_never_creates(client: Client) -> None:
    """The phone can be in the body or in the path."""
    changed = {"phone": "+79111234567", "address": "Another address"}
    assert (await answer(client.put(ROOT, json=changed)))[0] == 404
    await client.post(ROOT, json=HOME)
    shown = {"phone": SHOWN["phone"], "address": "Another address"}
    assert await answer(client.put(ROOT, json=changed)) == (200, {"detail": "Updated", "customer_addr": shown})
    by_path = await answer(client.put(ROOT + "/89111234567", json={"address": "A third address"}))
    assert by_path == (200, {"detail": "Updated", "customer_addr": shown | {"address": "A third address"}})
    assert (await answer(client.get(ROOT + "/89111234567")))[1]["address"] == "A third address"


async def test_path_and_body_must_name_one_phone(client: Client) -> None:
    """Another notation of the same phone is accepted; another phone is a 422."""
    await client.post(ROOT, json=HOME)
    same = {"phone": "+79111234567", "address": "Another address"}
    assert (await answer(client.put(ROOT + "/89111234567", json=same)))[0] == 200
    status, problem = await answer(client.put(ROOT + "/+442079460958", json=same))
    assert (status, problem["errors"][0]["pointer"]) == (422, "/phone")


@pytest.mark.parametrize("where", ["?phone=+79111234567", "/89111234567"])
async def test_a_deleted_address_is_gone(client: Client, where: str) -> None:
    """The answer is 204 without a body, then 404."""
    await client.post(ROOT, json=HOME)
    response = await client.delete(ROOT + where)
    assert (response.status_code, await response.get_data()) == (204, b"")
    assert (await answer(client.delete(ROOT + where)))[0] == 404
    assert (await answer(client.get(ROOT + where)))[0] == 404


@pytest.mark.parametrize(
    ("body", "pointer"),
    [
        ({"phone": "hello", "address": "Long enough"}, "/phone"),
        ({"phone": "+7 000 000 00 00", "address": "Long enough"}, "/phone"),
        ({"phone": 89111234567, "address": "Long enough"}, "/phone"),
        ({"phone": "8" * 251, "address": "Long enough"}, "/phone"),
        ({"phone": "89111234567", "address": "  too short  "}, "/address"),
        ({"phone": "89111234567", "address": "x" * 256}, "/address"),
        ({"phone": "89111234567", "address": "Long\x00enough"}, "/address"),
        ({"phone": "89111234567", "address": None}, "/address"),
        ({"phone": "89111234567"}, "/address"),
        ({"phone": "89111234567", "address": "Long enough", "more": 1}, "/more"),
        ([], ""),
    ],
)
async def test_a_field_that_is_not_valid_is_named(client: Client, body: Any, pointer: str) -> None:
    """POST and PUT answer 422 with a JSON pointer to the field."""
    for send in (client.post, client.put):
        status, problem = await answer(send(ROOT, json=body))
        assert (status, problem["errors"][0]["pointer"]) == (422, pointer)


@pytest.mark.parametrize("length", [10, 255])
async def test_an_address_of_the_shortest_and_longest_length_is_accepted(client: Client, length: int) -> None:
    """The length counts characters after trimming."""
    body = {"phone": "89111234567", "address": " " + "я" * length + " "}
    assert (await answer(client.post(ROOT, json=body)))[0] == 201


@pytest.mark.parametrize("where", ["", "?phone=", "?phone=hello", "?phone=1&phone=2", "?phone=%FF", "/hello", "/112"])
async def test_a_text_that_is_no_phone_is_422(client: Client, where: str) -> None:
    """Such a text is never answered with 404 or 500."""
    assert (await answer(client.get(ROOT + where)))[0] == 422
    assert (await answer(client.delete(ROOT + where)))[0] == 422


@pytest.mark.parametrize(("content", "status"), [(b"{", 400), (b"\xff", 400), (b'{"phone":NaN}', 400)])
async def test_a_body_that_is_no_json_is_400(client: Client, content: bytes, status: int) -> None:
    """POST and PUT give the same answer."""
    for send in (client.post, client.put):
        response = await send(ROOT, data=content, headers={"Content-Type": "application/json"})
        assert response.status_code == status


async def test_without_a_region_a_national_number_is_refused(shared: Redis, make_client: Make) -> None:
    """The error asks for the country code."""
    status, problem = await answer(make_client(shared).post(ROOT, json=HOME))
    assert status == 422
    assert "country" in problem["errors"][0]["message"]


async def test_the_prefix_is_a_setting(shared: Redis, make_client: Make) -> None:
    """ENDPOINT_PREFIX works with and without slashes."""
    client = make_client(shared, endpoint_prefix="where/is/", default_region="ru")
    assert (await answer(client.post("/where/is", json=HOME)))[0] == 201
    assert (await answer(client.get("/where/is/89111234567")))[0] == 200


async def test_a_failure_of_redis_is_503(caplog: pytest.LogCaptureFixture, make_client: Make) -> None:
    """Every route answers 503, and no log contains the phone."""
    caplog.set_level(logging.DEBUG)
    client = make_client(Redis(host="127.0.0.1", port=1, retry=Retry(NoBackoff(), 0)), default_region="RU")
    for sent in (
        client.post(ROOT, json=HOME),
        client.put(ROOT, json=HOME),
        client.put(ROOT + "/89111234567", json={"address": "Another address"}),
        client.get(ROOT + "/89111234567"),
        client.get(ROOT + "?phone=89111234567"),
        client.delete(ROOT + "/89111234567"),
    ):
        response = await sent
        assert response.status_code == 503
        assert response.headers["Retry-After"]
    assert "1234567" not in caplog.text


async def test_a_full_redis_refuses_new_addresses_and_goes_on_reading(shared: Redis, make_client: Make) -> None:
    """503 before anything is written; what is there is read and deleted."""
    assert (await answer(make_client(shared, default_region="RU").post(ROOT, json=HOME)))[0] == 201
    asked: list[int] = []

    def store_room(amount: int) -> None:
        asked.append(amount)
        raise Busy("Redis is full", retry_after=5)

    full = make_client(shared, store_room)
    new = {"phone": "+79111234568", "address": "Nevsky 2, Saint Petersburg"}
    for sent in (
        full.post(ROOT, json=new),
        full.put(f"{ROOT}/+79111234567", json={"address": "Nevsky 2, Saint Petersburg"}),
    ):
        response = await sent
        assert (response.status_code, response.headers["Retry-After"]) == (503, "5")
    assert len(asked) == 2 and min(asked) > 150
    assert (await answer(full.get(f"{ROOT}/+79111234567")))[0] == 200
    assert (await answer(full.delete(f"{ROOT}/+79111234567")))[0] == 204
    assert (await answer(full.get(f"{ROOT}/+79111234568")))[0] == 404
