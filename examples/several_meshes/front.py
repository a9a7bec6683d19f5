"""The HTTP front of several meshes: POST /values is split over them, GET /values/{prime} asks all of them.

    export MESHES="north=redis://10.0.0.1:6379/0 south=redis://10.0.0.2:6379/0"
    PORT=8100 python -m examples.several_meshes.front

The front has no state and holds no lease. Run as many as you need, behind any load balancer.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
from collections.abc import Callable, Mapping
from typing import Any

from hypercorn.asyncio import serve
from hypercorn.config import Config
from msgspec import Struct, ValidationError, convert
from quart import Quart, Response, request

from examples.several_meshes.meshes import MOST, Asked, Meshes, MeshesFailed
from mesh import DeadlineExceeded, MeshClient, connect
from quart_app.values.notation import array


class Posted(Struct):
    """An element of the body of a POST."""

    value: int
    ttl: int
    cls: str


def create_app(meshes: Meshes) -> Quart:
    """Return the web application."""
    app = Quart(__name__)

    @app.post("/values")
    async def create() -> Response:
        try:
            posted = convert(json.loads(await request.get_data()), list[Posted])
        except (ValueError, ValidationError) as error:
            return _problem(422, str(error))
        asked = [Asked(str(one.value), one.ttl, one.cls) for one in posted]
        factors = await meshes.put(asked)
        return _values({one.value: factors[one.value] for one in asked})

    @app.get("/values/<int:prime>")
    async def find(prime: int) -> Response:
        found = await meshes.find(str(prime))
        if len(found.factors) >= MOST:
            return _problem(422, f"{prime} has {MOST} values and more; ask the meshes for pages of them")
        response = _values(found.factors)
        if found.left_out:
            databases = [f"{name}/{number}" for name, numbers in found.left_out.items() for number in numbers]
            response.headers["Missing-Databases"] = ", ".join(databases)
        return response

    @app.errorhandler(MeshesFailed)
    async def failed(error: MeshesFailed) -> Response:
        late = all(isinstance(one, DeadlineExceeded) for one in error.errors.values())
        response = _problem(504 if late else 503, str(error), meshes=sorted(error.errors), stored=sorted(error.done))
        response.headers["Retry-After"] = "1"
        return response

    return app


def _values(factors: dict[str, str]) -> Response:
    elements = [f'{{"value":{value},"prime_factors":{array(text)}}}' for value, text in factors.items()]
    return Response(f"[{','.join(elements)}]", content_type="application/json")


def _problem(status: int, detail: str, **facts: Any) -> Response:
    body = {"type": "about:blank", "status": status, "detail": detail, **facts}
    return Response(json.dumps(body), status, content_type="application/problem+json")


async def main(extend: Callable[[Quart, Mapping[str, MeshClient]], None] = lambda app, clients: None) -> None:
    """Serve until SIGTERM. `extend` may add routes."""
    addresses = dict(pair.split("=", 1) for pair in os.environ["MESHES"].split())
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    config = Config()
    config.bind = [f"127.0.0.1:{os.environ.get('PORT', '8100')}"]
    async with contextlib.AsyncExitStack() as stack:
        clients = {name: await stack.enter_async_context(connect(url)) for name, url in addresses.items()}
        app = create_app(Meshes(clients))
        extend(app, clients)
        await serve(app, config, shutdown_trigger=stop.wait)


if __name__ == "__main__":
    asyncio.run(main())
