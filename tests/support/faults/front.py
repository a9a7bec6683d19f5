"""`python -m tests.support.faults.front`: the front of several meshes, with the tally service of the fault matrix.

A tally goes to the mesh to which its id belongs, as a value would.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

from quart import Quart, Response, jsonify, request

from examples.several_meshes.front import main
from examples.several_meshes.meshes import MeshesFailed, owner
from mesh import Class, MeshClient, MeshError
from tests.support.faults.tally import ADD, body_of


def with_tally(app: Quart, clients: Mapping[str, MeshClient]) -> None:
    """Add the route."""

    @app.post("/tally")
    async def add() -> Response:
        asked = await request.get_json()
        name = owner(asked["id"], clients)
        try:
            return jsonify(await clients[name].client.call(Class(asked["cls"]), ADD, body_of(asked)))
        except MeshError as error:
            raise MeshesFailed({name: error}) from error


if __name__ == "__main__":
    asyncio.run(main(with_tally))
