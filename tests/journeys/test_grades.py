"""Grades over real HTTP, on both ports of several replicas: a change at one replica reaches all."""

from __future__ import annotations

import asyncio
import contextlib
import csv
import gzip
import itertools
import json
import re
import signal
import time
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from bench.grades import filled
from mesh.journal.position import Position
from quart_app.grades import backup
from tests.support.replicas import Process, Replicas
from tests.support.waiting import eventually

AUTH = ("keeper", "a long password")


class Mesh:
    """Replicas that serve grades, each with the disk that the test gives it."""

    def __init__(self, replicas: Replicas, folder: Path) -> None:
        self.replicas = replicas
        self.client = replicas.client
        self._folder = folder

    def disk(self, number: int) -> Path:
        return self._folder / f"disk-{number}"

    def env(self, disk: int) -> dict[str, str]:
        return {
            "SERVICES": "grades", "GRADES_USERNAME": AUTH[0], "GRADES_PASSWORD": AUTH[1],
            "GRADES_SNAPSHOT_DIR": str(self.disk(disk)), "GRADES_SNAPSHOT_EVERY": "50",
            "GRADES_FOUNDER_PATIENCE_S": "2",
        }  # fmt: skip

    async def start(self, *disks: int) -> list[Process]:
        started = [self.replicas.spawn(self.env(disk)) for disk in disks]
        for process in started:
            await self.replicas.ready(process)
        return started

    async def has_grades(self, process: Process) -> bool:
        """Return whether a replica serves grades: its other services may be ready before."""
        try:
            found = await self.replicas.client.get(f"{process.private}/readyz")
        except httpx.TransportError:
            return False
        return found.status_code == 200 and not found.json()["not_ready"]

    async def set(self, at: Process, **body: Any) -> httpx.Response:
        return await self.client.post(f"{at.private}/set", json=body, auth=AUTH)

    async def get(self, at: Process, user_id: str) -> httpx.Response:
        return await self.client.get(f"{at.public}/get", params={"user_id": user_id})

    async def head(self, at: Process) -> httpx.Headers:
        response = await self.client.head(f"{at.private}/backup", auth=AUTH)
        return response.headers if response.status_code == 200 else httpx.Headers()

    async def shows(self, at: Process, user_id: str, **fields: int) -> None:
        """Wait until a replica answers these fields."""

        async def shown() -> bool:
            response = await self.get(at, user_id)
            return response.status_code == 200 and fields.items() <= response.json().items()

        await eventually(shown, 10, lambda: f"{user_id}: {fields}")

    async def trim(self, *processes: Process) -> None:
        """Make changes until two snapshots are written and the log is trimmed behind the older one."""
        numbers = itertools.count()

        async def trimmed() -> bool:
            for _ in range(10):
                number = next(numbers)
                at = processes[number % len(processes)]
                assert (await self.set(at, user_id=f"user-{number % 60}", spp=number)).status_code == 200
            with self.replicas.server.redis() as redis:
                return int(redis.xrange("shared:grades:log", count=1)[0][1]["number"]) > 10

        await eventually(trimmed, 30)

    async def agree(self, *processes: Process) -> str:
        """Wait until all replicas have the same digest, and return it."""

        async def agreed() -> str:
            heads = [await self.head(process) for process in processes]
            found = {head.get("Backup-Digest", "") for head in heads}
            return found.pop() if len(found) == 1 else ""

        return str(await eventually(agreed, 20, lambda: str([process.log.read_text()[-800:] for process in processes])))


@pytest.fixture
def mesh(replicas: Replicas, tmp_path: Path) -> Mesh:
    return Mesh(replicas, tmp_path)


async def test_what_one_replica_is_told_another_shows(mesh: Mesh) -> None:
    """Two new replicas start without a peer; fields that are set at one are read at the other."""
    one, two = await mesh.start(1, 2)
    answer = await mesh.set(one, user_id="alice", spp=5, postpaid_limit=100)
    assert answer.status_code == 200
    assert answer.json() == {
        "user_id": "alice", "postpaid_limit": 100, "spp": 5, "shipping_fee": 0, "return_fee": 0,
    }  # fmt: skip
    await mesh.shows(two, "alice", spp=5, postpaid_limit=100)
    answer = await mesh.set(two, user_id="alice", spp=0, return_fee=-7)
    assert answer.json() == {
        "user_id": "alice", "postpaid_limit": 100, "spp": 0, "shipping_fee": 0, "return_fee": -7,
    }  # fmt: skip
    await mesh.shows(one, "alice", spp=0, return_fee=-7, postpaid_limit=100)
    assert (await mesh.get(one, "bob")).status_code == 404
    await mesh.agree(one, two)


async def test_a_third_replica_starts_from_a_backup_and_shows_everything(mesh: Mesh) -> None:
    """A replica that starts later takes the backup of any ready peer and reads the log from there."""
    one, two = await mesh.start(1, 2)
    for number in range(30):
        await mesh.set((one, two)[number % 2], user_id=f"user-{number}", spp=number)
    one.kill()
    (three,) = await mesh.start(3)
    await mesh.shows(three, "user-29", spp=29)
    await mesh.agree(two, three)
    assert "grades restored" in three.log.read_text()


async def test_a_backup_over_http_is_whole_and_says_what_it_is(mesh: Mesh) -> None:
    """A backup needs the password, has the changes of all replicas, its time and its position; any tool reads it."""
    one, two = await mesh.start(1, 2)
    await mesh.set(one, user_id="alice", spp=5)
    await mesh.shows(two, "alice", spp=5)
    assert (await mesh.client.get(f"{two.private}/backup")).status_code == 401
    assert (await mesh.client.get(f"{two.public}/backup", auth=AUTH)).status_code == 404
    answer = await mesh.client.get(f"{two.private}/backup", auth=AUTH)
    assert answer.status_code == 200 and answer.headers["Content-Type"] == "application/gzip"
    lines = gzip.decompress(answer.content).decode().splitlines()
    about = json.loads(lines[0][2:])
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", about["time"])
    assert (about["log"], str(about["number"])) == (answer.headers["Log-Identity"], answer.headers["Log-Position"])
    assert lines[2].startswith("alice,0,5,0,0,,")


async def test_restarting_everything_loses_nothing(mesh: Mesh) -> None:
    """After kill -9 of every replica and of the server (appendfsync always) each acknowledged change is there."""
    mesh.replicas.server.kill()
    mesh.replicas.server.options = ["--appendfsync", "always"]
    mesh.replicas.server.start()
    processes = await mesh.start(1, 2)
    await mesh.trim(*processes)
    digest = await mesh.agree(*processes)
    for process in processes:
        process.kill()
    mesh.replicas.server.kill()
    mesh.replicas.server.start()
    assert await mesh.agree(*await mesh.start(1, 2)) == digest


async def test_flushall_under_running_replicas_loses_nothing(mesh: Mesh) -> None:
    """A survivor founds a log that continues the lost one, and no replica loses a grade."""
    processes = await mesh.start(1, 2)
    for number in range(40):
        await mesh.set(processes[number % 2], user_id=f"user-{number}", spp=number)
    digest = await mesh.agree(*processes)
    lost = (await mesh.head(processes[0]))["Log-Identity"]
    with mesh.replicas.server.redis() as redis:
        redis.flushall()

    async def followed() -> bool:
        heads = [await mesh.head(process) for process in processes]
        return all(head.get("Log-Identity", lost) != lost for head in heads)

    await eventually(followed, 20)
    assert await mesh.agree(*processes) == digest
    await mesh.set(processes[0], user_id="user-1", spp=0)
    await mesh.shows(processes[1], "user-1", spp=0)


@pytest.mark.faults
@pytest.mark.slow
async def test_row_25_one_who_falls_behind_the_trimmed_end_heals(mesh: Mesh) -> None:
    """A replica that was stopped while the log was trimmed notices the gap and restores; the digests are equal."""
    one, two, three = await mesh.start(1, 2, 3)
    await mesh.set(one, user_id="alice", spp=1)
    await mesh.agree(one, two, three)
    three.send(signal.SIGSTOP)
    await mesh.trim(one, two)
    three.send(signal.SIGCONT)
    # It slept through its lease, too: its membership ended, and the same process joins anew.
    await mesh.replicas.ready(three)
    await mesh.agree(one, two, three)
    assert three.popen.poll() is None
    await mesh.shows(three, "user-1", spp=(await mesh.get(one, "user-1")).json()["spp"])


@pytest.mark.faults
@pytest.mark.slow
@pytest.mark.parametrize("spoil", ["truncate", "flip", "kill"])
async def test_row_26_a_bad_snapshot_is_refused_and_the_next_source_used(mesh: Mesh, spoil: str) -> None:
    """The newest snapshot is truncated, has a flipped bit, or its writer died: the older one and the log suffice."""
    (one,) = await mesh.start(1)
    await mesh.trim(one)
    disk = mesh.disk(1)
    digest = await mesh.agree(one)
    one.kill()
    newest = max(disk.glob("*.csv.gz"), key=lambda path: path.name)
    data = newest.read_bytes()
    if spoil == "truncate":
        newest.write_bytes(data[: len(data) // 2])
    elif spoil == "flip":
        newest.write_bytes(data[:100] + bytes([data[100] ^ 1]) + data[101:])
    else:
        newest.rename(disk / ".0123456789abcdef.part")
    again = await mesh.start(1, 2)
    assert await mesh.agree(*again) == digest


@pytest.mark.faults
@pytest.mark.slow
async def test_kills_and_restarts_under_load_end_in_equal_digests(mesh: Mesh) -> None:
    """Two of four replicas are killed during concurrent partial updates; no acknowledged change is lost."""
    processes = await mesh.start(1, 2, 3, 4)
    acknowledged: dict[str, int] = {}
    ended = asyncio.Event()

    async def write(worker: int) -> None:
        count = 0
        while not ended.is_set():
            count += 1
            user, process = f"user-{worker}-{count}", processes[(worker + count) % 4]
            with contextlib.suppress(httpx.TransportError):
                answer = await mesh.set(process, user_id=user, spp=count, return_fee=worker)
                if answer.status_code == 200:
                    acknowledged[user] = count
            await asyncio.sleep(0.005)

    writers = [asyncio.create_task(write(worker)) for worker in range(8)]
    for victim in (1, 2):
        await asyncio.sleep(1)
        processes[victim].kill()
        (processes[victim],) = await mesh.start(victim + 1)
    await asyncio.sleep(1)
    ended.set()
    await asyncio.gather(*writers)
    await mesh.agree(*processes)
    assert len(acknowledged) > 200
    given = await mesh.client.get(f"{processes[2].private}/backup", auth=AUTH)
    rows = list(csv.reader(gzip.decompress(given.content).decode().splitlines()[2:-1]))
    shown = {row[0]: int(row[2]) for row in rows}
    assert acknowledged.items() <= shown.items()


@pytest.mark.faults
@pytest.mark.slow
@pytest.mark.timeout(300)
async def test_a_million_records_are_restored_from_a_peer_that_goes_on_serving(mesh: Mesh) -> None:
    """The memory of both replicas is bounded, and the one that gives its backup answers meanwhile."""
    records = 1_000_000
    storage = filled(records)
    header = backup.header_of(storage.snapshot(), Position("0" * 16, 9, "1763700001000-0"), (), 1763700001000)
    mesh.disk(1).mkdir()
    path = mesh.disk(1) / f"{header.log}-{header.number:012d}-{header.id}.csv.gz"
    path.write_bytes(b"".join(backup.chunks_of(header, storage.snapshot())))
    digest = storage.digest
    del storage
    giver = mesh.replicas.spawn(mesh.env(1))
    await eventually(lambda: mesh.has_grades(giver), 120)
    before_mb = resident_mb(giver)
    taker = mesh.replicas.spawn(mesh.env(2))
    latencies, giver_mb, taker_mb = [], 0.0, 0.0
    async with asyncio.timeout(120):
        while not await mesh.has_grades(taker):
            began = time.perf_counter()
            assert (await mesh.set(giver, user_id="user-0000007", spp=len(latencies))).status_code == 200
            assert (await mesh.get(giver, "user-0000008")).status_code == 200
            latencies.append(time.perf_counter() - began)
            giver_mb, taker_mb = max(giver_mb, resident_mb(giver)), max(taker_mb, resident_mb(taker))
            await asyncio.sleep(0.01)
    assert await mesh.agree(giver, taker) != digest
    await mesh.shows(taker, "user-0000007", spp=len(latencies) - 1)
    figures = (
        f"giver {before_mb:.0f} MB, {giver_mb:.0f} MB while giving; taker at most {taker_mb:.0f} MB; "
        f"a set and a get beside it: median {1000 * sorted(latencies)[len(latencies) // 2]:.0f} ms, "
        f"slowest {1000 * max(latencies):.0f} ms of {len(latencies)}"
    )
    (mesh.disk(0).parent / "figures.txt").write_text(figures)
    assert giver_mb - before_mb < 60, figures
    assert taker_mb < before_mb + 60, figures


def resident_mb(process: Process) -> float:
    return psutil.Process(process.pid).memory_info().rss / 1e6


async def test_grades_that_cannot_be_restored_stop_no_other_service(replicas: Replicas) -> None:
    """The log was trimmed and no peer and no disk has its state: the replica is ready without the grades."""
    with replicas.server.redis() as client:
        entry = {"log": "0123456789abcdef", "number": 5, "op": "set", "from": "x", "write": "y", "body": "{}"}
        client.xadd("shared:grades:log", entry)
    env = {"SERVICES": "values,grades", "SERVICE_WAIT_MS": "300", "MESH_CLASS": "A"}
    (replica,) = await replicas(1, env)
    ready = (await replicas.client.get(replica.public + "/readyz")).json()
    reason = "no peer and no snapshot has a state of the log 0123456789abcdef"
    assert (ready["status"], ready["not_ready"]) == ("ready", {"grades": reason})
    answer = await replicas.client.post(replica.public + "/values", json=[{"value": 6, "ttl": 60, "cls": "A"}])
    assert answer.json() == [{"value": 6, "prime_factors": [2, 3]}]
    refused = await replicas.client.get(replica.public + "/get?user_id=alice")
    assert (refused.status_code, refused.headers["Retry-After"]) == (503, "1")
    assert refused.json()["detail"] == f"the service grades is not ready: {reason}"
    with replicas.server.redis() as client:
        client.delete("shared:grades:log")

    async def restored() -> bool:
        return (await replicas.client.get(replica.public + "/get?user_id=alice")).status_code == 404

    await eventually(restored)
    assert (await replicas.client.get(replica.public + "/readyz")).json()["not_ready"] == {}
