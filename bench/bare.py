"""A bare Quart application on the same Hypercorn settings: parses what POST /values takes and returns what it returns.

    python -m bench.bare PORT

It knows no mesh, checks nothing and stores nothing: what HTTP itself costs here.
"""

from __future__ import annotations

import asyncio
import socket
import sys

import uvloop
from quart import Quart, Response, jsonify, request

from quart_app import server

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


async def serve(port: int) -> None:
    listening = socket.create_server(("127.0.0.1", port), backlog=server.BACKLOG)
    await server.run(create_app(), [listening], asyncio.Event().wait, grace_s=1)


if __name__ == "__main__":
    uvloop.run(serve(int(sys.argv[1])))
