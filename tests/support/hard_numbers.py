"""Hard numbers for replicas that are processes of their own, and who computes them."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterable
from typing import Any

import gmpy2
import httpx
import psutil

from tests.support.replicas import Process

ONE_CLASS = {"MESH_CLASS": "A"}
HARD_NICENESS = 10


def prime(digits: int, number: int = 0) -> int:
    """A fixed prime of this many digits; another one for each number. Of no special form, which a sieve might like."""
    chance = random.Random(f"{digits} {number}")
    return int(gmpy2.next_prime(chance.randrange(4 * 10 ** (digits - 1), 9 * 10 ** (digits - 1))))


def semiprime(digits: int, number: int = 0) -> int:
    return prime(digits // 2, number) * prime(digits // 2, number + 1)


def item(value: int, ttl: int = 600, cls: str = "A") -> list[dict[str, Any]]:
    return [{"value": value, "ttl": ttl, "cls": cls}]


async def post(client: httpx.AsyncClient, process: Process, value: int, wait_s: int = 60, **fields: Any) -> Any:
    """POST one value."""
    headers = {"Prefer": f"wait={wait_s}"}
    return await client.post(f"{process.public}/values", json=item(value, **fields), headers=headers, timeout=90)


def below(processes: Iterable[Process]) -> list[psutil.Process]:
    """Every process that these replicas have started."""
    found = []
    for process in processes:
        try:
            found += psutil.Process(process.pid).children(recursive=True)
        except psutil.NoSuchProcess:
            continue
    return found


def cpu_s(processes: Iterable[psutil.Process]) -> float:
    """CPU seconds of all of them."""
    total = 0.0
    for process in processes:
        try:
            total += process.cpu_times().user
        except psutil.NoSuchProcess:
            continue
    return total


def sieving(process: Process) -> bool:
    """Whether a worker of this replica computes something hard: runnable, and of the priority of hard ones."""
    for worker in below([process]):
        try:
            if worker.nice() >= HARD_NICENESS and worker.status() == psutil.STATUS_RUNNING:
                return True
        except psutil.NoSuchProcess:
            continue
    return False


async def computing(processes: Iterable[Process]) -> Process | None:
    """The replica that computes something hard."""
    return next(filter(sieving, processes), None)


async def idle(processes: Iterable[Process]) -> bool:
    """Return whether none computes something hard. It looks several times: between two slices a worker is idle, too."""
    processes = list(processes)
    for _ in range(8):
        if any(map(sieving, processes)):
            return False
        await asyncio.sleep(0.02)
    return True


async def begin(client: httpx.AsyncClient, process: Process, items: list[dict[str, Any]], prefer: str = "") -> Any:
    """POST as a job."""
    headers = {"Prefer": f"respond-async{prefer}"}
    return await client.post(f"{process.public}/values", json=items, headers=headers)


async def look(client: httpx.AsyncClient, process: Process, location: str) -> dict[str, Any]:
    answer = await client.get(process.public + location)
    assert answer.status_code == 200, answer.text
    return dict(answer.json())
