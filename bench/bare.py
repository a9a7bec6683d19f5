"""A bare Quart application on an unchanged Hypercorn with our settings.

    python -m bench.bare PORT

It takes the body of POST /values and returns an answer of the same form, without a mesh, checks or storage. So it
measures what HTTP itself costs here.
"""

from __future__ import annotations

import asyncio
import socket
import sys

import uvloop
from hypercorn.asyncio import serve
from quart import Quart, Response, jsonify, request

from quart_app.http.server import configuration
from quart_app.http.sockets import BACKLOG

TEN = [{"value": 2147483659 * n, "prime_factors": [n, 2147483659]} for n in (3, 5, 7, 11, 13, 17, 19, 23, 29, 31)]


def create_app() -> Quart:
    app = Quart("bare")

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


async def listen(port: int) -> None:
    listening = socket.create_server(("127.0.0.1", port), backlog=BACKLOG)
    await serve(create_app(), configuration([listening], grace_s=1), shutdown_trigger=asyncio.Event().wait)


if __name__ == "__main__":
    uvloop.run(listen(int(sys.argv[1])))
