"""Opens the services of a replica side by side, so that a failing service never stops the others.

    opening --lifespan entered--> ready --the replica leaves--> closed
       ^                            |
       +----- backoff <-- failed ---+    also after a failure while opening; it grows to MAX_PAUSE_S

A service that is not ready answers 503 on its own routes, with the reason. `/readyz` and the roster name it.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence

import structlog
from prometheus_client import CollectorRegistry, Gauge
from redis.exceptions import RedisError

from mesh import LeaseLost, Mesh, MeshError, failures, pauses
from quart_app.http.problems import Problem
from quart_app.service import Service

log = structlog.get_logger(__name__)

#: The first and the longest backoff before a failed service is opened again; `pauses` shortens each by up to a half.
#: With longer ones, a service that fails costs less, but is ready again later. If a service was ready for longer than
#: MAX_PAUSE_S before it failed, the backoff begins with the first one again.
MIN_PAUSE_S = 0.25
MAX_PAUSE_S = 10.0


class ServiceLife:
    """The life of one service in this process."""

    def __init__(self, service: Service) -> None:
        self.name = service.name
        self._service = service
        self._failure = ""
        #: when the service is opened again after a failure, on the monotonic clock
        self._retry_at_s = 0.0
        #: set once the service is ready or has failed for the first time: `Services.running` waits for it
        self.was_tried = asyncio.Event()
        self.ready = False

    @property
    def reason(self) -> str:
        """Why the service cannot do all of its work now, or "" if it can. A ready service, too, may be in trouble."""
        if self.ready:
            return self._service.trouble()
        return self._failure or self._service.trouble() or "it is starting"

    def roster_fields(self) -> Mapping[str, str]:
        """Return the fields that the service adds to this replica's roster row."""
        return self._service.told()

    def make_refusal(self) -> Callable[[], Awaitable[None]]:
        """Return a function for Quart to run before each route. While the service is not ready, it raises a 503."""

        async def refuse_until_ready() -> None:
            if not self.ready:
                retry_after_s = max(1, math.ceil(self._retry_at_s - time.monotonic()))
                raise Problem(503, f"the service {self.name} is not ready: {self.reason}", retry_after=retry_after_s)

        return refuse_until_ready

    async def run(self, mesh: Mesh, closing: asyncio.Event) -> None:
        """Keep the service open until `closing` is set; open it again after each failure. Raises LeaseLost.

        `closing` is set when this replica leaves.
        """
        backoff = pauses(MIN_PAUSE_S, MAX_PAUSE_S)
        # A process that joins the mesh again has tried before, under its former lease.
        self.was_tried.clear()
        while True:
            # Infinite until the service is ready: after a failure before then, the pauses go on growing.
            ready_at_s = math.inf
            try:
                async with self._service.lifespan(mesh):
                    ready_at_s = time.monotonic()
                    self._become_ready()
                    await closing.wait()
                return
            except Exception as error:
                if _lease_is_lost(error) or _is_being_cancelled():  # then nothing is opened again
                    raise
                if time.monotonic() - ready_at_s > MAX_PAUSE_S:
                    backoff = pauses(MIN_PAUSE_S, MAX_PAUSE_S)
                pause_s = next(backoff)
                self._keep_and_log_failure(error, pause_s)
            finally:
                self.ready = False
            await asyncio.sleep(pause_s)

    def _become_ready(self) -> None:
        if self._failure:
            log.info("service ready again", service=self.name)
        self.ready, self._failure = True, ""
        self.was_tried.set()

    def _keep_and_log_failure(self, error: Exception, pause_s: float) -> None:
        """Keep and log why the service is not ready; with a traceback, unless it is an error of the mesh or Redis."""
        cause = _first_error(error)
        mesh_error = failures.translate(cause) if isinstance(cause, RedisError) else cause
        if not isinstance(mesh_error, MeshError):
            mesh_error = None
        self._failure = str(mesh_error or "it failed unexpectedly; the server log has the error")
        self._retry_at_s = time.monotonic() + pause_s
        log.warning(
            "service not ready", service=self.name, reason=str(mesh_error or cause), retry_in_s=round(pause_s, 1),
            exc_info=None if mesh_error else error,
        )  # fmt: skip
        self.was_tried.set()


class Services:
    """All services of this replica."""

    def __init__(self, services: Sequence[Service], metrics: CollectorRegistry) -> None:
        self._lives = [ServiceLife(service) for service in services]
        ready_gauge = Gauge(
            "mesh_service_ready", "1 while the service does all of its work", ["service"], registry=metrics
        )
        for life in self._lives:
            ready_gauge.labels(life.name).set_function(_readiness_of(life))
            for blueprint in (*life._service.public, *life._service.private):
                blueprint.before_request(life.make_refusal())

    def not_ready(self) -> dict[str, str]:
        """Return the services that cannot do all of their work, each with the reason."""
        return {life.name: reason for life in self._lives if (reason := life.reason)}

    def roster_fields(self) -> dict[str, str]:
        """Return the fields that all services add to this replica's roster row, for `Process` to announce."""
        return {name: fact for life in self._lives for name, fact in life.roster_fields().items()}

    @contextlib.asynccontextmanager
    async def running(self, mesh: Mesh, wait_s: float) -> AsyncIterator[None]:
        """Keep all services open while the block lasts. Raises LeaseLost.

        The block begins once every service is ready or has failed, and after `wait_s` seconds at the latest.
        """
        closing = asyncio.Event()
        async with asyncio.TaskGroup() as tasks:
            life_tasks = [
                (life, tasks.create_task(life.run(mesh, closing), name=f"service-{life.name}")) for life in self._lives
            ]
            with contextlib.suppress(TimeoutError):  # the others serve meanwhile
                async with asyncio.timeout(wait_s):
                    for life in self._lives:
                        await life.was_tried.wait()
            yield
            closing.set()
            # A service that is not ready would not notice `closing`: it may be in a pause, or may take long to open.
            for life, task in life_tasks:
                if not life.ready:
                    task.cancel()


def _readiness_of(life: ServiceLife) -> Callable[[], float]:
    return lambda: float(not life.reason)


def _first_error(error: BaseException) -> BaseException:
    """Return the error itself, or the first one in a group."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


def _is_being_cancelled() -> bool:
    """Return whether this task was cancelled. Until Python 3.13 a failing task group swallows the cancellation."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


def _lease_is_lost(error: Exception) -> bool:
    """Return whether an error is LeaseLost, or a group that contains one. Then the whole membership must end."""
    if isinstance(error, BaseExceptionGroup):
        return error.subgroup(LeaseLost) is not None
    return isinstance(error, LeaseLost)
