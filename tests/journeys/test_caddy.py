"""Three real replicas behind a real Caddy, with the Caddyfile that is deployed."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import subprocess
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import pytest

from quart_app.local.caddy import CADDYFILE, START_S, Site, balancer, find_caddy
from quart_app.local.errors import LocalError
from quart_app.local.ports import free_port
from quart_app.local.processes import Supervisor
from tests.support.load import History, load, send
from tests.support.replicas import Process, Replicas
from tests.support.waiting import eventually

pytestmark = pytest.mark.skipif(find_caddy() is None, reason="no Caddy here")

DRAINING = {"DRAIN_MS": "2000"}
BY_NAME = {**DRAINING, "LISTEN_WHEN_READY": "1"}
NAME = "replicas.example"

Front = Callable[[list[Process]], Awaitable[str]]


def address(process: Process) -> str:
    return process.public.removeprefix("http://")


@asynccontextmanager
async def behind(processes: list[Process]) -> AsyncIterator[httpx.AsyncClient]:
    """The replicas behind the balancer of `mesh up`: listed, and watched."""
    port = free_port()
    limits = httpx.Limits(max_keepalive_connections=0)
    async with balancer(Supervisor(print), Site(port, [address(each) for each in processes])):
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=30, limits=limits) as client:
            await eventually(lambda: leads_to(client, len(processes)), 15)
            yield client


async def leads_to(client: httpx.AsyncClient, count: int) -> bool:
    """Return whether Caddy balances over exactly this many replicas."""
    answers = [await client.get("/readyz") for _ in range(4 * count)]
    return len({answer.json()["replica"] for answer in answers if answer.status_code == 200}) == count


async def classes_without(processes: list[Process], gone: Process) -> list[str]:
    """Classes that are still there when one replica is gone."""
    async with httpx.AsyncClient(timeout=10) as client:
        answers = [(await client.get(each.private + "/readyz")).json() for each in processes if each is not gone]
    return sorted({answer["class"] for answer in answers})


async def wait_for_more(history: History, count: int = 100) -> None:
    """Wait until the load has had this many more answers."""
    wanted = len(history.samples) + count

    async def enough() -> bool:
        return len(history.samples) >= wanted

    await eventually(enough, 20)


async def test_the_examples_of_the_task_through_the_balancer_at_every_replica(replicas: Replicas) -> None:
    """One address, three replicas, the same answer from each."""
    items = [{"value": 144, "ttl": 300, "cls": "A"}, {"value": 120, "ttl": 600, "cls": "C"}]
    async with behind(await replicas(3)) as client:
        answer = await client.post("/values", json=items)
        assert answer.json() == [
            {"value": 144, "prime_factors": [2, 2, 2, 2, 3, 3]},
            {"value": 120, "prime_factors": [2, 2, 2, 3, 5]},
        ]
        for _ in range(9):
            found = (await client.get("/values/5")).json()
            assert found == [{"value": 120, "prime_factors": [2, 2, 2, 3, 5]}]


async def test_what_is_private_cannot_be_reached_through_it(replicas: Replicas) -> None:
    """The metrics are there, on the private port, and nowhere else."""
    processes = await replicas(1)
    async with behind(processes) as client:
        assert await replicas.status(processes[0], "/metrics") == 200
        assert (await client.get("/metrics")).status_code == 404


@pytest.mark.slow
async def test_a_replica_that_is_told_to_stop_under_load_costs_no_request(replicas: Replicas) -> None:
    """SIGTERM to each in turn, while the others serve: every GET and every POST is answered with 200."""
    processes = await replicas(3, DRAINING)
    leaving = processes[0]
    classes = await classes_without(processes, leaving)
    async with behind(processes) as client, load(str(client.base_url), classes) as history:
        await wait_for_more(history)
        leaving.send(signal.SIGTERM)
        assert await leaving.ended(20) == 0
        await wait_for_more(history)
    assert history.failed("GET") == history.failed("POST") == [], history.says()


@pytest.mark.slow
async def test_a_killed_replica_costs_no_get_and_only_the_posts_it_held(replicas: Replicas) -> None:
    """SIGKILL: GETs are tried again elsewhere; a POST that was in flight there is 502, and safe to repeat."""
    processes = await replicas(3, DRAINING)
    killed = processes[0]
    classes = await classes_without(processes, killed)
    async with behind(processes) as client:
        async with load(str(client.base_url), classes) as history:
            await wait_for_more(history)
            killed.kill()
            await wait_for_more(history)
        assert history.failed("GET") == [], history.says()
        await only_what_it_held(client, history)


async def only_what_it_held(client: httpx.AsyncClient, history: History) -> None:
    failed = history.failed("POST")
    assert len(failed) <= 4, history.says()
    assert {sample.status for sample in failed} <= {502}, history.says()
    for sample in failed:
        assert (await send(client, "POST", "/values", sample.body)).ok


async def test_a_replica_that_is_not_ready_gets_nothing(replicas: Replicas) -> None:
    """A replica without a database answers /readyz with 503, and the balancer looks."""
    processes = await replicas(2, {"MESH_DATABASES": "2"})
    waiting = replicas.spawn({"MESH_DATABASES": "2"})
    await eventually(lambda: lives(replicas, waiting), 20)
    port = free_port()
    async with balancer(Supervisor(print), Site(port, [address(each) for each in (*processes, waiting)])):
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=30) as client:
            await eventually(lambda: leads_to(client, 2), 15)
            samples = [await send(client, "GET", "/classes") for _ in range(30)]
    assert {sample.status for sample in samples} == {200}


async def lives(replicas: Replicas, process: Process) -> bool:
    return await replicas.status(process, "/health") == 200


@pytest.mark.parametrize("size", [3 << 20, 17 << 20], ids=["for-the-application", "for-the-balancer"])
async def test_a_body_too_large_is_told_so(replicas: Replicas, size: int) -> None:
    """Caddy or the replica answers 413 as a problem, while the client is still sending."""
    async with behind(await replicas(1)) as client:
        reader, writer = await asyncio.open_connection(client.base_url.host, client.base_url.port)
        head = f"POST /values HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {size}"
        writer.write(head.encode() + b"\r\n\r\n" + b" " * size)
        async with asyncio.timeout(10):
            said = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
        writer.close()
    assert said.split()[1] == "413"
    assert "content-type: application/problem+json" in said


#: (method, path, content type, length, status) of requests that are answered while their body is still on its way
EARLY = [
    ("POST", "/addr_by_phone", "application/json", 3 << 20, 413),
    ("POST", "/messages", "application/json", 20, 401),
    ("POST", "/nowhere", "application/json", 20, 404),
    ("PUT", "/values", "application/json", 200_000, 405),
    ("POST", "/values", "text/plain", 20, 415),
]
PAIRS, PEOPLE = 1000, 8
LATE_S = 0.01


async def answered_early(base_url: httpx.URL, method: str, path: str, kind: str, length: int) -> int:
    """The status of a request whose body follows its head after `LATE_S`."""
    reader, writer = await asyncio.open_connection(base_url.host, base_url.port)
    head = f"{method} {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: {kind}\r\nContent-Length: {length}\r\n\r\n"
    try:
        writer.write(head.encode())
        await asyncio.sleep(LATE_S)
        writer.write(b" " * length)
        async with asyncio.timeout(15):
            return int((await reader.readline()).split()[1])
    finally:
        writer.transport.abort()


@pytest.mark.slow
@pytest.mark.timeout(300)
async def test_an_answer_before_the_body_costs_the_next_request_nothing(replicas: Replicas) -> None:
    """Row 34: Caddy keeps connections to replicas, and none of those that it keeps may be about to close."""
    processes = await replicas(1, {"SERVICES": "values,addresses,messages"})
    found: Counter[tuple[str, int, int]] = Counter()
    async with behind(processes) as client:
        classes = (await client.get("/classes")).json()

        async def person(number: int) -> None:
            for pair in range(number, PAIRS, PEOPLE):
                method, path, kind, length, expected = EARLY[pair % len(EARLY)]
                status = await answered_early(client.base_url, method, path, kind, length)
                found[f"{method} {path}", expected, status] += 1
                posted = await client.post("/values", json=[{"value": 2 + pair, "ttl": 60, "cls": classes[0]}])
                found["POST after it", 200, posted.status_code] += 1

        async with asyncio.TaskGroup() as people:
            for number in range(PEOPLE):
                people.create_task(person(number))
    assert not {kind: count for kind, count in found.items() if kind[1] != kind[2]}
    assert found.total() == 2 * PAIRS


async def test_without_a_replica_it_answers_with_a_problem() -> None:
    """503 and when to come back, in the application's own form."""
    port = free_port()
    nobody = Site(port, [f"127.0.0.1:{free_port()}"])
    async with balancer(Supervisor(print), nobody), httpx.AsyncClient(timeout=30) as client:
        answer = await client.get(f"http://127.0.0.1:{port}/classes")
    assert (answer.status_code, answer.headers["content-type"]) == (503, "application/problem+json")
    assert (answer.json()["status"], answer.headers["retry-after"]) == (503, "1")
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert "frame-ancestors 'none'" in answer.headers["content-security-policy"]


async def test_a_port_that_is_taken_is_an_error_even_by_another_caddy() -> None:
    """Two Caddys would share the port in silence, each with half of the requests."""
    port = free_port()
    async with balancer(Supervisor(print), Site(port, ["127.0.0.1:1"])):
        with pytest.raises(LocalError, match="in use"):
            async with balancer(Supervisor(print), Site(port, ["127.0.0.1:1"])):
                pass


async def test_a_caddy_that_does_not_start_is_an_error_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The error comes at once, not after a time-out."""
    broken = tmp_path / "Caddyfile"
    broken.write_text("{\n\tno_such_option\n}\n")
    monkeypatch.setattr("quart_app.local.caddy.CADDYFILE", broken)
    async with asyncio.timeout(START_S / 2):
        with pytest.raises(LocalError, match="does not listen"):
            async with balancer(Supervisor(print), Site(free_port(), ["127.0.0.1:1"])):
                pass


# Found by name: three loopback addresses, one name, in a private view of /etc/hosts.


def can_have_hosts_of_its_own() -> bool:
    """Whether a process may be given a mount namespace."""
    try:
        return subprocess.run(["unshare", "--map-root-user", "--mount", "true"], check=False).returncode == 0
    except FileNotFoundError:
        return False


@asynccontextmanager
async def behind_a_name(folder: Path, upstream_port: int, hosts: list[str]) -> AsyncIterator[httpx.AsyncClient]:
    """Caddy as in containers: one name, whatever addresses it has."""
    table = folder / "hosts"
    table.write_text("".join(f"{host} {NAME}\n" for host in hosts))
    port = free_port()
    script = 'mount --bind "$0" /etc/hosts && exec "$@"'
    environment = {
        "PATH": os.environ["PATH"], "HOME": str(folder), "SITE": f"http://:{port}", "BIND": "127.0.0.1",
        "UPSTREAM_HOST": NAME, "UPSTREAM_PORT": str(upstream_port), "GRACE_PERIOD": "2s",
    }  # fmt: skip
    process = await asyncio.create_subprocess_exec(
        "unshare", "--map-root-user", "--mount", "sh", "-c", script, table,
        str(find_caddy()), "run", "--config", CADDYFILE, "--adapter", "caddyfile",
        env=environment,
        stderr=asyncio.subprocess.DEVNULL,
    )  # fmt: skip
    limits = httpx.Limits(max_keepalive_connections=0)
    try:
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=30, limits=limits) as client:
            await eventually(lambda: answers(client), 15)
            yield client
    finally:
        process.terminate()
        await asyncio.wait_for(process.wait(), 10)


async def at_address(replicas: Replicas, host: str, port: int) -> Process:
    """A ready replica as in a container: an address of its own, the port that all have."""
    process = replicas.spawn({**BY_NAME, "HOST": host, "PORT": str(port)})
    process.private = process.private.replace("127.0.0.1", host)
    await replicas.ready(process)
    return process


async def answers(client: httpx.AsyncClient) -> bool:
    return (await send(client, "GET", "/readyz")).ok


async def test_a_public_port_may_open_no_earlier_than_ready(replicas: Replicas) -> None:
    """A replica without a lease refuses connections, so a balancer that only tries the port sends it nothing."""
    only_one = {**BY_NAME, "MESH_DATABASES": "1"}
    (holder,) = await replicas(1, only_one)
    waiting = replicas.spawn(only_one)
    await eventually(lambda: lives(replicas, waiting), 20)
    with pytest.raises(httpx.ConnectError):
        await replicas.client.get(waiting.public + "/health")
    holder.kill()
    await replicas.ready(waiting)
    assert (await replicas.client.get(waiting.public + "/readyz")).status_code == 200


def older_than_2_7() -> bool:
    """Such a Caddy loses the body of a POST with a refused connection."""
    said = subprocess.run([str(find_caddy()), "version"], capture_output=True, text=True, check=False).stdout
    version = re.search(r"(\d+)\.(\d+)", said)
    return version is None or (int(version[1]), int(version[2])) < (2, 7)


@pytest.mark.slow
@pytest.mark.skipif(find_caddy() is not None and older_than_2_7(), reason="found by name needs Caddy 2.7")
@pytest.mark.skipif(not can_have_hosts_of_its_own(), reason="no private mount namespace here")
async def test_found_by_name_a_mesh_grows_and_shrinks_under_load_without_a_failed_request(
    replicas: Replicas, tmp_path: Path
) -> None:
    """There are no health checks: a replica listens once it is ready, and stops listening without a reset."""
    hosts = ["127.0.1.1", "127.0.1.2", "127.0.1.3"]
    port = free_port()
    first, second = [await at_address(replicas, host, port) for host in hosts[:2]]
    classes = await classes_without([first, second], first)
    async with behind_a_name(tmp_path, port, hosts) as client:
        async with load(str(client.base_url), classes) as history:
            await wait_for_more(history)
            await at_address(replicas, hosts[2], port)
            await eventually(lambda: leads_to(client, 3), 15)
            first.send(signal.SIGTERM)
            assert await first.ended(20) == 0
            await wait_for_more(history)
    assert history.failed("GET") == history.failed("POST") == [], history.says()
