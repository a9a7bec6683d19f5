"""Flask (gunicorn with threads) in front of Celery, with Redis as broker and result backend."""

from __future__ import annotations

import os
import time

import redis
from celery import Celery
from celery_settings import SHORT_TASKS
from flask import Flask, jsonify, request
from rest_engine import REDIS_URL, Items, factors, store

POLL_S = {1: 0.001, 32: 0.01}.get(int(os.environ.get("BENCH_CONNECTIONS", "0")), 0.05)
celery = Celery("rest_celery", broker=REDIS_URL, backend=REDIS_URL)
celery.conf.update(
    **SHORT_TASKS,
    broker_pool_limit=64,
    redis_max_connections=1000,
)
client = redis.Redis.from_url(REDIS_URL)
web = Flask("rest")


@celery.task(name="handle")
def handle(items: Items) -> list[list[int]]:
    found = factors(items)
    store(client.pipeline(transaction=False), items, found)
    return found


@web.post("/values")
def values() -> object:
    items = request.get_json()
    for item in items:
        if not (isinstance(item["value"], int) and item["value"] > 1 and item["ttl"] > 0 and item["cls"] in "ABCD"):
            return jsonify(error="not valid"), 422
    # Polled, because threads cannot share the connection on which Celery waits for results.
    result = handle.delay([(item["value"], item["ttl"]) for item in items])
    until = time.monotonic() + 20
    while not result.ready() and time.monotonic() < until:
        time.sleep(POLL_S)
    pairs = zip(items, result.result, strict=True)
    return jsonify([{"value": item["value"], "prime_factors": found} for item, found in pairs])


@web.get("/readyz")
def readyz() -> object:
    return jsonify(status="ready")


if __name__ == "__main__":
    options = ["--loglevel=ERROR", "--without-gossip", "--without-mingle", "--without-heartbeat"]
    celery.worker_main(["worker", "--pool=solo", "--concurrency=1", *options])
