"""Any interleaving of changes, kills, pauses, restarts, trimming and lost logs ends in equal digests."""

from __future__ import annotations

import asyncio
import itertools
from collections import defaultdict
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mesh import Unavailable
from quart_app.grades.models import UserGrade
from tests.support.grades import Node, Nodes
from tests.support.server import Server

NODES = 4
FIELD_NAMES = ("postpaid_limit", "spp", "shipping_fee", "return_fee")
AT = st.integers(0, NODES - 1)
CHANGE = st.tuples(AT, st.sampled_from(["a", "b", "c"]), st.sets(st.sampled_from(FIELD_NAMES), min_size=1, max_size=4))
STEP = st.one_of(
    st.tuples(st.just("change"), st.lists(CHANGE, min_size=1, max_size=12)),
    st.tuples(st.just("change"), st.lists(CHANGE, min_size=1, max_size=12)),
    st.tuples(st.sampled_from(["kill", "leave", "pause", "start"]), AT),
    st.tuples(st.just("lose the log"), AT),
)


class History:
    """The acknowledged changes. Of concurrent ones (one round) any may win; a later round wins against them."""

    def __init__(self) -> None:
        self.allowed: dict[tuple[str, str], set[int]] = defaultdict(set)
        self._values = itertools.count(1)

    async def change(self, changes: list[tuple[Node, str, set[str]]]) -> None:
        """Make concurrent changes and wait until all are acknowledged."""
        wanted = [(node, user, {name: next(self._values) for name in names}) for node, user, names in changes]
        answers = await asyncio.gather(*(acknowledged(node, user, fields) for node, user, fields in wanted))
        written: dict[tuple[str, str], set[int]] = defaultdict(set)
        for _, user, fields in wanted:
            for name, value in fields.items():
                written[user, name].add(value)
        self.allowed.update(written)
        for (_, user, fields), answer in zip(wanted, answers, strict=True):
            for name in fields:
                assert getattr(answer, name) in self.allowed[user, name]

    def check(self, node: Node) -> None:
        for (user, name), values in self.allowed.items():
            grade = node.replication.get(user)
            assert grade is not None and getattr(grade, name) in values, (user, name, grade, values)


async def acknowledged(node: Node, user: str, fields: dict[str, int]) -> UserGrade:
    """Repeat a change until it is acknowledged: it is refused while a lost log is founded again."""
    async with asyncio.timeout(15):
        while True:
            try:
                return await node.set(user, **fields)
            except Unavailable:
                await asyncio.sleep(0.02)


async def play(nodes: Nodes, steps: list[tuple[str, object]]) -> None:
    history = History()
    await nodes.up(*(f"node-{number}" for number in range(NODES)))
    for what, about in steps:
        up = [node for node in nodes if node.is_up]
        match what, about:
            case "change", list(changes) if up:
                for node in up:
                    await node.start()
                await history.change([(up[at % len(up)], user, names) for at, user, names in changes])
            case (("kill" | "leave" | "pause" | "start"), int(at)):
                node = nodes[at]
                await (node.start(ready=False) if what == "start" else getattr(node, what)())
            case "lose the log", int() if up:
                await nodes.agree()  # what only a killed node had read could not be known to anybody
                await nodes.redis.delete(nodes.key)
    for node in nodes:
        await node.start(ready=False)
    await nodes.agree()
    for node in nodes:
        history.check(node)


@pytest.mark.slow
def test_any_interleaving_ends_in_equal_digests(server: Server, tmp_path: Path) -> None:
    """Four nodes write snapshots and trim after every five entries; no acknowledged change is lost."""
    counter = itertools.count()

    @settings(
        max_examples=25,
        deadline=None,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
    )
    @given(st.lists(STEP, min_size=3, max_size=14))
    def run(steps: list[tuple[str, object]]) -> None:
        number = next(counter)

        async def example() -> None:
            nodes = Nodes(server.port, tmp_path / f"example-{number}", key=f"shared:grades:log:{number}")
            try:
                async with asyncio.timeout(30):
                    await play(nodes, steps)
            finally:
                await nodes.close()

        asyncio.run(example())

    run()
