"""`python -m quart_app`: the process of one replica, configured only by the environment.

A lost lease ends the membership, not the process: the replica answers 503 at once and joins the mesh again.

Exit status: 0 after SIGTERM or SIGINT. 75 when the process cannot trust its own state; its supervisor should start it
again. 78 when it cannot work with these settings, these credentials or this Redis.
"""

from __future__ import annotations

import asyncio
import gc
import math
import os
import signal
import sys
import time

import structlog
import uvloop
from prometheus_client import CollectorRegistry, Counter
from redis.exceptions import RedisError

from mesh import (
    Applicant,
    Busy,
    LeaseLost,
    Mesh,
    MeshError,
    MeshSettings,
    SetupError,
    Unavailable,
    failures,
    join,
    pauses,
)
from quart_app import environment, logs
from quart_app.app import VERSION, App, create_app, why_not_ready
from quart_app.exits import EXIT_AGAIN, EXIT_SETUP
from quart_app.http import health, server
from quart_app.http.drain import stop_accepting
from quart_app.http.sockets import BACKLOG, Sockets, listen
from quart_app.security.secrets import refuse_open_redis
from quart_app.service import Context
from quart_app.settings import AppSettings

log = structlog.get_logger(__name__)

#: After DRAIN_MS the replica refuses new connections. For this further share of DRAIN_MS, connections that it has
#: accepted may still send their request (`stop_accepting`). A larger share lets slower clients send one, but each
#: replica takes longer to leave. The time in which it answers these requests (`grace_s`) begins only afterwards.
REQUEST_WAIT_SHARE = 0.25
#: Longest time that the work of a lost membership may take to end. After that, the process exits with EXIT_AGAIN,
#: because this work might still act under the lost lease. A shorter time cuts more of the work off; a longer one leaves
#: the replica away for longer.
LONGEST_END_OF_WORK_S = 10.0
#: The first and the longest backoff before joining again. If joining and the membership after it have together lasted
#: for longer than `STEADY_S`, the next backoff is the first one again. Longer backoffs leave the mesh without this
#: replica for longer; shorter ones cost Redis more attempts while it is in trouble.
FIRST_BACKOFF_S, LONGEST_BACKOFF_S, STEADY_S = 0.1, 5.0, 10.0
#: Why this replica is not ready, between two memberships.
LOST_REASON = "this replica lost its lease and joins the mesh again"
#: Longest wait for the last log lines. It is short: if the process still holds its lease, it must end before the lease.
LAST_LINES_BEFORE_EXIT_S = 0.05


class Process:
    """The process of one replica.

    starting --lease granted--> ready --signal--> draining: serves, not ready --> closed to new requests --> left
                                |   ^
                     lease lost |   | lease granted
                                v   |
                       joining: 503, not ready --the former work does not end--> exit status 75
    """

    def __init__(self, settings: AppSettings, mesh_settings: MeshSettings) -> None:
        self._settings = settings
        self._mesh_settings = mesh_settings
        #: set when this replica must leave: by a signal, or by an operator's drain
        self._must_leave = asyncio.Event()
        #: how long to serve on while a balancer notices; SIGINT sets it to 0
        self._drain_ms = settings.drain_ms
        #: set once this replica has been ready. A replica that leaves without having been ready sets it, too: else
        #: `_serve_http` could wait for it without end
        self._ready_or_leaving = asyncio.Event()
        #: set when both ports must stop taking new requests
        self._must_close_http = asyncio.Event()
        #: set when both ports have answered their last request
        self._http_is_closed = asyncio.Event()
        self._app: App = create_app(Context(settings, CollectorRegistry()))
        self._lost_memberships_counter = Counter(
            "mesh_memberships_lost", "memberships that ended by themselves", registry=self._app.context.metrics
        )
        # The objects made so far stay for good. Without `freeze`, the search for garbage would go through all of them
        # again and again.
        gc.freeze()
        # The search is off until here: `__main__` disables it, so that the start is faster.
        gc.enable()
        # A pass over the objects made since the last one comes after 20,000 new objects. After more than 5 such passes,
        # the next one also covers the objects of these, about 100,000, and holds the event loop for 8 ms. With 20 in
        # place of 5 it would cover 400,000, and hold the loop for 40 ms. A pass over all objects takes longer the more
        # work is in progress. So it comes only after more than 1000 passes over 100,000.
        gc.set_threshold(20_000, 5, 1000)

    async def run(self) -> None:
        """Serve until signalled. Raises OSError, or a group with the error that ended a task, such as SetupError."""
        sockets = listen(self._settings)
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGTERM, self._begin_leaving, self._settings.drain_ms)
        # Ctrl-C, or the end of the whole mesh: no balancer needs time to notice.
        loop.add_signal_handler(signal.SIGINT, self._begin_leaving, 0)
        try:
            async with asyncio.TaskGroup() as tasks:
                http_task = tasks.create_task(self._serve_http(sockets))
                membership_task = tasks.create_task(self._keep_membership(sockets))
                watcher_tasks = [
                    tasks.create_task(self._watch_the_end_of_work()),
                    tasks.create_task(health.report(lambda: why_not_ready(self._app))),
                ]
                await tasks.create_task(self._drain(http_task, membership_task))
                for task in watcher_tasks:
                    task.cancel()
        finally:
            sockets.close()

    def _begin_leaving(self, drain_ms: int) -> None:
        """Wake `_drain`, which lets this replica leave."""
        self._drain_ms = drain_ms
        self._must_leave.set()

    async def _serve_http(self, sockets: Sockets) -> None:
        """Serve both ports until `_must_close_http` is set and the requests in progress are answered."""
        # No client waits for longer than this: the longest deadline that it may ask for, and a second for the answer.
        grace_s = self._settings.max_wait_ms / 1000 + 1
        public, private = self._app.public, self._app.private

        # Only the public port stops in this way: no client has a connection to the private one.
        async def stop_public() -> None:
            await self._must_close_http.wait()
            # Not `sockets.common`: the refusal would hold for the other replicas that accept from this socket, too.
            await stop_accepting(sockets.public, self._drain_ms / 1000 * REQUEST_WAIT_SHARE)

        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(
                server.run(
                    private,
                    [sockets.private],
                    self._must_close_http.wait,
                    grace_s=grace_s,
                    client_usage=private.client_usage,
                )
            )
            # With this setting a balancer looks at nothing but the port, so the port must not open earlier.
            if self._settings.listen_when_ready:
                await self._ready_or_leaving.wait()
            tasks.create_task(
                server.run(
                    public,
                    [sockets.public],
                    stop_public,
                    grace_s=grace_s,
                    common=sockets.common,
                    client_usage=public.client_usage,
                )
            )
        self._http_is_closed.set()

    async def _drain(self, http_task: asyncio.Task[None], membership_task: asyncio.Task[None]) -> None:
        """Wait until this replica must leave, and then lead it out: not ready, closed to new requests, left."""
        await self._must_leave.wait()
        log.info("draining")
        self._app.reason = "this replica is about to leave"
        mesh = self._app.context.membership
        if mesh is None or not self._ready_or_leaving.is_set():
            # This replica is not ready, so there is no work to finish. It may wait for a lease, which may never come.
            membership_task.cancel()
        else:
            # `drain` only writes "draining" into the roster row. It does not call the function that `on_drain` was
            # given, because that one is for an operator's order.
            mesh.drain()
            await asyncio.sleep(self._drain_ms / 1000)
        self._must_close_http.set()
        self._ready_or_leaving.set()
        # A membership that was not cancelled ends when both ports are closed: see `_serve_until_closed`.
        await http_task

    async def _keep_membership(self, sockets: Sockets) -> None:
        """Join the mesh, and join again after each lost lease, until this replica leaves."""
        backoffs = pauses(FIRST_BACKOFF_S, LONGEST_BACKOFF_S)
        while True:
            began_at_s = time.monotonic()
            try:
                await self._be_member(sockets)
                return
            except Exception as raised:
                error = _first_error(raised)
                if not _may_join_again(error):
                    raise
                log.error("membership lost", error=str(error))
                self._lost_memberships_counter.inc()
            finally:
                self._app.context.membership = None
            if self._must_leave.is_set():
                return
            # For an error of Redis, the reason also says what Redis answered. A MeshError is only logged.
            cause = failures.translate(error)
            self._app.reason = (
                LOST_REASON if cause is None or isinstance(error, MeshError) else f"{LOST_REASON}: {cause.detail}"
            )
            if time.monotonic() - began_at_s > STEADY_S:
                backoffs = pauses(FIRST_BACKOFF_S, LONGEST_BACKOFF_S)
            await asyncio.sleep(next(backoffs))

    async def _watch_the_end_of_work(self) -> None:
        """End the process if the work of a lost membership does not stop: it might still act under the lost lease."""
        untrusted_since_s = math.inf
        while True:
            # The task looks ten times in LONGEST_END_OF_WORK_S, the time in which the work must end. So the work may
            # last about a tenth longer.
            await asyncio.sleep(LONGEST_END_OF_WORK_S / 10)
            mesh = self._app.context.membership
            if mesh is None or mesh.trusted:
                untrusted_since_s = math.inf
            elif untrusted_since_s == math.inf:
                untrusted_since_s = time.monotonic()
            elif time.monotonic() - untrusted_since_s > LONGEST_END_OF_WORK_S:
                log.critical("work of a lost membership does not end", replica=mesh.id, waited_s=LONGEST_END_OF_WORK_S)
                _end_at_once(EXIT_AGAIN)

    async def _be_member(self, sockets: Sockets) -> None:
        """Join the mesh and serve, until this replica leaves or the membership ends with an error."""
        joining = join(
            *self._app.operations,
            settings=self._mesh_settings,
            public=sockets.address(sockets.public),
            private=sockets.address(sockets.private),
            version=VERSION,
            applicant=self._show_why_it_waits,
            ready=False,
        )
        async with joining as mesh:
            self._app.context.membership = mesh
            mesh.replica.on_drain(lambda: self._begin_leaving(self._settings.drain_ms))
            self._app.reason = "the services are starting"
            async with self._app.services.running(mesh, self._settings.service_wait_ms / 1000):
                await self._serve_until_closed(mesh, sockets)

    async def _serve_until_closed(self, mesh: Mesh, sockets: Sockets) -> None:
        """Announce that this replica is ready, unless it must leave, and wait until both ports are closed."""
        if not self._must_leave.is_set():
            # A client may connect as soon as this replica says that it is ready. Hypercorn accepts a moment later, so
            # the kernel must keep the connection until then.
            sockets.public.listen(BACKLOG)
            # An empty reason: this replica is ready.
            self._app.reason = ""
            # The roster row gets the names of the services that are not ready, and what each service tells (`told`).
            # Operators and the live page read it there.
            mesh.announce(self._app.services.not_ready, self._app.services.roster_fields)
            self._ready_or_leaving.set()
            not_ready = list(self._app.services.not_ready())
            log.info("ready", database=mesh.database, cls=mesh.cls, services_not_ready=not_ready)
        await self._http_is_closed.wait()

    def _show_why_it_waits(self, applicant: Applicant) -> None:
        """Let the reason of this replica, which /readyz gives, say why it has no lease yet. `join` calls this."""
        applicant.on_wait = lambda why: setattr(self._app, "reason", f"no lease yet: {why}")


async def run(settings: AppSettings, mesh_settings: MeshSettings) -> int:
    """Run a replica and return its exit status."""
    try:
        refuse_open_redis(settings.host, mesh_settings.redis)
        process = Process(settings, mesh_settings)
        for sentence in environment.sentences_about_unknown(os.environ):
            log.warning("unknown setting", detail=sentence)
        await process.run()
    except Exception as raised:
        first_error = _first_error(raised)
        # The membership may end with an error of Redis, such as that of a server with which the mesh cannot work.
        match error := failures.translate(first_error) if isinstance(first_error, RedisError) else first_error:
            case SetupError():
                log.error("this replica cannot run", error=str(error))
                return EXIT_SETUP
            case Exception() if isinstance(error, environment.SETTINGS_ERRORS):
                log.error("this replica cannot run", error=environment.sentence_about(error))
                return EXIT_SETUP
            case MeshError():
                log.error("this replica cannot go on", error=str(error))
                return EXIT_AGAIN
        raise
    return 0


def _may_join_again(error: BaseException) -> bool:
    """Return whether a later membership may succeed although this error ended the last one.

    It may after an unexpected answer of Redis, for instance to a command on a key that somebody has overwritten. The
    process then goes on, and says why it is not ready. While this replica waits for a lease, no RedisError comes here:
    `Applicant` waits, or raises a SetupError in its place.
    """
    if isinstance(error, RedisError):
        return failures.classify(error) is not failures.Meaning.FATAL
    return isinstance(error, LeaseLost | Unavailable | Busy)


def _first_error(raised: BaseException) -> BaseException:
    """Return the error itself, or the first one of a group. A task group raises groups, and these may be nested."""
    error = raised
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


def main() -> int:
    """Run a replica with the settings of the environment, and return its exit status."""
    logs.fill_standard_streams()
    try:
        environment.load()
        settings, mesh_settings = AppSettings(), MeshSettings()
    except environment.SETTINGS_ERRORS as error:
        # The log cannot be used yet: its settings are among those that could not be read.
        print(environment.sentence_about(error), file=sys.stderr)  # noqa: T201
        return EXIT_SETUP
    logs.configure(settings)
    status = uvloop.run(run(settings, mesh_settings))
    if status == EXIT_AGAIN:
        # This process may still hold its lease, or have work that does not end.
        _end_at_once(status)
    return status


def _end_at_once(status: int) -> None:
    """End without the interpreter's cleaning up, which could last longer than a lease that this process still holds."""
    logs.wait_until_written(LAST_LINES_BEFORE_EXIT_S)
    os._exit(status)
