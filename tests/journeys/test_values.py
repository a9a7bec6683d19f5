"""/values over HTTP, with replicas in processes of their own: the task's examples, and what no GET may ever show."""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections import defaultdict
from dataclasses import dataclass, field
from typing import Any

import pytest

from mesh import Class, keys
from tests.support.replicas import Process, Replicas

#: The server stamps requests in whole milliseconds of the clock we read in parts of them.
SLOP_S = 0.005

EXAMPLE = [{"value": 144, "ttl": 300, "cls": "A"}, {"value": 120, "ttl": 600, "cls": "C"}]
EXAMPLE_ANSWER = [
    {"value": 144, "prime_factors": [2, 2, 2, 2, 3, 3]},
    {"value": 120, "prime_factors": [2, 2, 2, 3, 5]},
]


async def test_the_tasks_examples_to_the_letter_at_any_replica(replicas: Replicas) -> None:
    """Three replicas of class A and one of class C: each replica gives the answers of the task text."""
    processes = [*await replicas(3, {"MESH_CLASS": "A"}), *await replicas(1, {"MESH_CLASS": "C"})]
    for process in processes:
        classes = await replicas.client.get(f"{process.public}/classes")
        assert (classes.status_code, classes.json()) == (200, ["A", "C"])
        posted = await replicas.client.post(f"{process.public}/values", json=EXAMPLE)
        assert (posted.status_code, posted.json()) == (200, EXAMPLE_ANSWER)
        for other in processes:
            found = await replicas.client.get(f"{other.public}/values/5")
            assert (found.status_code, found.json()) == (200, EXAMPLE_ANSWER[1:])
            both = await replicas.client.get(f"{other.public}/values/2")
            assert (both.status_code, both.json()) == (200, [EXAMPLE_ANSWER[1], EXAMPLE_ANSWER[0]])


async def test_what_the_task_says_of_classes_and_of_repetition(replicas: Replicas) -> None:
    """A class nobody has: 404, nothing of the request done. Another class: overwritten. The same: a new ttl."""
    one, two = await replicas(2)
    client = replicas.client

    absent = await client.post(
        f"{one.public}/values",
        json=[{"value": 7, "ttl": 300, "cls": "A"}, {"value": 49, "ttl": 300, "cls": "D"}],
    )
    assert (absent.status_code, absent.headers["content-type"]) == (404, "application/problem+json")
    assert (await client.get(f"{two.public}/values/7")).json() == []

    assert (await client.post(f"{one.public}/values", json=[{"value": 7, "ttl": 300, "cls": "X"}])).status_code == 422

    for process, cls, ttl in [(one, "A", 1), (two, "B", 1), (one, "B", 300), (two, "A", 300)]:
        item = {"value": 77, "ttl": ttl, "cls": cls}
        assert (await client.post(f"{process.public}/values", json=[item])).status_code == 200
        for other in (one, two):
            found = (await client.get(f"{other.public}/values/11")).json()
            assert found == [{"value": 77, "prime_factors": [7, 11]}]
    await asyncio.sleep(1.1)
    assert len((await client.get(f"{one.public}/values/11")).json()) == 1, "the last ttl counts"
    assert (await client.get(f"{one.public}/values/10")).status_code == 422


async def test_requests_on_their_stream_are_readable_with_redis_cli_alone(replicas: Replicas) -> None:
    """XRANGE shows plain fields and one JSON body: no pickles, no codes to look up."""
    one, _ = await replicas(2, {"MESH_CLASS": "A"})
    members = {member.replica for member in await replicas.roster()}
    seen: dict[str, dict[str, str]] = {}
    stop = asyncio.Event()

    async def load(number: int) -> None:
        while not stop.is_set():
            items = [{"value": random.randrange(1, 10**15), "ttl": 60, "cls": "A"} for _ in range(50)]
            assert (await replicas.client.post(f"{one.public}/values", json=items)).status_code == 200

    with replicas.server.redis() as admin:
        async with asyncio.timeout(20), asyncio.TaskGroup() as tasks:
            for number in range(8):
                tasks.create_task(load(number))
            while len(seen) < 20:
                seen.update(await asyncio.to_thread(admin.xrange, Class("A").stream))
            stop.set()

    for id, entry in seen.items():
        fields = {"op", "request", "from", "reply_to", "deadline", "body", "call"}
        assert set(entry) == fields, "all fields, and only these"
        assert entry["call"], "the X-Request-ID of the POST"
        assert entry["op"] == "values.put"
        assert entry["from"] in members
        assert entry["reply_to"] == keys.replies(entry["from"])
        assert entry["request"].startswith(entry["from"])
        assert 0 < int(entry["deadline"]) - int(id.partition("-")[0]) <= 5000
        assert all(set(item) == {"value", "ttl"} for item in json.loads(entry["body"])["items"])


@dataclass(slots=True)
class Put:
    """One POST of one value. `acknowledged` is the time of its 200, or infinity if the answer was another one."""

    began: float
    ttl: int
    acknowledged: float = float("inf")

    def lives(self, moment: float) -> bool:
        """Return whether the value certainly has not expired at this moment."""
        return self.began + self.ttl - SLOP_S > moment

    def is_over(self, moment: float) -> bool:
        """Return whether the value certainly has expired at this moment."""
        return self.acknowledged + self.ttl + SLOP_S < moment


@dataclass(slots=True)
class Get:
    began: float
    ended: float
    shown: list[int]


@dataclass
class History:
    """Everything that was asked and answered; each value is put by one client, one put after the other."""

    puts: dict[int, list[Put]] = field(default_factory=lambda: defaultdict(list))
    gets: list[Get] = field(default_factory=list)

    def wrong(self) -> list[str]:
        """Return a sentence for each answer of a GET that no order of the puts can explain."""
        return [complaint for get in self.gets for complaint in self._wrong(get)]

    def _wrong(self, get: Get) -> list[str]:
        found = []
        if len(set(get.shown)) != len(get.shown):
            found.append(f"twice: {sorted(v for v in get.shown if get.shown.count(v) > 1)}")
        for value, puts in self.puts.items():
            possible = self._possible(puts, get)
            is_shown = value in get.shown
            if (
                not is_shown
                and possible[0] is not None
                and all(put is not None and put.lives(get.ended) for put in possible)
            ):
                found.append(f"{value} is missing at {get.began:.3f}..{get.ended:.3f}: {possible}")
            if is_shown and all(put is None or put.is_over(get.began) for put in possible):
                found.append(f"{value} is shown at {get.began:.3f}..{get.ended:.3f}: {possible}")
        return found

    @staticmethod
    def _possible(puts: list[Put], get: Get) -> list[Put | None]:
        """Return the puts of which one decides what this GET may show. None stands for no put before it."""
        before: Put | None = None
        meanwhile: list[Put | None] = []
        for put in puts:
            if put.acknowledged < get.began:
                before = put
                meanwhile = []
            elif put.began < get.ended:
                meanwhile.append(put)
        return [before, *meanwhile]


def test_the_history_check_finds_what_is_wrong() -> None:
    """A check that cannot complain shows nothing."""
    history = History()
    history.puts[6] = [Put(10.0, 5, 10.1)]
    history.gets = [Get(11.0, 11.1, [6])]
    assert not history.wrong()
    for get, complaint in (
        (Get(11.0, 11.1, []), "missing"),
        (Get(11.0, 11.1, [6, 6]), "twice"),
        (Get(16.0, 16.1, [6]), "shown"),
        (Get(9.0, 9.1, [6]), "shown"),
    ):
        history.gets = [get]
        assert complaint in str(history.wrong())
    # What is under way may or may not show.
    history.puts[6].append(Put(14.0, 1, 14.5))
    history.gets = [Get(14.9, 14.95, [6]), Get(14.2, 16.0, []), Get(14.2, 14.3, [6])]
    assert not history.wrong()


@pytest.mark.slow
async def test_no_get_shows_a_value_twice_misses_an_acknowledged_one_or_shows_an_expired_one(
    replicas: Replicas,
) -> None:
    """Writers and readers at four replicas at once: puts, refreshes, overwrites by another class, expiries."""
    processes = await replicas(4)
    history = History()
    until = time.time() + 8
    async with asyncio.TaskGroup() as tasks:
        for number in range(6):
            tasks.create_task(_write(replicas, processes, history, number, until))
        for process in processes:
            tasks.create_task(_read(replicas, process, history, until))
    assert not history.wrong()[:5]
    acknowledged = sum(put.acknowledged < float("inf") for puts in history.puts.values() for put in puts)
    shown = sum(len(get.shown) for get in history.gets)
    assert acknowledged > 200 and len(history.gets) > 50 and shown > 500, "too little happened to show anything"
    expired = [puts for puts in history.puts.values() if puts[-1].is_over(until)]
    assert len(expired) > 10, "nothing expired"


async def _write(replicas: Replicas, processes: list[Process], history: History, number: int, until: float) -> None:
    """Put values of our own, all multiples of 3, one after the other; a third of them early enough to expire."""
    chosen = random.Random(number)
    own = [3 * (1000 * number + n) for n in range(1, 40)]
    while (now := time.time()) < until:
        values = chosen.sample(own if now < until - 4.5 else own[:26], chosen.randrange(1, 4))
        items = [{"value": v, "ttl": chosen.randrange(1, 4), "cls": chosen.choice("ABCD")} for v in values]
        began = time.time()
        puts = [Put(began, item["ttl"]) for item in items]
        for item, put in zip(items, puts, strict=True):
            history.puts[item["value"]].append(put)
        response = await replicas.client.post(f"{chosen.choice(processes).public}/values", json=items)
        assert response.status_code == 200, response.text
        for put in puts:
            put.acknowledged = time.time()


async def _read(replicas: Replicas, process: Process, history: History, until: float) -> None:
    while time.time() < until:
        began = time.time()
        response = await replicas.client.get(f"{process.public}/values/3")
        assert response.status_code == 200, response.text
        answer: list[dict[str, Any]] = response.json()
        history.gets.append(Get(began, time.time(), [element["value"] for element in answer]))
