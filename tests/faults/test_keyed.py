"""Row 57: calls with idempotency keys, while callers and workers are killed."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import Counter, defaultdict
from collections.abc import AsyncIterator
from pathlib import Path

import redis

from mesh import MeshError, connect, join, keys
from mesh.requests.scripts import BOOKS, COMMIT, END, SUBMIT
from quart_app.local.ports import free_port
from tests.support.faults import keyed
from tests.support.faults.checkers import Broken
from tests.support.faults.keyed import AT_ONCE, NUMBERS, Players, ask, call, key_of, settings_of, work
from tests.support.faults.matrix import Faults, row
from tests.support.faults.wire import Wire
from tests.support.killed_processes import ACCOUNTS, STREAMS
from tests.support.server import Server

WORKERS, CALLERS = 4, 3
KILLS, KILL_S, LONGEST_S, SETTLE_S = 100, 0.3, 60, 30


@contextlib.asynccontextmanager
async def balanced(server: Server) -> AsyncIterator[list[dict[str, int]]]:
    """While the block lasts, each sample of the books balances."""
    samples: list[dict[str, int]] = []

    async def sample() -> None:
        while True:
            with contextlib.suppress(redis.RedisError), server.redis() as admin:
                values = await asyncio.to_thread(admin.eval, BOOKS.source, 1 + len(STREAMS), keys.BOOKS, *STREAMS)
                books = dict(zip(ACCOUNTS, map(int, values), strict=True))
                samples.append(books)
                if books["accepted"] != sum(books[name] for name in ACCOUNTS[1:]) or books["lost"]:
                    raise Broken(f"the books do not balance: {books}")
            await asyncio.sleep(0.05)

    async with asyncio.TaskGroup() as tasks:
        sampling = tasks.create_task(sample())
        try:
            yield samples
        finally:
            sampling.cancel()


def answers_in(folder: Path) -> dict[int, set[str]]:
    """Return the answers that callers got, by number."""
    found = defaultdict(set)
    with contextlib.suppress(FileNotFoundError):
        for line in (folder / "answers").read_text().splitlines():
            number, answer = line.split()
            found[int(number)].add(answer)
    return found


async def trouble(server: Server, wire: Wire) -> None:
    """Lose an answer each half second, and kill the server in between."""
    for number in range(1000):
        await asyncio.sleep(0.5)
        wire.lose([SUBMIT, COMMIT, END][number % 3].sha.encode())
        if number in (8, 20):
            server.kill()
            server.start()


async def play(faults: Faults, server: Server, wire: Wire, players: Players) -> None:
    """Make trouble until each payment has an answer; what has none by then is asked for afterwards."""
    tasks = [
        asyncio.create_task(players.kill_at_random(faults.chance, KILL_S)),
        asyncio.create_task(trouble(server, wire)),
    ]
    until = time.monotonic() + LONGEST_S
    while time.monotonic() < until and (len(answers_in(faults.folder)) < NUMBERS or players.killed < KILLS):
        done, _ = await asyncio.wait(tasks, timeout=0.2, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            await task
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)
    faults.note(f"{len(answers_in(faults.folder))} answered meanwhile")
    players.end()


async def last_answers(server: Server) -> dict[int, str]:
    """Ask for each payment once more, and return the answers; a worker that nobody kills answers what is open."""
    settings = settings_of(server.port)
    async with join(keyed.keyed, settings=settings), connect(settings=settings) as mesh:
        found: dict[int, str] = {}

        async def some(numbers: list[int]) -> None:
            for number in numbers:
                with contextlib.suppress(MeshError):
                    found[number] = await ask(mesh, number)

        until = time.monotonic() + SETTLE_S
        while len(found) < NUMBERS and time.monotonic() < until:
            left = sorted(set(range(NUMBERS)) - found.keys())
            await asyncio.gather(*(some(left[first::AT_ONCE]) for first in range(AT_ONCE)))
        return found


def left_behind(server: Server) -> list[str]:
    """Return keys that nobody needs any more."""
    with server.redis() as admin:
        names = [name for name in admin.keys("mesh:once:*") if not admin.hget(name, "body") or admin.pttl(name) < 0]
        names += [name for name in admin.keys("mesh:once:*") if any(":" in field for field in admin.hkeys(name))]
        names += [name for name in admin.keys(f"{keys.LATER}*") if not name.startswith(keys.CANCELLED)]
        return names + [stream for stream in STREAMS if admin.xlen(stream)]


@row(57, "kill -9 workers and callers of 1,000 keyed calls every 0-300 ms; answers lost; Redis restarts")
async def test_row_57_calls_with_one_key_have_one_effect_and_one_answer(faults: Faults) -> None:
    """Each payment happens once, all who ask get the same answer, and nothing is left."""
    folder = faults.folder / "redis"
    folder.mkdir(parents=True)
    server = Server(free_port(), folder, ["--appendfsync", "always"])
    server.start()
    wire = Wire(server.port, faults.chance)
    await wire.open()
    players = Players([work] * WORKERS + [call] * CALLERS, wire.port, faults.folder, faults.mutation)
    try:
        async with balanced(server) as samples:
            await play(faults, server, wire, players)
            last = await last_answers(server)
            await judge(faults, server, last)
        faults.note(f"{players.killed} kills, {wire.swallowed} answers lost, {len(samples)} samples of the books")
    finally:
        players.end()
        await wire.close()
        server.kill()


async def judge(faults: Faults, server: Server, last: dict[int, str]) -> None:
    """Compare effects and answers. Raises Broken."""
    with server.redis() as admin:
        effects = {int(number): int(times) for number, times in admin.hgetall("shared:keyed:effects").items()}
        open_keys = [number for number in range(NUMBERS) if number not in last]
    wrong = Counter(times for times in effects.values() if times != 1)
    if wrong:
        raise Broken(f"a payment took effect {max(wrong)} times; {sum(wrong.values())} took effect more than once")
    if open_keys:
        raise Broken(f"{len(open_keys)} keys have no answer, such as {key_of(open_keys[0])}")
    if len(effects) != NUMBERS:
        raise Broken(f"{NUMBERS - len(effects)} payments had no effect")
    different = {number: got for number, got in answers_in(faults.folder).items() if got != {last[number]}}
    if different:
        raise Broken(f"callers of one key got different answers: {dict(list(different.items())[:3])}")
    until = time.monotonic() + SETTLE_S
    while left := left_behind(server):
        if time.monotonic() > until:
            raise Broken(f"{len(left)} keys are left behind: {left[:5]}")
        await asyncio.sleep(0.2)
