"""`python -m quart_app`: one replica, from the environment alone.

Exit status 0 after SIGTERM or SIGINT; 75 when the lease was lost, or anything else happened that a new start can mend:
whoever supervises starts it anew; 78 when the settings, the credentials or the server do not serve.
"""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import sys

import structlog
import uvloop
from prometheus_client import CollectorRegistry

from mesh import MeshError, MeshSettings, Replica, SetupError, join
from mesh.lease.applicant import Applicant
from quart_app import environment, logs
from quart_app.app import VERSION, App, create_app
from quart_app.exits import EXIT_AGAIN, EXIT_SETUP
from quart_app.http import server
from quart_app.http.drain import last_call
from quart_app.http.sockets import BACKLOG, Sockets, listen
from quart_app.security.secrets import refuse_open_redis
from quart_app.service import Context
from quart_app.settings import AppSettings

log = structlog.get_logger(__name__)

#: The part of the drain, on top of it, that who has connected may take to say what for.
SETTLE = 0.25


#: For answers to leave after the lease was lost; less than is left before the next holder may come.
LAST_WORDS_S = 0.05


class Process:
    """One replica's process.

    starting -> (lease) -> ready -> (signal) -> draining: still serving, not ready -> closed to new requests -> left
    """

    def __init__(self, settings: AppSettings, mesh_settings: MeshSettings) -> None:
        self._settings = settings
        self._mesh_settings = mesh_settings
        self._signalled = asyncio.Event()
        self._drain_ms = settings.drain_ms
        self._opened = asyncio.Event()
        self._close_http = asyncio.Event()
        self._http_closed = asyncio.Event()
        self._app: App = create_app(Context(settings, CollectorRegistry()))
        # What exists by now stays; looking through it again and again for garbage took a seventh of a batch's time.
        gc.freeze()
        gc.set_threshold(20_000, 20, 20)

    async def run(self) -> None:
        """Serve until signalled. Raises LeaseLost, SetupError, OSError."""
        sockets = listen(self._settings)
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGTERM, self._end, self._settings.drain_ms)
        # Ctrl-C, or the end of the whole mesh: there is no balancer to be waited for.
        loop.add_signal_handler(signal.SIGINT, self._end, 0)
        try:
            async with asyncio.TaskGroup() as tasks:
                http = tasks.create_task(self._serve(sockets))
                member = tasks.create_task(self._membership(sockets))
                tasks.create_task(self._drain(http, member))
        finally:
            sockets.close()

    def _end(self, drain_ms: int) -> None:
        self._drain_ms = drain_ms
        self._signalled.set()

    async def _serve(self, sockets: Sockets) -> None:
        grace_s = self._settings.max_wait_ms / 1000 + 1
        public, private = self._app.public, self._app.private

        async def last_guests() -> None:
            await self._close_http.wait()
            await last_call(sockets.public, self._drain_ms / 1000 * SETTLE)

        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(
                server.run(private, [sockets.private], self._close_http.wait, grace_s=grace_s, clients=private.clients)
            )
            if self._settings.listen_when_ready:
                await self._opened.wait()
            tasks.create_task(
                server.run(
                    public,
                    [sockets.public],
                    last_guests,
                    grace_s=grace_s,
                    common=sockets.common,
                    clients=public.clients,
                )
            )
        self._http_closed.set()

    async def _drain(self, http: asyncio.Task[None], member: asyncio.Task[None]) -> None:
        await self._signalled.wait()
        log.info("draining")
        self._app.reason = "this replica is about to leave"
        replica = self._app.context.replica
        if replica is None or not self._opened.is_set():
            # Nobody was served yet, and what is being waited for may never come.
            member.cancel()
        else:
            replica.drain()
            await asyncio.sleep(self._drain_ms / 1000)
        self._close_http.set()
        self._opened.set()
        await http

    async def _membership(self, sockets: Sockets) -> None:
        try:
            await self._be_member(sockets)
        except Exception:
            # Whoever waits has been told so by the mesh; let the 503 leave before the server is cancelled.
            self._app.reason = "this replica has lost its lease"
            await asyncio.sleep(LAST_WORDS_S)
            raise

    async def _be_member(self, sockets: Sockets) -> None:
        membership = join(
            self._app.worker,
            self._mesh_settings,
            public=sockets.address(sockets.public),
            private=sockets.address(sockets.private),
            version=VERSION,
            applicant=self._explain,
            ready=False,
        )
        async with membership as replica:
            self._app.context.replica = replica
            self._app.reason = "the services are starting"
            async with self._app.services.running(replica, self._settings.service_wait_ms / 1000):
                await self._serve_as(replica, sockets)

    async def _serve_as(self, replica: Replica, sockets: Sockets) -> None:
        if not self._signalled.is_set():
            # Whoever hears that we are ready may connect at once; Hypercorn accepts in a moment.
            sockets.public.listen(BACKLOG)
            self._app.reason = ""
            replica.announce(self._app.services.not_ready)
            self._opened.set()
            not_ready = list(self._app.services.not_ready())
            log.info("ready", database=replica.database, cls=replica.cls, services_not_ready=not_ready)
        await self._http_closed.wait()

    def _explain(self, applicant: Applicant) -> None:
        applicant.on_wait = lambda why: setattr(self._app, "reason", f"no lease yet: {why}")


async def run(settings: AppSettings, mesh_settings: MeshSettings) -> int:
    """Run a replica; its exit status."""
    try:
        refuse_open_redis(settings.host, mesh_settings.redis)
        process = Process(settings, mesh_settings)
        for told in environment.unknown_names(os.environ):
            log.warning("unknown setting", detail=told)
        await process.run()
    except Exception as raised:
        match error := _first(raised):
            case SetupError():
                log.error("this replica cannot run", error=str(error))
                return EXIT_SETUP
            case Exception() if isinstance(error, environment.UNUSABLE):
                log.error("this replica cannot run", error=environment.sentence(error))
                return EXIT_SETUP
            case MeshError():
                log.error("this replica must start anew", error=str(error))
                return EXIT_AGAIN
        raise
    return 0


def _first(raised: BaseException) -> BaseException:
    found = raised
    while isinstance(found, BaseExceptionGroup):
        found = found.exceptions[0]
    return found


def main() -> int:
    try:
        environment.load()
        settings, mesh_settings = AppSettings(), MeshSettings()
    except environment.UNUSABLE as error:
        print(environment.sentence(error), file=sys.stderr)  # noqa: T201
        return EXIT_SETUP
    logs.configure(settings)
    status = uvloop.run(run(settings, mesh_settings))
    if status == EXIT_AGAIN:
        _end_at_once(status)
    return status


def _end_at_once(status: int) -> None:
    """End without taking the interpreter apart, which takes longer than is left before the next holder may come."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)
