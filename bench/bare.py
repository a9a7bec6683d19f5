"""A bare Quart application on an unchanged Hypercorn with our settings, or on ours.

    python -m bench.bare PORT [hypercorn | connection | application]

It takes the body of POST /values and returns an answer of the same form, without a mesh, checks or storage. So it
measures what HTTP itself costs: with Hypercorn's own connections (h11), with ours (llhttp) under Quart's own class, and
with ours under our class of application.
"""

from __future__ import annotations

import asyncio
import socket
import sys

import uvloop
from hypercorn.asyncio import serve
from prometheus_client import CollectorRegistry
from quart import Quart, Response, jsonify, request

from quart_app import logs
from quart_app.http import server
from quart_app.http.application import Application
from quart_app.http.metrics import RequestMetrics
from quart_app.http.server import configuration
from quart_app.http.sockets import BACKLOG
from quart_app.settings import AppSettings

TEN = [{"value": 2147483659 * n, "prime_factors": [n, 2147483659]} for n in (3, 5, 7, 11, 13, 17, 19, 23, 29, 31)]


def create_app(kind: str) -> Quart:
    app: Quart = Quart("bare")
    if kind == "application":
        logs.configure(AppSettings())
        app = Application("bare", AppSettings(), RequestMetrics(CollectorRegistry()), is_leaving=lambda: False)

    @app.post("/values")
    async def values() -> Response:
        items = await request.get_json()
        return jsonify([{"value": item["value"], "prime_factors": [3, 6148914691236517205]} for item in items])

    @app.get("/values/<int:prime>")
    async def by_prime(prime: int) -> Response:
        return jsonify(TEN)

    @app.get("/readyz")
    async def readyz() -> Response:
        return jsonify({"status": "ready"})

    return app


async def listen(port: int, kind: str) -> None:
    listening = socket.create_server(("127.0.0.1", port), backlog=BACKLOG)
    app, forever = create_app(kind), asyncio.Event()
    if kind == "hypercorn":
        await serve(app, configuration([listening], grace_s=1), shutdown_trigger=forever.wait)
    else:
        await server.run(app, [listening], forever.wait, grace_s=1)


if __name__ == "__main__":
    uvloop.run(listen(int(sys.argv[1]), sys.argv[2] if len(sys.argv) > 2 else "hypercorn"))
