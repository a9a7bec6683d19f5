"""What the compose stack must do, shown on one that runs: `make containers`.

COMPOSE is the command that controls it. Three replicas are up when this begins. Names of steps run these steps only.
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable

import httpx

from tests.support.load import PATIENCE_S, History, load, send

BASE = f"http://127.0.0.1:{os.environ.get('HTTP_PORT', '8000')}"
PRIVATE = f"http://127.0.0.1:{os.environ.get('OPERATORS_PORT', '8001')}"
#: Longest time for a scaled stack to be what was asked for.
SETTLED_S = 90.0


def say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


async def shell(command: str) -> str:
    """Run a command and return its output. Raises CalledProcessError after printing its errors."""

    def run() -> str:
        done = subprocess.run(command, shell=True, capture_output=True, text=True, timeout=240, check=False)
        if done.returncode:
            sys.stderr.write(done.stderr)
            done.check_returncode()
        return done.stdout

    return await asyncio.to_thread(run)


async def compose(command: str) -> str:
    """Run a compose command."""
    return await shell(f"{os.environ['COMPOSE']} {command}")


async def container(index: int) -> str:
    """Return the id of a replica's container: compose knows services, the engine knows containers."""
    return (await compose(f"exec -T --index {index} api cat /etc/hostname")).strip()


async def identity(index: int) -> dict[str, str]:
    """Return replica, database and class of a container, from its own /readyz."""
    script = "import urllib.request as u;print(u.urlopen('http://127.0.0.1:8001/readyz').read().decode())"
    found: dict[str, str] = json.loads(await compose(f'exec -T --index {index} api python -c "{script}"'))
    return found


async def ready(client: httpx.AsyncClient) -> set[str]:
    """Return the replicas that Caddy sends requests to."""
    answers = [await client.get("/readyz") for _ in range(30)]
    return {answer.json()["replica"] for answer in answers if answer.status_code == 200}


async def until_ready(client: httpx.AsyncClient, count: int) -> None:
    until = time.monotonic() + SETTLED_S
    while len(found := await ready(client)) != count:
        assert time.monotonic() < until, f"{len(found)} replicas after {SETTLED_S} s, not {count}"
        await asyncio.sleep(0.2)


async def examples(client: httpx.AsyncClient) -> None:
    """The examples of the task text give exactly its answers."""
    items = [{"value": 144, "ttl": 300, "cls": "A"}, {"value": 120, "ttl": 600, "cls": "C"}]
    assert (await client.get("/classes")).json() == ["A", "B", "C"]
    posted = await client.post("/values", json=items)
    both = [
        {"value": 144, "prime_factors": [2, 2, 2, 2, 3, 3]},
        {"value": 120, "prime_factors": [2, 2, 2, 3, 5]},
    ]
    assert (posted.status_code, posted.json()) == (200, both)
    for _ in range(9):
        assert (await client.get("/values/5")).json() == both[1:]
    missing = await client.post("/values", json=[{"value": 7, "ttl": 300, "cls": "D"}])
    assert (missing.status_code, missing.headers["content-type"]) == (404, "application/problem+json")


async def privacy(client: httpx.AsyncClient) -> None:
    """Routes of the private port cannot be reached at the public address."""
    assert (await client.get("/metrics")).status_code == 404


async def operators(client: httpx.AsyncClient) -> None:
    """Operators reach grades and metrics on the host's loopback address, with the generated password alone."""
    password = await compose("exec -T api cat /run/secrets/grades_password")
    async with httpx.AsyncClient(base_url=PRIVATE, timeout=PATIENCE_S) as private:
        assert (await private.get("/metrics")).status_code == 200
        record = {"user_id": "alice", "spp": 5}
        assert (await private.post("/set", json=record, auth=("grades", "grades"))).status_code == 401
        assert (await private.post("/set", json=record, auth=("grades", password))).status_code == 200


async def secrets(client: httpx.AsyncClient) -> None:
    """No process list shows the Redis password, and without it Redis answers nobody."""
    password = await compose("exec -T api cat /run/secrets/redis_password")
    assert len(password) == 48
    for service in ("redis", "api", "caddy"):
        assert password not in await compose(f"exec -T {service} cat /proc/1/cmdline")


async def spread(client: httpx.AsyncClient) -> None:
    """All three replicas get requests, and `mesh status` in any of them knows them all."""
    status = json.loads(await compose("exec -T --index 2 api mesh status --json"))
    assert {row["replica"] for row in status} == await ready(client)
    assert len({row["database"] for row in status}) == 3


async def memory(client: httpx.AsyncClient) -> None:
    """A replica uses jemalloc: the library is mapped and Python's own allocator is off."""
    assert "libjemalloc" in await compose("exec -T --index 1 api cat /proc/1/maps")
    assert "PYTHONMALLOC=malloc" in (await compose("exec -T --index 1 api cat /proc/1/environ")).split("\0")


async def scaling(client: httpx.AsyncClient) -> None:
    """Scaling 3 -> 5 -> 2 under load fails no request."""
    classes = sorted({(await identity(index))["class"] for index in (1, 2)})
    async with load(BASE, classes) as history:
        for count in (5, 2):
            await compose(f"up --detach --no-build --no-recreate --scale api={count}")
            await until_ready(client, count)
    say(f"  scaled 3 -> 5 -> 2: {history.says()}")
    assert history.failed("GET") == history.failed("POST") == [], history.failed("POST")
    assert min(len(history.succeeded(method)) for method in ("GET", "POST")) > 100


async def killing(client: httpx.AsyncClient) -> None:
    """After SIGKILL only POSTs in flight at the dead replica fail; repeating those is safe.

    The dead replica's database may hold data: then GETs are 503 while its holder is expected back, and nothing else.
    """
    await compose("up --detach --no-build --no-recreate --scale api=3")
    await until_ready(client, 3)
    classes = sorted({(await identity(index))["class"] for index in (1, 2)} - {(await identity(3))["class"]})
    async with load(BASE, classes) as history:
        await asyncio.sleep(2)
        await shell(f"docker kill {await container(3)}")
        await until_ready(client, 2)
        await asyncio.sleep(2)
    say(f"  killed one of 3: {history.says()}")
    assert [sample for sample in history.failed("GET") if sample.status != 503] == []
    await in_flight_only(client, history)


async def replacing(client: httpx.AsyncClient) -> None:
    """Replacing one replica after the other under load fails no request."""
    await compose("up --detach --no-build --no-recreate --scale api=3")
    await until_ready(client, 3)
    async with load(BASE, [(await identity(1))["class"]]) as history:
        for index in (3, 2):
            name = await container(index)
            await shell(f"docker stop {name} && docker rm {name}")
            await compose("up --detach --no-build --no-recreate --wait api")
            await until_ready(client, 3)
    say(f"  replaced two of 3: {history.says()}")
    assert history.failed("GET") == history.failed("POST") == [], history.failed("POST")


async def in_flight_only(client: httpx.AsyncClient, history: History) -> None:
    failed = history.failed("POST")
    assert len(failed) <= 4, "more than there were clients"
    assert [sample for sample in failed if sample.status != 502] == []
    for sample in failed:
        assert (await send(client, "POST", "/values", sample.body)).ok


async def durability(client: httpx.AsyncClient) -> None:
    """Acknowledged data are there after `down` (without -v) and `up`, in databases of the same classes."""
    before = (await client.get("/classes")).json()
    address = {"phone": "+79111234567", "address": "Nevsky prospekt 1, Saint Petersburg"}
    item = {"value": 9_699_690, "ttl": 86_400, "cls": before[0]}
    assert (await client.post("/values", json=[item])).status_code == 200
    assert (await client.post("/addr_by_phone", json=address)).status_code == 201
    await compose("down --timeout 30")
    await compose("up --detach --no-build --wait --wait-timeout 150")
    await until_ready(client, 3)
    found = (await client.get("/values/19")).json()
    assert {"value": 9_699_690, "prime_factors": [2, 3, 5, 7, 11, 13, 17, 19]} in found
    assert (await client.get("/addr_by_phone", params={"phone": "+79111234567"})).json()["address"] == address[
        "address"
    ]
    assert set(before) <= set((await client.get("/classes")).json())


STEPS: tuple[Callable[[httpx.AsyncClient], Awaitable[None]], ...] = (
    examples,
    spread,
    privacy,
    operators,
    secrets,
    memory,
    scaling,
    killing,
    replacing,
    durability,
)


async def main(names: list[str]) -> None:
    chosen = [step for step in STEPS if not names or step.__name__ in names]
    # A connection per request: each is balanced anew.
    limits = httpx.Limits(max_keepalive_connections=0)
    async with httpx.AsyncClient(base_url=BASE, timeout=PATIENCE_S, limits=limits) as client:
        await until_ready(client, 3)
        for step in chosen:
            began = time.monotonic()
            try:
                await step(client)
            except BaseException:
                say(await compose("logs --no-color --tail 40 caddy api"))
                raise
            say(f"{step.__name__}: {(step.__doc__ or '').splitlines()[0]} ({time.monotonic() - began:.0f} s)")


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1:]))
