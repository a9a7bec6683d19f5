"""Row 41: the clock of the server steps. No acknowledged value ends early."""

from __future__ import annotations

import asyncio

import pytest

from tests.support.faults.checkers import Broken
from tests.support.faults.clock import COMPILER, ServerClock
from tests.support.faults.completeness import Watch
from tests.support.faults.history import send
from tests.support.faults.matrix import Faults, row
from tests.support.faults.scenario import L, Mesh

#: A prime that no other load uses.
PRIME = 1_000_039


@pytest.mark.skipif(not COMPILER, reason="no C compiler here")
@row(41, "the server's clock steps back 60 s, forward one hour, and back")
async def test_row_41_a_step_of_the_clock_ends_no_value_early(faults: Faults) -> None:
    """Values of streams with and without entries from before the step are shown; the mesh is back within L + 3 s."""
    clock = ServerClock(faults.folder / "clock")
    mesh = await faults.mesh(classes="AABC", clock=clock)
    watch = Watch(mesh)
    await watch.store("AB")
    async with watch.running():
        for number, shift_s in enumerate((-60, 3600, 0), 2):
            clock.step(shift_s)
            # A lease that ends is noticed with the next renewal.
            await asyncio.sleep(1)
            faults.took(await mesh.within(L + 3, watch.everything, f"clock at {shift_s} s"))
            await _is_shown(mesh, PRIME * number, "ABC"[number % 3])
    faults.note(watch.says())
    await faults.check(mesh)


async def _is_shown(mesh: Mesh, value: int, cls: str) -> None:
    """Store a value for 30 s and check that every replica shows it at once, and after a second. Raises Broken."""
    if not (await mesh.post(None, "/values", [{"value": value, "ttl": 30, "cls": cls}])).ok:
        raise Broken(f"{value} could not be stored")
    for pause_s in (0, 1):
        await asyncio.sleep(pause_s)
        for member in mesh.members:
            sample = await send(mesh.client, f"{member.public}/values/{PRIME}")
            if sample.ok and value not in {item["value"] for item in sample.answer}:
                raise Broken(f"{value} of class {cls} is not shown {pause_s} s after its answer")
