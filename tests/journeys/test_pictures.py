"""docs/pictures is made here, from a real mesh: PICTURES=docs/pictures pytest tests/journeys/test_pictures.py."""

from __future__ import annotations

import asyncio
import contextlib
import json
import math
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from playwright.async_api import Browser, expect

from mesh import keys
from quart_app.movements.producer import sample
from tests.support.browser import needs_chromium, tab
from tests.support.providers import providers
from tests.support.replicas import Process, Replicas
from tests.support.waiting import eventually

pytestmark = [needs_chromium, pytest.mark.slow]

PASSWORD = "correct horse"
ANN = {"email": "ann@example.com", "password": "correct horse"}
#: Two primes of 40 digits: a job that lasts.
HARD = (10**39 + 3) * (10**40 + 121)


@contextlib.asynccontextmanager
async def a_mesh(replicas: Replicas, folder: Path) -> AsyncIterator[list[Process]]:
    """Four replicas with all services, dead letters, a job at work, messages, grades, movements, and its books."""
    async with providers(limit=10, block_s=60, latency_ms=0) as both:
        env = {
            **both.env, "SERVICES": "values,addresses,messages,grades,movements", "PAGE_PASSWORD": PASSWORD,
            "MOVEMENTS_DB_PATH": str(folder / "movements.db"), "GRADES_SNAPSHOT_DIR": str(folder / "grades"),
        }  # fmt: skip
        processes = [replicas.spawn({**env, "MESH_CLASS": cls}) for cls in "ABCA"]
        for process in processes:
            await replicas.ready(process, 120)
        client, one = replicas.client, processes[0]
        with replicas.server.redis() as admin:
            letter = {"kind": "event", "reason": "ValueError: no such warehouse", "stream": "events:stock"}
            for number in range(3):
                admin.xadd(keys.DEAD, {**letter, "deliveries": "3", "body": f'{{"product": {number}, "count": -1}}'})
            for message in sample():
                admin.xadd("events:movements", {"body": json.dumps(message)})
            write_minutes(admin)
        for number in range(40):
            grade = {"user_id": f"user-{number}", "spp": number % 9}

            async def is_set(grade: dict[str, Any] = grade) -> bool:
                answer = await client.post(f"{one.private}/set", json=grade, auth=("grades", "grades"))
                return answer.status_code == 200

            await eventually(is_set, 60)
        await client.post(f"{one.public}/auth/register", json=ANN)
        session = (await client.post(f"{one.public}/auth/login", json=ANN)).headers["Set-Cookie"].partition(";")[0]
        for _ in range(3):
            await client.post(f"{one.public}/messages", json={"message": "hello"}, headers={"Cookie": session})
        easy = [{"value": 10**9 + k, "ttl": 600, "cls": "ABC"[k % 3]} for k in range(5)]
        for items in (easy, [{"value": HARD, "ttl": 600, "cls": "B"}, *easy]):
            posted = await client.post(f"{one.public}/values", json=items, headers={"Prefer": "respond-async"})
            assert posted.status_code in (200, 202), posted.text
        yield processes


def write_minutes(admin: Any) -> None:
    """Write the books of the last hour: a mesh that has just begun has none."""
    seconds, _ = admin.time()
    admin.delete(keys.MINUTES)
    per_minute = [int(420 + 160 * math.sin(ago / 9) + 70 * math.sin(ago * 1.7)) for ago in range(61, 0, -1)]
    answered = -sum(per_minute)
    for ago, count in zip(range(61, 0, -1), per_minute, strict=True):
        answered += count
        admin.xadd(keys.MINUTES, {"answered": answered}, id=f"{(seconds - seconds % 60 - 60 * ago) * 1000}-0")


@pytest.mark.timeout(400)
async def test_every_view_has_a_picture(chromium: Browser, replicas: Replicas, tmp_path: Path) -> None:
    """The landing page, each view of the live page, one request, and the overview on a phone in the dark."""
    folder = Path(os.environ.get("PICTURES", tmp_path))
    async with a_mesh(replicas, tmp_path) as processes:
        one = processes[0]

        async def load() -> None:
            for number in range(2000):
                items = [{"value": 10**12 + 4 * number + k, "ttl": 60, "cls": cls} for k, cls in enumerate("ABC")]
                await replicas.client.post(f"{processes[number % 4].public}/values", json=items)
                await asyncio.sleep(0.03)

        loading = asyncio.create_task(load())
        async with tab(chromium, operator=PASSWORD) as opened:
            page = opened.page
            await page.goto(one.public)
            await page.get_by_role("button", name="Factorise").click()
            await expect(page.locator("#answer")).to_be_visible()
            await page.get_by_role("button", name="Find").click()
            await expect(page.locator("#found")).to_be_visible()
            await page.screenshot(path=folder / "landing.png", full_page=True)
            await page.goto(f"{one.private}/mesh/sign-in")
            for name in ("overview", "streams", "requests", "dead", "services"):
                await page.goto(one.private + ("/mesh" if name == "overview" else f"/mesh/{name}"))
                await asyncio.sleep(8 if name == "overview" else 2)
                if name == "services":
                    await expect(page.locator("#panel-jobs")).to_contain_text("running")
                await page.screenshot(path=folder / f"{name}.png", full_page=True)
            found = await replicas.client.get(f"{one.public}/values/3", headers={"X-Request-Id": "picture"})
            assert found.status_code == 200
            await page.goto(f"{one.private}/mesh/requests?request=picture")
            await expect(page.locator(".lane")).to_have_count(4)
            await page.locator("#newest").evaluate("section => section.remove()")
            await page.screenshot(path=folder / "request.png", full_page=True)
        async with tab(chromium, width=360, scheme="dark") as opened:
            await opened.page.goto(f"{one.private}/mesh")
            await asyncio.sleep(2)
            await opened.page.screenshot(path=folder / "overview-phone.png", full_page=True)
        loading.cancel()
