"""Curves on one number in several replicas of a class.

A replica that has worked on a hard number for a second asks the others of its class for help while it runs curves:

    asker ── values.help, to any replica of the class: how far the number is ──> helper
    asker <── how far it is after some seconds of curves, or as soon as a divisor is found ── helper

A helper computes at the lowest priority, in processes that it does not need for its own work. It stops when it needs
these processes. A replica without such processes refuses at once. The asker keeps one request in flight for each other
replica. When it no longer runs curves on the composite, it cancels these requests. The mesh then cancels the helpers'
handlers, so the processes that run their curves are killed. If a helper dies, its curves are lost. If the asker dies,
its helpers compute for some seconds what no request needs any more.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import platform
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import Any

import structlog

from mesh import Class, MeshError
from mesh.raw import Body, Effects, Replica, Request, Store, Worker
from quart_app.values import child
from quart_app.values.child import Slice
from quart_app.values.factorise import Composite, Factoring
from quart_app.values.lanes import Call, Lane, cores
from quart_app.values.side_by_side import race, splits, with_curves

log = structlog.get_logger(__name__)

#: The operation with which a replica asks for help.
HELP = "values.help"

#: A helper begins new slices for this long. Its answer may take twice as long, because the last slice has to end. With
#: less, the asker sends more requests; with more, a helper computes longer in vain after the asker has died.
HELP_S = 5.0
#: The longest pause (s) between two looks for replicas that can help. A longer pause leaves idle replicas unused; a
#: shorter one costs more reads of the roster.
HELPER_LOOK_S = 2.0
#: A refusal takes milliseconds. A request that has no answer after this time is being worked on. With a longer time,
#: several helpers are asked more slowly; with a shorter one, a slow refusal counts as work.
REFUSAL_S = 0.1
#: The most bits for a sieve in a helper: 0, so that it only runs curves.
_HELPER_SIEVE_BITS = 0

#: Replicas with the same name share the cores of one machine.
MACHINE = platform.node()


class JointWork:
    """What this replica and its helpers have reached together for one number.

    `factoring` counts the curves that all of them ran on the smallest composite. `first_split` gets the first result
    that splits this composite.
    """

    def __init__(self, factoring: Factoring) -> None:
        self.factoring = factoring
        self.first_split: asyncio.Future[Slice] = asyncio.get_running_loop().create_future()

    def add(self, before: Factoring, result: Slice) -> None:
        """Add the result of curves that began at the state `before`."""
        if not splits(before, result):
            # Here only the first part of the result counts: how far the factorisation is.
            curve_count = result[0].composites[0].curves - before.composites[0].curves
            self.factoring = with_curves(self.factoring, curve_count)
        elif not self.first_split.done():
            self.first_split.set_result(result)


class HelpFromOthers:
    """Asks the other replicas of this replica's class to run curves. `current_replica` returns the membership."""

    def __init__(self, current_replica: Callable[[], Replica]) -> None:
        self._current_replica = current_replica

    @contextlib.asynccontextmanager
    async def ask_for_curves(self, factoring: Factoring, process_count: int) -> AsyncIterator[JointWork]:
        """Let other replicas run curves on the smallest composite, until the block ends or one of them splits it.

        `process_count` is how many processes this replica uses itself.
        """
        joint = JointWork(factoring)
        asking_task = asyncio.create_task(self._keep_asking(joint, process_count))
        joint.first_split.add_done_callback(lambda _: asking_task.cancel())
        try:
            yield joint
        finally:
            asking_task.cancel()
            await asyncio.wait([asking_task])
            if not asking_task.cancelled() and (error := asking_task.exception()) is not None:
                log.error("other replicas could not be asked for curves", exc_info=error)

    async def _keep_asking(self, joint: JointWork, process_count: int) -> None:
        """Keep a request in flight for each other replica that can help.

        Any replica of the class may read a request: also a replica that cannot help, and even this replica. Such a
        replica refuses at once, and the request is sent again. After more refusals than there are other replicas,
        this replica waits for HELPER_LOOK_S.
        """
        in_flight: set[asyncio.Task[bool]] = set()
        async with asyncio.TaskGroup() as tasks:
            while True:
                other_count, refusal_count = await self._count_others(), 0
                while len(in_flight) < other_count and refusal_count <= other_count:
                    request_task = tasks.create_task(self._ask_one(joint, process_count))
                    await asyncio.wait([request_task], timeout=REFUSAL_S)
                    refusal_count += request_task.done() and not request_task.result()
                    in_flight = {task for task in (*in_flight, request_task) if not task.done()}
                if in_flight:
                    await asyncio.wait(in_flight, timeout=HELPER_LOOK_S, return_when=asyncio.FIRST_COMPLETED)
                    in_flight = {task for task in in_flight if not task.done()}
                else:
                    await asyncio.sleep(HELPER_LOOK_S)

    async def _count_others(self) -> int:
        """Return how many other replicas of the class serve exactly the operations of this replica.

        So replicas of another release do not count. The number is 0 if the roster does not have this replica.
        """
        replica = self._current_replica()
        try:
            roster = await replica.roster()
        except MeshError:
            return 0
        members = [member for member in roster if member.leased and member.cls == replica.cls]
        # One element, the names that this replica serves; none if the roster does not have this replica.
        own_operations = [member.serves for member in members if member.replica == replica.id]
        return sum(member.serves in own_operations for member in members) - len(own_operations)

    async def _ask_one(self, joint: JointWork, process_count: int) -> bool:
        """Let one replica run curves; return False if it refused or failed."""
        replica, before = self._current_replica(), joint.factoring
        # The deadline is twice HELP_S, in ms.
        body = {**to_body(before), "asker": replica.id, "machine": MACHINE, "processes": process_count}
        try:
            reply = await replica.call(Class(replica.cls), HELP, body, deadline_ms=int(2000 * HELP_S))
        except MeshError:
            return False
        if reply:
            factoring = from_body(reply)
            joint.add(before, (factoring, factoring.known_factors() if factoring.done else None))
        return bool(reply)


class HelpForOthers:
    """Runs curves for other replicas, for one number at a time, in processes that this replica does not need.

    The factor pool passes two functions: `count_spare` returns how many processes this replica does not need, and
    `run_call` runs a call in a process of a lane.
    """

    def __init__(
        self, lane: Lane, count_spare: Callable[[], int], run_call: Callable[[Lane, Call], Awaitable[Any]]
    ) -> None:
        self._lane = lane
        self._count_spare = count_spare
        self._run_call = run_call
        #: the curves that run for another replica
        self._task: asyncio.Task[Slice] | None = None

    async def run_curves(self, factoring: Factoring, most_processes: int, time_limit_s: float) -> Slice | None:
        """Run curves for another replica in at most `most_processes` processes.

        Return None if no process is free, or if this replica helps another one already. New slices begin during the
        first half of the time limit. The curves end early if one finds a divisor, or if this replica needs its
        processes. Raises Unavailable.
        """
        if self._task is not None or self._count_free(most_processes) <= 0:
            return None
        self._task = task = asyncio.create_task(self._run_slices(factoring, most_processes, time_limit_s))
        try:
            # `wait` does not raise when `stop` cancels the task; the asker then gets a refusal.
            await asyncio.wait([task])
            return None if task.cancelled() else task.result()
        finally:
            task.cancel()
            await asyncio.wait([task])
            self._task = None

    async def stop(self) -> None:
        """Cancel the curves that are running, and end the processes."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])
        await self._lane.stop()

    def _count_free(self, most_processes: int) -> int:
        """Return how many processes may run curves now, at most `most_processes`."""
        return min(most_processes, self._count_spare(), self._lane.idle_count)

    async def _run_slices(self, factoring: Factoring, most_processes: int, time_limit_s: float) -> Slice:
        """Run curves until one finds a divisor, no process is free, or half of the time is over; return the result."""
        begun_s = time.monotonic()
        latest: Slice = factoring, None

        async def run_slice() -> Slice:
            left_s = begun_s + time_limit_s - time.monotonic()
            result: Slice = await self._run_call(
                self._lane, lambda: (child.advance, latest[0], left_s, _HELPER_SIEVE_BITS)
            )
            return result

        while time.monotonic() < begun_s + time_limit_s / 2 and (process_count := self._count_free(most_processes)) > 0:
            before = latest[0]
            latest = await race(before, run_slice, process_count)
            if splits(before, latest):
                break
        return latest


def help_worker(helper: HelpForOthers, process_count: int, current_replica: Callable[[], Replica]) -> Worker:
    """Return a Worker with the operation HELP. This replica has `process_count` processes for hard numbers."""
    worker = Worker()

    @worker.handles(HELP, effect=False)
    async def help(request: Request, store: Store, transaction: Effects) -> Body:
        """Run curves for another replica; reply with an empty body if there is no process for them."""
        body, this_replica = request.body, current_replica()
        # A replica that handles one request at a time does not help: its other requests would have to wait.
        if body["asker"] == this_replica.id or this_replica.settings.concurrency == 1:
            return {}
        left_s = (request.deadline - this_replica.now_ms()) / 1000
        result = await helper.run_curves(from_body(body), count_usable_processes(body, process_count), left_s)
        return {} if result is None else to_body(result[0])

    return worker


def count_usable_processes(body: Mapping[str, Any], process_count: int) -> int:
    """Return how many processes a helper may use: on the asker's machine, at most as many as the asker leaves cores."""
    return min(process_count, cores() - body["processes"]) if body["machine"] == MACHINE else process_count


def to_body(factoring: Factoring) -> dict[str, Any]:
    """Return a factorisation as JSON. Large numbers are text, which programs in any language can read."""
    return {
        "number": str(factoring.number),
        "powers": [[str(prime), exponent] for prime, exponent in factoring.powers],
        "composites": [[str(item.value), item.exponent, item.curves] for item in factoring.composites],
    }


def from_body(body: Mapping[str, Any]) -> Factoring:
    """Return the factorisation that `to_body` wrote. Raises ValueError if its parts have another product."""
    powers = tuple((int(prime), exponent) for prime, exponent in body["powers"])
    composites = tuple(Composite(int(value), exponent, curves) for value, exponent, curves in body["composites"])
    number = int(body["number"])
    all_powers = [*powers, *((composite.value, composite.exponent) for composite in composites)]
    if math.prod(value**exponent for value, exponent in all_powers) != number:
        raise ValueError(f"the parts of {number} have another product")
    return Factoring(number, powers, composites)
