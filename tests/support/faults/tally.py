"""A service for the fault matrix only: it counts how often each request took effect.

    POST /tally       {"id", "cls" or "database", "hold_ms", "block_ms", "poison", "mistake", "keys", "wait_ms"}
                      one effect in the worker's database, after a wait of hold_ms and a blocked loop of block_ms, and
                      so many keys beside it
    POST /tally       {"id", "cls", "hot" (value or hash), "wait_ms"}: one effect, and a number from a shared key
    POST /tally/own   {"id"}   one effect in this replica's own database, by a transaction that belongs to no request
    GET  /tally/loop  the longest time, in ms, that the event loop was held since the last GET (private port)

    tally:effects     hash    request id -> how often it took effect; in the leased database
    tally:hot         string  how many requests were hot on a value; shared by all replicas
    tally:places      hash    number -> id, of the requests that were hot on a hash; shared by all replicas

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
from collections.abc import AsyncIterator, Iterable
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, cast

from msgspec import Struct
from quart import Blueprint, Response, jsonify, request

from mesh import Class, Database, Mesh, Operations, Query, Transaction
from mesh.raw import Effects, Request, Store, Worker
from mesh.requests.protocol import NEVER
from quart_app.service import Context, Service
from tests.support import mistakes

if TYPE_CHECKING:
    import httpx

ADD = "tally.add"
EFFECTS = "tally:effects"
BEAT_S = 0.005

tally = Operations("tally")
effects = tally.hash("effects", str, int)
hot = tally.value("hot", int, 0, shared=True)
places = tally.hash("places", str, str, shared=True)


def create(context: Context) -> Service:
    """Return the service."""
    watch = LoopWatch()

    @contextlib.asynccontextmanager
    async def lifespan(_: Mesh) -> AsyncIterator[None]:
        async with asyncio.TaskGroup() as tasks:
            beating = tasks.create_task(watch.run())
            yield
            beating.cancel()

    return Service("tally", [_public(context)], [_private(watch)], [_worker(), tally], lifespan)


def _worker() -> Worker:
    worker = Worker()

    @worker.handles(ADD)
    async def add(request: Request, store: Store, transaction: Effects) -> dict[str, Any]:
        body = request.body
        _journal(request, store.database)
        if body["poison"]:
            os.kill(os.getpid(), signal.SIGKILL)
        before = await store.hget(EFFECTS, body["id"])
        # A replica that takes the request over does not hold it again.
        if request.deliveries == 1 or body["always"]:
            await asyncio.sleep(body["hold_ms"] / 1000)
            time.sleep(body["block_ms"] / 1000)  # noqa: ASYNC251
        transaction.write("HINCRBY", EFFECTS, body["id"], 1)
        transaction.set_until([f"tally:{body['id']}:{n}" for n in range(body["keys"])], "x", request.at_ms + 60_000)
        if body["mistake"]:
            return cast(dict[str, Any], await mistakes.make(body["mistake"], store, transaction))
        return {"before": int(before or 0), "pid": os.getpid(), "database": store.database}

    @worker.handles(mistakes.SINK)
    async def sink(request: Request, store: Store, transaction: Effects) -> None:
        raise AssertionError("a mistake was sent")

    return worker


class Hot(Struct):
    """A request for one key of all replicas: a value, or a hash that is read as a whole."""

    id: str
    on: str


@tally.command
async def heat(tx: Transaction, body: Hot) -> int:
    """Read, add one, write; or take the next place of a hash."""
    _journal(tx.request, tx.database)
    tx.add(effects[body.id])
    if body.on == "value":
        number = await tx.get(hot) + 1
        tx.set(hot, number)
    else:
        number = len(await tx.items(places)) + 1
        tx.set(places[str(number)], body.id)
    return number


@tally.query
async def counted(view: Query) -> int:
    """Return how many requests had an effect in this database."""
    return len(await view.items(effects))


def _journal(request: Request, database: int) -> None:
    """Add one line in one write, without a buffer: the process may be killed next."""
    late_ms = 0 if request.deadline == NEVER else time.clock_gettime(time.CLOCK_REALTIME) * 1000 - request.deadline
    line = {
        "id": request.body.id if isinstance(request.body, Hot) else request.body["id"],
        "pid": os.getpid(),
        "database": database,
        "deliveries": request.deliveries,
        "late_ms": late_ms,
    }
    journal = os.open(Path(os.environ["FAULTS_JOURNAL"]), os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    try:
        os.write(journal, (json.dumps(line) + "\n").encode())
    finally:
        os.close(journal)


def body_of(asked: dict[str, Any]) -> dict[str, Any]:
    """Return the body of the operation for what a client has asked."""
    return {
        "id": asked["id"],
        "hold_ms": asked.get("hold_ms", 0),
        "block_ms": asked.get("block_ms", 0),
        "poison": asked.get("poison", False),
        "always": asked.get("always", False),
        "mistake": asked.get("mistake", ""),
        "keys": asked.get("keys", 0),
    }


def _public(context: Context) -> Blueprint:
    blueprint = Blueprint("tally", __name__)

    @blueprint.post("/tally")
    async def add() -> Response:
        asked = await request.get_json()
        to = Database(asked["database"]) if "database" in asked else Class(asked["cls"])
        wait_ms = asked.get("wait_ms")
        if "hot" in asked:
            deadline = timedelta(milliseconds=wait_ms)
            number = await context.mesh.call(heat, Hot(asked["id"], asked["hot"]), to=to, deadline=deadline)
            return jsonify({"number": number})
        return jsonify(await context.mesh.replica.call(to, ADD, body_of(asked), deadline_ms=wait_ms))

    @blueprint.post("/tally/own")
    async def add_own() -> Response:
        asked = await request.get_json()
        transaction = context.mesh.replica.transaction()
        transaction.write("HINCRBY", EFFECTS, asked["id"], 1)
        return jsonify({"done": await context.mesh.replica.commit(transaction)})

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


async def held_ms(client: httpx.AsyncClient, private: Iterable[str]) -> float:
    """Return the longest time that the event loop of any of these replicas was held since the last call."""
    looks = await asyncio.gather(*(client.get(f"{address}/tally/loop") for address in private))
    return max(look.json()["held_ms"] for look in looks)


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
