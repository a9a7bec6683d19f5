"""A row of the fault matrix: a scenario with a number, run with a seed, reported as one line of a table.

A row that missed only a bound on time runs once more, because the machine may have been busy; the table says so. A row
that found a broken promise does not run again.
"""

from __future__ import annotations

import contextlib
import os
import random
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.support.faults.checkers import Broken, Findings, TooLate
from tests.support.faults.clock import ServerClock
from tests.support.faults.scenario import Mesh, open_mesh

SEED = int(os.environ.get("FAULTS_SEED") or random.SystemRandom().randrange(1 << 32))


@dataclass
class Result:
    """One line of the table."""

    number: int
    fault: str
    took_s: list[float] = field(default_factory=list)
    findings: Findings = field(default_factory=Findings)
    verdict: str = "not run"
    notes: list[str] = field(default_factory=list)
    row_s: float = 0.0


RESULTS: list[Result] = []


class Faults:
    """What one run of a scenario uses: meshes, a seeded random source, and its line in the table."""

    def __init__(self, folder: Path, chance: random.Random, mutation: str, result: Result) -> None:
        self.chance = chance
        self.result = result
        self.folder = folder
        self.mutation = mutation
        self._meshes = 0
        self._stack = contextlib.AsyncExitStack()

    async def mesh(
        self,
        count: int = 4,
        *,
        classes: str = "AABB",
        options: tuple[str, ...] = (),
        wired: bool = True,
        clock: ServerClock | None = None,
        **env: str,
    ) -> Mesh:
        """Start a mesh behind Caddy and wait until it is ready; it ends with the row.

        With `wired`, replicas reach Redis through proxies, which a row can cut. The server has the `clock`.
        """
        self._meshes += 1
        folder = self.folder / f"mesh-{self._meshes}"
        chosen = {"FAULTS_MUTATION": self.mutation, **env}
        return await self._stack.enter_async_context(
            open_mesh(folder, self.chance, count, chosen, classes, options, wired=wired, clock=clock)
        )

    def took(self, seconds: float) -> None:
        """Add a time to recover to the table."""
        self.result.took_s.append(seconds)

    def note(self, text: str) -> None:
        self.result.notes.append(text)

    async def check(self, mesh: Mesh, **options: Any) -> None:
        """Check every promise that each row has to keep. Raises Broken."""
        self.note(f"{len(mesh.history.samples)} requests")
        findings = self.result.findings = await mesh.check(**options)
        if findings:
            raise Broken(f"{findings.says()}\n{mesh.history.says()}")

    async def close(self) -> None:
        await self._stack.aclose()


Scenario = Callable[[Faults], Awaitable[None]]


@dataclass(frozen=True)
class Row:
    """A scenario with its number and fault."""

    number: int
    fault: str
    scenario: Scenario

    async def run(self, folder: Path, mutation: str = "", seed: int = SEED) -> Result:
        """Run the scenario, with a mutation if one is named. Raises Broken."""
        result = Result(self.number, self.fault)
        faults = Faults(folder, random.Random(f"{seed}/{self.number}"), mutation, result)
        began = time.monotonic()
        try:
            await self._play(faults)
            result.verdict = "passes"
        except TooLate as error:
            result.verdict = "too late"
            result.notes.append(str(error).splitlines()[0])
            raise
        except BaseException:
            result.verdict = "FAILS"
            raise
        finally:
            result.row_s = time.monotonic() - began
            await faults.close()
            if not mutation:
                RESULTS.append(result)
        return result

    async def _play(self, faults: Faults) -> None:
        try:
            await self.scenario(faults)
        except BaseExceptionGroup as group:
            broken, others = group.split(Broken)
            raise others or _first(broken) from group

    async def attempt(self, folder: Path) -> None:
        """Run the scenario, and once more if it only missed a bound on time."""
        try:
            await self.run(folder / "first")
        except TooLate as error:
            missed = RESULTS.pop()
            busy = f"load {os.getloadavg()[0]:.1f}"
            result = await self.run(folder / "second")
            result.notes.append(f"second try, {busy}; first: {str(error).splitlines()[0]}")
            result.took_s = missed.took_s + result.took_s


def _first(group: BaseExceptionGroup[Broken]) -> BaseException:
    found: BaseException = group
    while isinstance(found, BaseExceptionGroup):
        found = found.exceptions[0]
    return found


ROWS: dict[str, Row] = {}


def row(number: int, fault: str, *, selection: bool = False) -> Callable[[Scenario], Callable[[Path], Awaitable[None]]]:
    """Make a scenario a test and a line of the table. With `selection` it also runs with every `make test`."""

    def register(scenario: Scenario) -> Callable[[Path], Awaitable[None]]:
        found = ROWS[scenario.__name__] = Row(number, fault, scenario)

        async def test(tmp_path: Path) -> None:
            await found.attempt(tmp_path)

        test.__name__ = scenario.__name__
        test.__doc__ = scenario.__doc__
        for mark in ("faults", *(("selection",) if selection else ())):
            test = getattr(pytest.mark, mark)(test)
        return pytest.mark.timeout(240)(test)

    return register
