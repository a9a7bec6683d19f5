"""What a service is to the application: routes, handlers, a life. Services never import each other.

    create(context) -> Service        one per service, in its package's `__init__`

`context.mesh` is the replica's membership while it lasts; before and after it raises `Unavailable` (503).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field

from prometheus_client import CollectorRegistry
from quart import Blueprint

from mesh import Replica, Unavailable, Worker
from quart_app.settings import AppSettings


@dataclass(slots=True)
class Context:
    """What the application hands to every service."""

    settings: AppSettings
    metrics: CollectorRegistry
    replica: Replica | None = None

    @property
    def mesh(self) -> Replica:
        """This process's membership. Raises Unavailable while there is none."""
        if self.replica is None:
            raise Unavailable("this replica holds no lease yet")
        return self.replica


@dataclass(frozen=True, slots=True)
class Service:
    """One service on the mesh."""

    name: str
    #: routes on the port everybody reaches
    public: Sequence[Blueprint] = ()
    #: routes on the port for neighbours and operators
    private: Sequence[Blueprint] = ()
    #: operations worked off for the mesh
    worker: Worker = field(default_factory=Worker)
    #: entered once the lease is held and left before it is released; having entered it means ready
    lifespan: Callable[[Replica], AbstractAsyncContextManager[None]] | None = None
