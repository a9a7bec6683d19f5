"""Row 60: two meshes behind the front of `examples/several_meshes`, and one of them loses its Redis for a while."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from pathlib import Path

from examples.several_meshes.meshes import owner
from quart_app.local.ports import free_port
from quart_app.local.spawning import spawn
from tests.support.faults.checkers import Broken
from tests.support.faults.history import History, Sample, send
from tests.support.faults.load import PRIME, Load, look
from tests.support.faults.matrix import Faults, row
from tests.support.faults.scenario import L, Mesh

AWAY_S = 2.0
#: The front adds the way from its client to a mesh to the deadline of a request.
FRONT_S = 1.0


@contextlib.asynccontextmanager
async def _front(meshes: dict[str, Mesh], folder: Path) -> AsyncIterator[str]:
    """Run the front in a process of its own and return its address."""
    port = free_port()
    addresses = " ".join(f"{name}={mesh.server.url}" for name, mesh in meshes.items())
    own = {name: value for name, value in (*meshes.values(),)[0].env.items() if name.startswith("MESH_")}
    with (folder / "front.log").open("wb") as log:
        command = [sys.executable, "-m", "tests.support.faults.front"]
        process = spawn(command, log, {**os.environ, **own, "MESHES": addresses, "PORT": str(port)})
    address = f"http://127.0.0.1:{port}"
    mesh = next(iter(meshes.values()))
    try:
        await mesh.within(20, lambda: _answers(mesh, address), "the front answers")
        yield address
    finally:
        process.kill()
        process.wait()


async def _answers(mesh: Mesh, address: str) -> bool:
    return await mesh.status(f"{address}/values/{PRIME}") == 200


def _part(history: History, name: str, names: Sequence[str]) -> list[Sample]:
    """Return what the history has to do with one mesh: only its values and its tallies."""
    part = []
    for sample in history.samples:
        if sample.path == "/tally":
            if owner(sample.asked["id"], names) == name:
                part.append(sample)
        elif sample.path == "/values":
            items = [item for item in sample.asked if owner(str(item["value"]), names) == name]
            if items:
                part.append(_put(sample, items))
        else:
            found = [item for item in sample.answer if owner(str(item["value"]), names) == name] if sample.ok else None
            part.append(replace(sample, answer=found))
    return part


def _put(sample: Sample, items: list[dict[str, object]]) -> Sample:
    """Return the part of a POST. It succeeded where the answer says that its values are stored."""
    stored = sample.answer.get("stored", ()) if sample.answer and not sample.ok else ()
    status = 200 if {str(item["value"]) for item in items} <= set(stored) else sample.status
    return replace(sample, asked=items, status=status)


def _names_only(history: History, down: str) -> None:
    """Check that answers of 503 and 504 name the mesh that was down and no other, and that there were some."""
    refused = [sample for sample in history.samples if sample.status in (503, 504)]
    if not any(sample.path.startswith("/values/") and sample.status == 503 for sample in refused):
        raise Broken(f"no GET was a 503: {history.says()}")
    wrong = [sample.answer for sample in refused if sample.answer["meshes"] != [down]]
    if wrong:
        raise Broken(f"{len(wrong)} refusals do not name {down}: {wrong[:3]}")


@row(60, "one of two meshes without its Redis")
async def test_row_60_each_of_two_meshes_keeps_the_promises(faults: Faults) -> None:
    """The history of each mesh has an order that explains it. A failure names the mesh that is down."""
    meshes = {
        name: await faults.mesh(2, classes="AB", options=("--appendfsync", "always"), wired=False)
        for name in ("north", "south")
    }
    north, south = meshes.values()
    history = north.history
    async with _front(meshes, faults.folder) as address:
        load = Load(address, history, "AB", (), faults.chance)
        async with load.running(north.admin, 8, 0.04):
            watching = asyncio.create_task(_looks(south))
            await asyncio.sleep(2)
            south.server.kill()
            await asyncio.sleep(AWAY_S)
            await asyncio.to_thread(south.server.start)
            faults.took(await south.recovered(L + 3))
            await asyncio.sleep(2)
            watching.cancel()
        last = await send(north.client, f"{address}/values/{PRIME}")
        history.samples.append(replace(last, path=f"/values/{PRIME}"))
    _names_only(history, "south")
    twice = [sample.answer for sample in history.of("/values/") if sample.ok and not _ascending(sample)]
    if twice:
        raise Broken(f"a GET is not ascending, or shows a value twice: {twice[0]}")
    parts = {name: _part(history, name, list(meshes)) for name in meshes}
    for name, mesh in meshes.items():
        # What the harness itself asked this mesh directly, to see whether it has recovered, is in the history of south.
        mesh.history.samples = parts[name] + ([] if mesh is north else mesh.history.samples)
        mesh.patience_s += FRONT_S
        await faults.check(mesh)


def _ascending(sample: Sample) -> bool:
    values = [item["value"] for item in sample.answer]
    return values == sorted(set(values))


async def _looks(mesh: Mesh) -> None:
    """Look at the records of a mesh again and again, while its server is there."""
    while True:
        with contextlib.suppress(Exception):
            mesh.history.looks.append(await look(mesh.admin))
        await asyncio.sleep(0.25)
