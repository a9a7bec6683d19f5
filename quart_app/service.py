"""What a service is to the application: routes, operations, a lifespan. Services never import each other.

    create(context) -> Service        one per service, in its module `service`

A service uses the mesh through `context.mesh`. While the replica has no lease, this raises `Unavailable` (503).
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass

from prometheus_client import CollectorRegistry
from quart import Blueprint

from mesh import Mesh, Operations, Unavailable
from mesh.raw import Worker
from quart_app.panels import Act, Panel
from quart_app.settings import AppSettings


@dataclass(slots=True)
class Context:
    """What the application hands to every service."""

    settings: AppSettings
    #: the registry to which a service adds its metrics
    metrics: CollectorRegistry
    #: not the time of a membership, but the object through which a member uses the mesh; None without a lease
    membership: Mesh | None = None

    @property
    def mesh(self) -> Mesh:
        """The mesh, as its member uses it. Raises Unavailable while this process holds no lease."""
        if self.membership is None:
            raise Unavailable("this replica holds no lease yet")
        return self.membership


@contextlib.asynccontextmanager
async def always_ready(mesh: Mesh) -> AsyncIterator[None]:
    """Do nothing: the lifespan of a service that has nothing to open or close."""
    yield


def no_trouble() -> str:
    """Return "": the service reports no trouble while it is ready."""
    return ""


def nothing_told() -> Mapping[str, str]:
    """Return {}: the service adds no fields to the roster row."""
    return {}


@dataclass(frozen=True, slots=True)
class Service:
    """One service on the mesh."""

    name: str
    #: routes on the public port
    public: Sequence[Blueprint] = ()
    #: routes on the private port, for other replicas and operators
    private: Sequence[Blueprint] = ()
    #: operations that this service handles for the mesh
    operations: Sequence[Operations | Worker] = ()
    #: Entered once the replica holds its lease, and left before the lease is released. The service is ready while its
    #: lifespan is entered; otherwise its routes answer 503. If the lifespan raises an error, only this service stops,
    #: and the lifespan is entered again after a pause.
    lifespan: Callable[[Mesh], AbstractAsyncContextManager[None]] = always_ready
    #: Returns why the service cannot do all of its work at the moment, or "". `/readyz` gives this reason, and the
    #: roster names the service.
    trouble: Callable[[], str] = no_trouble
    #: Returns what the service tells all replicas: fields that each renewal of the lease writes into the roster row.
    told: Callable[[], Mapping[str, str]] = nothing_told
    #: Reads what the live page shows of the service, for the whole mesh. Raises RedisError, MeshError. None: the page
    #: shows nothing of it.
    panel: Callable[[Mesh], Awaitable[Panel]] | None = None
    #: What an operator can do to the service on the live page.
    acts: Sequence[Act] = ()
