"""Celery with Redis as broker and result backend. Its client blocks, so the load keeps a window of open calls."""

from __future__ import annotations

import os
import sys
import time
from collections import deque

import redis
from celery import Celery
from celery_settings import SHORT_TASKS
from load import LEVELS, REDIS_URL, SECONDS, START_TIMEOUT_S, WARM_UP_S, say, summary

POOL = os.environ.get("BENCH_CELERY_POOL", "solo")
CONCURRENCY = os.environ.get("BENCH_CELERY_CONCURRENCY", "1")

app = Celery("bench", broker=REDIS_URL, backend=REDIS_URL)
app.conf.update(**SHORT_TASKS)
store = redis.Redis.from_url(REDIS_URL)


@app.task(name="handle")
def handle(number: int) -> int:
    store.set(f"stored:{number}", number)
    return number


class Window:
    """Keep `in_flight` calls open: wait for the oldest, then send another."""

    def __init__(self) -> None:
        self.number = 0
        self.open: deque = deque()
        self.latencies: list[float] = []

    def send(self) -> None:
        self.number += 1
        self.open.append((self.number, time.perf_counter(), handle.delay(self.number)))

    def take(self, timeout: float = 20.0) -> None:
        number, begun, result = self.open.popleft()
        answer = result.get(timeout=timeout, interval=0.001)
        if answer != number:
            raise ValueError(f"asked {number}, answered {answer!r}")
        self.latencies.append(time.perf_counter() - begun)

    def run(self, in_flight: int, seconds: float) -> float:
        self.latencies = []
        begun = time.perf_counter()
        for _ in range(in_flight):
            self.send()
        while self.open:
            self.take()
            if time.perf_counter() < begun + seconds:
                self.send()
        return time.perf_counter() - begun


def client() -> None:
    window = Window()
    window.send()
    window.take(START_TIMEOUT_S)
    for in_flight in LEVELS:
        window.run(in_flight, WARM_UP_S)
        say(event="begin", in_flight=in_flight)
        elapsed = window.run(in_flight, SECONDS)
        say(**summary(in_flight, window.latencies, elapsed, 0))
    say(event="done", calls=window.number)


def worker() -> None:
    options = ["--loglevel=ERROR", "--without-gossip", "--without-mingle", "--without-heartbeat"]
    app.worker_main(["worker", f"--pool={POOL}", f"--concurrency={CONCURRENCY}", *options])


if __name__ == "__main__":
    worker() if sys.argv[1] == "worker" else client()
