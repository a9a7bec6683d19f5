"""Row 44: a replica whose log is closed, full, or read by nobody."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from functools import partial

import httpx
import pytest

from tests.support.replicas import Replicas

REQUESTS = 1000


def into(descriptor: int) -> Callable[[], None]:
    """What makes this descriptor the standard error of a new process."""
    return partial(os.dup2, descriptor, 2)


@pytest.mark.parametrize("kind", ["closed", "full", "unread", "gone"])
async def test_a_log_that_cannot_be_written_delays_and_fails_no_request(replicas: Replicas, kind: str) -> None:
    """Each request is answered at once, and the replica drains and ends as ever."""
    reading, writing = os.pipe()
    if kind == "gone":
        os.close(reading)
    full = os.open("/dev/full", os.O_WRONLY)
    prepare = {"closed": partial(os.close, 2), "full": into(full), "unread": into(writing), "gone": into(writing)}[kind]
    process = replicas.spawn({"LOG_LEVEL": "debug"}, prepare)
    await replicas.ready(process)
    slowest = 0.0
    async with httpx.AsyncClient(base_url=process.public, timeout=10) as client:
        for _ in range(REQUESTS):
            began = time.monotonic()
            answer = await client.get("/nowhere", headers={"X-Request-ID": "r" * 120})
            slowest = max(slowest, time.monotonic() - began)
            assert answer.status_code == 404
    assert slowest < 1
    process.send(signal.SIGTERM)
    assert await process.ended(20) == 0
    os.close(writing)
    os.close(full)
