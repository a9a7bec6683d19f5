"""The contract of the providers, over HTTP and as processes."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from email.utils import parsedate_to_datetime

import httpx
import pytest

from quart_app.providers import commands
from quart_app.providers.simulator import Provider, create_app
from quart_app.providers.window import Window


def free(**changes: object) -> Provider:
    return Provider("free", Window(limit=2, block_s=30), latency_s=0, **changes)  # type: ignore[arg-type]


async def test_a_blocked_provider_answers_429() -> None:
    """Retry-After has whole seconds, rounded up."""
    client = create_app(free()).test_client()
    answers = [await client.post("/", json={"message": f"m{n}"}) for n in range(3)]
    assert [answer.status_code for answer in answers] == [200, 200, 429]
    assert (await answers[0].get_json())["provider"] == "free"
    assert answers[2].headers["Retry-After"] == "30"


async def test_retry_after_can_be_a_date() -> None:
    """RFC 9110 allows both forms."""
    client = create_app(free(retry_after_form="date")).test_client()
    answers = [await client.post("/", json={"message": f"m{n}"}) for n in range(3)]
    until = parsedate_to_datetime(answers[2].headers["Retry-After"]).timestamp()
    assert 28 <= until - time.time() <= 31


async def test_the_limit_holds_for_concurrent_requests() -> None:
    """A request counts when it is received, not when it is answered."""
    provider = Provider("free", Window(limit=5, block_s=30), latency_s=0.05)
    client = create_app(provider).test_client()
    answers = await asyncio.gather(*(client.post("/", json={"message": f"m{n}"}) for n in range(20)))
    assert sorted(answer.status_code for answer in answers) == [200] * 5 + [429] * 15
    assert (provider.taken, provider.refused) == (5, 15)


async def test_calls_lists_the_requests() -> None:
    """Requests are in order, each with its outcome; a message that is not valid does not count."""
    client = create_app(free()).test_client()
    for n in range(3):
        await client.post("/", json={"message": f"m{n}"})
    assert (await client.post("/", json={"message": ""})).status_code == 422
    shown = await (await client.get("/calls")).get_json()
    assert (shown["taken"], shown["refused"]) == (2, 1)
    assert [(call["message"], call["outcome"]) for call in shown["calls"]] == [
        ("m0", "taken"),
        ("m1", "taken"),
        ("m2", "refused"),
    ]


async def test_the_paid_provider_accepts_every_request() -> None:
    """The paid provider has no window."""
    client = create_app(Provider("paid", latency_s=0)).test_client()
    answers = [await client.post("/", json={"message": "m"}) for _ in range(30)]
    assert {answer.status_code for answer in answers} == {200}


@pytest.mark.parametrize("kind", ["free", "paid"])
async def test_a_provider_runs_as_a_process_until_sigterm(kind: str) -> None:
    """The test runs the command of a local mesh at any free port. SIGTERM ends it with status 0."""
    process = await asyncio.create_subprocess_exec(
        *commands(free_port=0, paid_port=0)[kind],
        stdout=asyncio.subprocess.PIPE,
        env=os.environ | {"PYTHONUNBUFFERED": "1"},
    )
    try:
        assert process.stdout is not None
        line = (await asyncio.wait_for(process.stdout.readline(), 20)).decode()
        async with httpx.AsyncClient(timeout=5) as client:
            answer = await client.post(line.split()[-1], json={"message": "hello"})
        assert answer.json()["provider"] == kind
        process.send_signal(signal.SIGTERM)
        assert await asyncio.wait_for(process.wait(), 10) == 0
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
