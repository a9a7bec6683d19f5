"""/values beside a plain dictionary: Hypothesis looks for a sequence of requests that tells them apart."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

import gmpy2
import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule, run_state_machine_as_test

from mesh import MeshSettings
from quart_app.values import store as records
from quart_app.values.store import Place
from tests.support.nodes import Node, node
from tests.support.server import Server
from tests.support.waiting import eventually

REPLICAS = 3
#: Seconds a short-lived value has; what is less near its end is not asked for.
SHORT, LONG = 1, 600
MARGIN_S = 0.15

primes = (n for n in itertools.count(10**6) if gmpy2.is_prime(n))
cofactors = st.sampled_from([1, 2, 4, 6, 9, 12, 35])
items = st.tuples(cofactors, st.sampled_from([SHORT, LONG, LONG]), st.sampled_from("ABC"))
replica_numbers = st.integers(0, REPLICAS - 1)


@dataclass
class Entry:
    """What the dictionary holds of a value: it has not expired before `earliest`, and certainly has after `latest`."""

    factors: list[int]
    cls: str
    earliest: float
    latest: float


class Mesh:
    """Three replicas in this process, on a real server, driven from outside the event loop."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self._runner = asyncio.Runner()
        self._stack = contextlib.AsyncExitStack()
        self.nodes: list[Node] = []

    def __enter__(self) -> Mesh:
        self.run(self._open())
        return self

    def __exit__(self, *_: object) -> None:
        self.run(self._stack.aclose())
        self._runner.close()

    async def _open(self) -> None:
        # The loop stands still between two steps, and the leases with it.
        chosen = MeshSettings(redis=self.server.settings, lease_ttl_ms=30_000)
        for _ in range(REPLICAS):
            self.nodes.append(await self._stack.enter_async_context(node(chosen)))

    def run(self, awaitable: Any) -> Any:
        return self._runner.run(awaitable)


def machine_of(mesh: Mesh) -> type[RuleBasedStateMachine]:
    """The machine that drives this mesh; every run of it has a prime, and so values, of its own."""

    class Values(RuleBasedStateMachine):
        @initialize()
        def begin(self) -> None:
            self.prime = next(primes)
            self.expected: dict[int, Entry] = {}

        @rule(at=replica_numbers, posted=st.lists(items, min_size=1, max_size=4))
        def put(self, at: int, posted: list[tuple[int, int, str]]) -> None:
            """A new value, the same class again, another class: the dictionary's assignment. The last one counts."""
            mesh.run(self._put(at, posted))

        @rule(
            first=st.tuples(replica_numbers, st.lists(items, min_size=1, max_size=3)),
            second=st.tuples(replica_numbers, st.lists(items, min_size=1, max_size=3)),
            looking=replica_numbers,
        )
        def race(self, first: Any, second: Any, looking: int) -> None:
            """Two clients put at once, and a third looks: each value ends as one of the two said."""
            mesh.run(self._race(first, second, looking))

        @rule(at=replica_numbers)
        def find(self, at: int) -> None:
            """What the dictionary has, ascending, whoever is asked."""
            mesh.run(self._find(at))

        @rule(at=replica_numbers, limit=st.integers(1, 3))
        def find_by_pages(self, at: int, limit: int) -> None:
            """The pages together are the whole."""
            mesh.run(self._find_by_pages(at, limit))

        @rule(at=replica_numbers)
        def expire(self, at: int) -> None:
            """Once its time is over a value is not there, and the dictionary forgets it."""
            if mesh.run(self._short_ones_over()):
                mesh.run(self._find(at))

        def teardown(self) -> None:
            if hasattr(self, "prime"):
                mesh.run(self._holds_each_once())

        async def _put(self, at: int, posted: Sequence[tuple[int, int, str]]) -> None:
            body = [{"value": self.prime * n, "ttl": ttl, "cls": cls} for n, ttl, cls in posted]
            began = time.time()
            response = await mesh.nodes[at].public.post("/values", json=body)
            assert response.status_code == 200, await response.get_data(as_text=True)
            factors = {element["value"]: element["prime_factors"] for element in await response.get_json()}
            assert [element["value"] for element in await response.get_json()] == [item["value"] for item in body]
            for item in body:
                entry = Entry(factors[item["value"]], item["cls"], began + item["ttl"], time.time() + item["ttl"])
                self.expected[item["value"]] = entry

        async def _race(self, first: Any, second: Any, looking: int) -> None:
            before = dict(self.expected)
            # Which of the two is later is not known to us, so each lives as long as the other.
            racing = [(at, [(n, LONG, cls) for n, _, cls in posted]) for at, posted in (first, second)]
            outcomes = await asyncio.gather(
                self._put(*racing[0]), self._put(*racing[1]), self._shown(looking), return_exceptions=True
            )
            for outcome in outcomes:
                if isinstance(outcome, BaseException):
                    raise outcome
            shown = [value for value, _ in outcomes[2]]
            assert len(set(shown)) == len(shown)
            certain = {value for value, entry in before.items() if entry.earliest > time.time() + MARGIN_S}
            assert certain <= set(shown) <= set(self.expected) | set(before)
            for n in {n for _, posted in racing for n, _, _ in posted}:
                self.expected[self.prime * n].cls = ""

        async def _shown(self, at: int, query: str = "") -> list[tuple[int, list[int]]]:
            response = await mesh.nodes[at].public.get(f"/values/{self.prime}{query}")
            assert response.status_code == 200, await response.get_data(as_text=True)
            return [(element["value"], element["prime_factors"]) for element in await response.get_json()]

        async def _settled(self) -> list[tuple[int, list[int]]]:
            """What the dictionary has now, when nothing in it is about to expire."""
            while close := [
                entry.latest
                for entry in self.expected.values()
                if entry.earliest - MARGIN_S < time.time() < entry.latest + MARGIN_S
            ]:
                await self._wait_until(max(close) + MARGIN_S)
            now = time.time()
            return sorted((value, entry.factors) for value, entry in self.expected.items() if entry.latest > now)

        async def _find(self, at: int) -> None:
            expected = await self._settled()
            assert await self._shown(at) == expected

        async def _find_by_pages(self, at: int, limit: int) -> None:
            expected, found, after = await self._settled(), [], 0
            while page := await self._shown(at, f"?limit={limit}&after={after}"):
                assert len(page) <= limit
                found += page
                after = page[-1][0]
            assert found == expected

        async def _short_ones_over(self) -> bool:
            """Wait until all values with a short time to live have expired; return whether there were any."""
            ends = [entry.latest for entry in self.expected.values() if entry.latest < time.time() + 2 * SHORT]
            if ends:
                await self._wait_until(max(ends) + MARGIN_S)
            return bool(ends)

        @staticmethod
        async def _wait_until(moment: float) -> None:
            await asyncio.sleep(max(0.0, moment - time.time()))

        async def _holds_each_once(self) -> None:
            """Check that each value has one record at most, where its place says, with a holder of its class."""
            await self._find(0)
            await self._drops_done()
            # Places are looked at one by one, and none must end meanwhile.
            await self._short_ones_over()
            live = dict(await self._settled())
            with mesh.server.redis() as bus:
                for value in self.expected:
                    where = bus.get(f"shared:{records.WHERE}{value}")
                    if value not in live:
                        assert where is None
                        continue
                    place = Place.parse(where)
                    await self._is_held_by(value, place.database)
                    assert self.expected[value].cls in ("", place.cls)
                    assert mesh.nodes[place.database - 1].replica.cls == place.cls

        async def _is_held_by(self, value: int, database: int) -> None:
            """Wait until only this database has the value: a sweep may have to remove an expired record elsewhere."""

            async def alone() -> bool:
                return _holders(mesh.server, value) == [database]

            await eventually(alone, 2)

        async def _drops_done(self) -> None:
            async with asyncio.timeout(5):
                while (await mesh.nodes[0].replica.books())["in_flight"]:
                    await asyncio.sleep(0.01)

    return Values


def _holders(server: Server, value: int) -> list[int]:
    return [number for number in range(1, REPLICAS + 1) if _has(server, number, value)]


def _has(server: Server, database: int, value: int) -> bool:
    with server.redis(db=database) as admin:
        return bool(admin.hexists(f"db{database}:{records.RECORDS}", str(value)))


@pytest.mark.slow
def test_values_answers_as_a_dictionary_would(server: Server) -> None:
    """Puts, refreshes, overwrites by another class, expiries and races happen at several replicas."""
    examples = int(os.environ.get("MODEL_EXAMPLES", "12"))
    with patch.dict(os.environ, {"VALUES_PROCESSES": "1"}), Mesh(server) as mesh:
        run_state_machine_as_test(
            machine_of(mesh),
            settings=settings(
                max_examples=examples,
                stateful_step_count=15,
                deadline=None,
                database=None,
                # Against a real mesh, shrinking takes longer than reading fifteen steps.
                phases=[Phase.generate],
                suppress_health_check=list(HealthCheck),
            ),
        )
