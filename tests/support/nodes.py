"""Whole replicas in the test's own process: membership, services and routes, without sockets."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

from prometheus_client import CollectorRegistry
from quart.typing import TestClientProtocol

from mesh import MeshSettings, join
from mesh.raw import Replica
from quart_app.app import App, create_app
from quart_app.service import Context
from quart_app.settings import AppSettings


@dataclass
class Node:
    """One replica: `public` and `private` are clients of its two applications."""

    app: App
    replica: Replica

    @property
    def public(self) -> TestClientProtocol:
        return self.app.public.test_client()

    @property
    def private(self) -> TestClientProtocol:
        return self.app.private.test_client()


def applications(**settings: Any) -> App:
    """Return the applications of a replica that has no lease yet."""
    return create_app(Context(AppSettings(**{"services": "values", **settings}), CollectorRegistry()))


@contextlib.asynccontextmanager
async def node(mesh_settings: MeshSettings, **settings: Any) -> AsyncIterator[Node]:
    """Run a replica while the block lasts; it is ready from the start."""
    app = applications(**settings)
    async with join(*app.operations, settings=mesh_settings) as mesh:
        app.context.membership = mesh
        async with app.services.running(mesh, wait_s=10):
            app.reason = ""
            yield Node(app, mesh.replica)
