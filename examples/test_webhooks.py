"""The webhook receiver: each payment counts once, however often it is posted."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
from quart import Quart

from examples.webhooks import create_app, payments, sign, total
from mesh.testing import MeshKit

SECRET = b"s3cret"


@pytest.fixture
async def kit() -> AsyncIterator[MeshKit]:
    async with MeshKit(payments, replicas=2, classes="A") as kit:
        yield kit


@pytest.fixture
async def app(kit: MeshKit) -> AsyncIterator[Quart]:
    async with kit.connect() as client:
        yield create_app(client, SECRET)


async def post(app: Quart, event: str, cents: int = 100) -> tuple[int, str]:
    body = f'{{"event":"{event}","cents":{cents}}}'.encode()
    answer = await app.test_client().post("/payments", data=body, headers={"X-Signature": sign(SECRET, body)})
    return answer.status_code, await answer.get_data(as_text=True)


async def test_a_payment_that_is_posted_often_counts_once(kit: MeshKit, app: Quart) -> None:
    """Both replicas get repetitions at the same time, and answers are lost."""
    kit.lose_answers(5)
    posted = await asyncio.gather(*(post(app, "e1") for _ in range(10)))
    assert posted == [(200, "100")] * 10
    assert await post(app, "e2") == (200, "200")
    assert await post(app, "e1") == (200, "100")
    assert await kit[0].call(total) == 200


async def test_an_event_is_remembered_for_a_day(kit: MeshKit, app: Quart) -> None:
    """Later ones remove it."""
    for event in ("e1", "e2", "e3"):
        await post(app, event)
    await kit.advance(hours=23)
    assert await post(app, "e1") == (200, "100")
    await kit.advance(hours=2)
    await post(app, "e4")
    assert await kit.redis().hlen("shared:payments:answers") == 1


async def test_a_stranger_cannot_pay(kit: MeshKit, app: Quart) -> None:
    """Without the signature nothing is asked of the mesh; a body that is none of ours is refused."""
    answer = await app.test_client().post("/payments", data=b"{}", headers={"X-Signature": "guessed"})
    assert answer.status_code == 401
    body = b'{"event":1}'
    answer = await app.test_client().post("/payments", data=body, headers={"X-Signature": sign(SECRET, body)})
    assert answer.status_code == 422
    assert kit.committed == []


async def test_without_a_replica_the_provider_is_asked_to_come_back(kit: MeshKit, app: Quart) -> None:
    """It repeats what is answered with 503."""
    await kit.stop(0)
    await kit.stop(1)
    await kit.advance(seconds=10)
    assert (await post(app, "e1"))[0] == 503
