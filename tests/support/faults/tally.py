"""A service for the fault matrix only: it counts how often each request took effect.

    POST /tally       {"id", "cls" or "database", "hold_ms", "block_ms", "poison", "mistake", "hot", "wait_ms"}
                      one effect in the worker's database, after a wait of hold_ms and a blocked loop of block_ms
    POST /tally/own   {"id"}   one effect in this replica's own database, by a transaction that belongs to no request
    GET  /tally/loop  the longest time, in ms, that the event loop was held since the last GET (private port)

    tally:effects     hash    request id -> how often it took effect; in the leased database
    tally:hot         string  how many requests were `hot`; shared by all replicas

Each handler run adds a line to a file, FAULTS_JOURNAL: the id, the process, the number of deliveries, and how late it
began.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import threading
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, NamedTuple, cast

from quart import Blueprint, Response, jsonify, request

from mesh import Class, Database
from mesh.raw import Effects, Replica, Request, Store, Worker
from mesh.requests.protocol import NEVER
from quart_app.service import Context, Service
from tests.support import mistakes

ADD = "tally.add"
EFFECTS = "tally:effects"
HOT = "tally:hot"
BEAT_S = 0.005


def create(context: Context) -> Service:
    """Return the service."""
    watch = LoopWatch()

    @contextlib.asynccontextmanager
    async def lifespan(_: Replica) -> AsyncIterator[None]:
        async with asyncio.TaskGroup() as tasks:
            beating = tasks.create_task(watch.run())
            yield
            beating.cancel()

    return Service("tally", [_public(context)], [_private(watch)], _worker(), lifespan)


def _worker() -> Worker:
    worker = Worker()

    @worker.handles(ADD)
    async def add(request: Request, store: Store, transaction: Effects) -> dict[str, Any]:
        body = request.body
        _journal(request, store)
        if body["poison"]:
            os.kill(os.getpid(), signal.SIGKILL)
        before = await store.hget(EFFECTS, body["id"])
        # A replica that takes the request over does not hold it again.
        if request.deliveries == 1 or body["always"]:
            await asyncio.sleep(body["hold_ms"] / 1000)
            time.sleep(body["block_ms"] / 1000)  # noqa: ASYNC251
        transaction.write("HINCRBY", EFFECTS, body["id"], 1)
        if body["hot"]:
            await _raise_hot(store, transaction)
        if body["mistake"]:
            return cast(dict[str, Any], await mistakes.make(body["mistake"], store, transaction))
        return {"before": int(before or 0), "pid": os.getpid(), "database": store.database}

    return worker


async def _raise_hot(store: Store, transaction: Effects) -> None:
    """Read, add one, write: on one key for all replicas."""
    seen = await store.shared.get(HOT)
    transaction.shared.expect(HOT, seen)
    transaction.shared.set(HOT, int(seen or 0) + 1)


def _journal(request: Request, store: Store) -> None:
    """Add one line in one write, without a buffer: the process may be killed next."""
    late_ms = 0 if request.deadline == NEVER else time.clock_gettime(time.CLOCK_REALTIME) * 1000 - request.deadline
    line = {
        "id": request.body["id"],
        "pid": os.getpid(),
        "database": store.database,
        "deliveries": request.deliveries,
        "late_ms": late_ms,
    }
    journal = os.open(Path(os.environ["FAULTS_JOURNAL"]), os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    try:
        os.write(journal, (json.dumps(line) + "\n").encode())
    finally:
        os.close(journal)


def _public(context: Context) -> Blueprint:
    blueprint = Blueprint("tally", __name__)

    @blueprint.post("/tally")
    async def add() -> Response:
        asked = await request.get_json()
        to = Database(asked["database"]) if "database" in asked else Class(asked["cls"])
        body = {
            "id": asked["id"],
            "hold_ms": asked.get("hold_ms", 0),
            "block_ms": asked.get("block_ms", 0),
            "poison": asked.get("poison", False),
            "always": asked.get("always", False),
            "mistake": asked.get("mistake", ""),
            "hot": asked.get("hot", False),
        }
        return jsonify(await context.mesh.call(to, ADD, body, deadline_ms=asked.get("wait_ms")))

    @blueprint.post("/tally/own")
    async def add_own() -> Response:
        asked = await request.get_json()
        transaction = context.mesh.transaction()
        transaction.write("HINCRBY", EFFECTS, asked["id"], 1)
        return jsonify({"done": await context.mesh.commit(transaction)})

    return blueprint


def _private(watch: LoopWatch) -> Blueprint:
    blueprint = Blueprint("tally_private", __name__)

    @blueprint.get("/tally/loop")
    async def loop() -> Response:
        return jsonify({"held_ms": watch.take()})

    return blueprint


class LoopWatch:
    """Measures how long the event loop was held by this process, not by a machine that does something else.

    The kernel says how long each thread was ready to run and had no processor. Held is what the process computed
    meanwhile, in whichever thread: one that keeps the interpreter's lock holds the loop, too. Held is also the time in
    which nobody computed and nobody wanted to, as in a call that blocks.
    """

    def __init__(self) -> None:
        self._longest_s = 0.0

    async def run(self) -> None:
        before = Moment.now()
        while True:
            await asyncio.sleep(BEAT_S)
            now = Moment.now()
            self._longest_s = max(self._longest_s, now.held_since(before))
            before = now

    def take(self) -> float:
        """Return the longest hold since the last call, in ms, and begin anew."""
        longest, self._longest_s = self._longest_s, 0.0
        return longest * 1000


class Moment(NamedTuple):
    """Clocks of this process in seconds; `starved_s` by thread: ready to run, without a processor."""

    wall_s: float
    computed_s: float
    starved_s: dict[str, float]

    @classmethod
    def now(cls) -> Moment:
        starved = {}
        for thread in os.scandir("/proc/self/task"):
            with contextlib.suppress(OSError):
                starved[thread.name] = int(Path(thread.path, "schedstat").read_text().split()[1]) / 1e9
        return cls(time.monotonic(), time.process_time(), starved)

    def held_since(self, before: Moment) -> float:
        """How long the loop was held between two beats."""
        waits = [waited - before.starved_s.get(thread, 0.0) for thread, waited in self.starved_s.items()]
        late_s = self.wall_s - before.wall_s - BEAT_S
        loop = str(threading.get_native_id())
        own_s = late_s - self.starved_s[loop] + before.starved_s[loop]
        return max(min(own_s, self.computed_s - before.computed_s), late_s - sum(waits))
