"""Rows 32 and 33: the most expensive inputs that admission accepts on /values, and a memory that they fill."""

from __future__ import annotations

import asyncio
import json
import math
import random
import time
from collections.abc import Awaitable, Callable, Iterator
from statistics import median

import gmpy2
import httpx

from mesh import keys
from tests.support.faults.checkers import Broken, TooLate
from tests.support.faults.matrix import Faults, row
from tests.support.faults.scenario import Mesh
from tests.support.faults.tally import held_ms

HELD_MS = 20.0
CLASSES_S = 1.0
SECONDS = 60.0
DIGITS = 990
SMALL_PRIMES = [prime for prime in range(5, 2600) if gmpy2.is_prime(prime)]

#: One exchange: it returns the statuses of its answers.
Exchange = Callable[[Mesh, random.Random], Awaitable[list[int]]]


def smooth(chance: random.Random, digits: int = DIGITS) -> int:
    """2^a·3^b·5^c with this many digits: a thousand prime factors, found in microseconds."""
    most = 10**digits
    while True:
        value = 2 ** chance.randrange(digits // 2, digits) * 3 ** chance.randrange(digits // 4, digits // 2)
        value *= 5 ** int((math.log2(most) - math.log2(value)) / math.log2(5))
        if most // 10 <= value < most:
            return value


def primorial(chance: random.Random) -> int:
    """A product of different primes: three hundred entries of the index, each as long as the value."""
    value = 6
    for prime in chance.sample(SMALL_PRIMES, len(SMALL_PRIMES)):
        if value * prime >= 10**DIGITS:
            return value
        value *= prime
    return value


def semiprime(chance: random.Random) -> int:
    """Two primes of 31 bits: the slowest value that is small."""
    return int(gmpy2.next_prime(chance.randrange(2**30, 2**31)) * gmpy2.next_prime(chance.randrange(2**30, 2**31)))


def even(chance: random.Random) -> int:
    return 2 * chance.randrange(2**40, 2**60)


def prime(chance: random.Random) -> int:
    """A prime that is tested on the event loop, for about half a millisecond."""
    return int(gmpy2.next_prime(chance.randrange(10**151, 10**152)))


def post(
    make: Callable[[random.Random], int], count: int, *, as_text: bool = False, times: int = 1, prefer: str = ""
) -> Exchange:
    """POST so many of these values, and again to refresh them."""

    async def exchange(mesh: Mesh, chance: random.Random) -> list[int]:
        body = await asyncio.to_thread(write, chance)
        return [(await ask(mesh, "POST", "/values", body, Prefer=prefer)).status_code for _ in range(times)]

    def write(chance: random.Random) -> str:
        values = [str(make(chance)) if as_text else make(chance) for _ in range(count)]
        return json.dumps([{"value": value, "ttl": 30, "cls": "A"} for value in values])

    return exchange


def get(path: str, clients: int = 1) -> Exchange:
    """GET this path, by several clients at once."""

    async def exchange(mesh: Mesh, chance: random.Random) -> list[int]:
        answers = await asyncio.gather(*(ask(mesh, "GET", path) for _ in range(clients)))
        return [answer.status_code for answer in answers]

    return exchange


async def ask(mesh: Mesh, method: str, path: str, content: str = "", **headers: str) -> httpx.Response:
    """Ask the first replica."""
    headers = {"content-type": "application/json", **headers}
    return await mesh.client.request(method, mesh.members[0].public + path, content=content, headers=headers)


EXCHANGES: dict[str, Exchange] = {
    "480 smooth": post(smooth, 480),
    "480 smooth, again": post(smooth, 480),
    "480 smooth, twice": post(smooth, 480, times=2),
    "all of them": get("/values/2"),
    "pages of them": get("/values/2?limit=1000", 8),
    "1900 smooth": post(smooth, 1900, times=2),
    "1900 smooth as text": post(smooth, 1900, as_text=True),
    "10000 even": post(even, 10_000, times=2),
    "10000 even as text": post(even, 10_000, as_text=True),
    "10000 semiprimes": post(semiprime, 2500),
    "10000 of 150 digits": post(lambda chance: smooth(chance, 150), 10_000),
    "primes": post(prime, 500),
    "different primes": post(primorial, 50),
    "all": get("/values/2"),
    "all, by eight": get("/values/2?limit=100000", 8),
    "a job": post(smooth, 1900, prefer="respond-async"),
}


@row(32, "the most expensive inputs that admission accepts, one after the other")
async def test_row_32_no_input_costs_anybody_else_anything(faults: Faults) -> None:
    """The loop is held 20 ms at most, GET /classes takes a second at most, no lease is lost, nothing is logged."""
    mesh = await faults.mesh(2, classes="AA", wired=False)
    before, held, statuses = await mesh.epochs(), {}, set()
    addresses = [member.private for member in mesh.members]
    async with asyncio.TaskGroup() as tasks:
        looking = tasks.create_task(look(mesh))
        for name, exchange in exchanges(faults.chance):
            await held_ms(mesh.client, addresses)
            statuses |= set(await exchange(mesh, faults.chance))
            held[name] = max(held.get(name, 0.0), await held_ms(mesh.client, addresses))
        looking.cancel()
    with mesh.connect() as client:
        dead = client.xlen(keys.DEAD)
    faults.note(f"loop held {max(held.values()):.0f} ms at most, {median(held.values()):.0f} ms in the middle")
    if await mesh.epochs() != before or any(member.exits for member in mesh.members):
        raise Broken("a lease was lost, or a replica has ended")
    if not statuses <= {200, 202, 422, 503, 504} or dead:
        raise Broken(f"answered {sorted(statuses)}, {dead} dead letters")
    if "Traceback" in mesh.logs() or "crashed" in mesh.logs():
        raise Broken(mesh.logs())
    if slow := {name: round(ms) for name, ms in held.items() if ms > HELD_MS}:
        raise TooLate(f"the event loop was held (ms): {slow}")
    await faults.check(mesh)


@row(32, "one trivial job after the other", selection=True)
async def test_row_32_finished_jobs_hold_up_no_other(faults: Faults) -> None:
    """Only unfinished jobs take a place; a client that finds none is told when the first one ends."""
    mesh = await faults.mesh(2, classes="AA", wired=False, VALUES_MAX_JOBS="2", VALUES_JOB_S="100")
    for _ in range(6):
        answer = await job(mesh, 144)
        if answer.status_code != 202:
            raise Broken(f"finished jobs take places: {answer.text}")

        async def done(path: str = answer.headers["Location"]) -> bool:
            return (await ask(mesh, "GET", path)).json()["state"] == "done"

        await mesh.within(10, done, "a trivial job is done")
    hopeless = [await job(mesh, HOPELESS * n) for n in (1, 2, 3)]
    after_s = int(hopeless[2].headers.get("Retry-After", 0))
    if [answer.status_code for answer in hopeless] != [202, 202, 503] or not 90 <= after_s <= 100:
        raise Broken(f"hopeless jobs were answered {hopeless}, Retry-After {after_s}")
    for answer in hopeless[:2]:
        await ask(mesh, "DELETE", answer.headers["Location"])
    await faults.check(mesh)


#: Of more digits than the sieve takes, and without small factors.
HOPELESS = int(gmpy2.next_prime(10**70)) * int(gmpy2.next_prime(3 * 10**70))


async def job(mesh: Mesh, value: int) -> httpx.Response:
    """Begin a job of one value."""
    return await ask(
        mesh, "POST", "/values", json.dumps([{"value": value, "ttl": 30, "cls": "A"}]), Prefer="respond-async"
    )


@row(33, "values again and again until memory is full")
async def test_row_33_a_full_memory_refuses_stores_alone(faults: Faults) -> None:
    """Stores are 503; reads go on, /readyz says full, nothing grows past the limit; expired data make room."""
    limit = 60 << 20
    options = ("--maxmemory", str(limit), "--maxmemory-policy", "noeviction")
    mesh = await faults.mesh(2, classes="AA", wired=False, options=options)
    before = await mesh.epochs()
    begun = await ask(mesh, "POST", "/values", await written(faults.chance, 100, 3600), Prefer="respond-async")
    statuses = [await filled(mesh, faults.chance) for _ in range(12)]
    if begun.status_code != 202 or 200 not in statuses or statuses[-1] != 503:
        raise Broken(f"the job was answered {begun.status_code}, stores {statuses}")
    used = []
    for _ in range(20):
        answers = [await ask(mesh, "GET", path) for path in ("/values/2?limit=3", "/classes", "/jobs/x")]
        if [answer.status_code for answer in answers] != [200, 200, 404]:
            raise Broken(f"reads were answered {[answer.status_code for answer in answers]}")
        memory = await mesh.admin.info("memory")
        # The server does not count the buffers of its append-only file against maxmemory.
        used.append(int(memory["used_memory"]) - int(memory["mem_not_counted_for_evict"]))
        await asyncio.sleep(0.2)
    faults.note(f"{max(used) >> 20} MB of {limit >> 20} used, stores answered {statuses}")
    looks = [(await mesh.client.get(f"{member.public}/readyz")).json() for member in mesh.members]
    if max(used) > limit or not all(look["full"] for look in looks):
        raise Broken(f"{max(used)} bytes used, /readyz says {looks}")

    async def room() -> bool:
        return await filled(mesh, faults.chance, 1) == 200

    faults.took(await mesh.within(TTL + 5, room, "expired data make room"))
    if await mesh.epochs() != before or any(member.exits for member in mesh.members):
        raise Broken("a lease was lost, or a replica has ended")
    await faults.check(mesh)


@row(33, "a memory that is really full, beyond the reserve")
async def test_row_33_reads_and_logins_go_on_beyond_maxmemory(faults: Faults) -> None:
    """GETs and logins are 200, stores 503 with a reason, /readyz says full; jobs wait; all of it works again later."""
    services = "values,addresses,messages,grades,tally"
    mesh = await faults.mesh(2, classes="AA", wired=False, SERVICES=services, MESSAGES_COOKIE_SECURE="false")
    person = {"email": "a@b.cd", "password": "correct horse"}
    kept = [
        (await ask(mesh, "POST", "/values", await written(faults.chance, 3, 60))).status_code,
        (await ask(mesh, "POST", "/addr_by_phone", address(1))).status_code,
        (await ask(mesh, "POST", "/auth/register", json.dumps(person))).status_code,
    ]
    begun, before = await job(mesh, 2**61 - 1), await mesh.epochs()
    stores = {
        "/values": await written(faults.chance, 3, 60),
        "/addr_by_phone": address(2),
        "/auth/register": json.dumps(person | {"email": "c@b.cd"}),
    }
    await mesh.admin.config_set("maxmemory", "1")
    looks = []
    for _ in range(10):
        paths = ("/values/2?limit=3", "/classes", "/addr_by_phone/+79111230001", begun.headers["Location"])
        looks.append([(await ask(mesh, "GET", path)).status_code for path in paths])
        looks[-1].append((await ask(mesh, "POST", "/auth/login", json.dumps(person))).status_code)
        await asyncio.sleep(0.2)
    refused = [await ask(mesh, "POST", path, body) for path, body in stores.items()] + [await job(mesh, 6)]
    ready = [(await mesh.client.get(f"{member.public}/readyz")).json()["full"] for member in mesh.members]
    await mesh.admin.config_set("maxmemory", "0")
    if kept != [200, 201, 201] or any(look != [200, 200, 200, 200, 204] for look in looks):
        raise Broken(f"stores were answered {kept}; reads and logins, when memory was full, {looks}")
    if any(answer.status_code != 503 or "Redis is full" not in answer.text for answer in refused):
        raise Broken(f"stores were answered {[(answer.status_code, answer.text) for answer in refused]}")
    if not all(ready):
        raise Broken(f"/readyz says {ready}")

    async def works() -> bool:
        # 409: an earlier look has stored it.
        return {(await ask(mesh, "POST", *each)).status_code for each in stores.items()} <= {200, 201, 409}

    faults.took(await mesh.within(5, works, "stores are accepted again"))
    if await mesh.epochs() != before or any(member.exits for member in mesh.members):
        raise Broken("a lease was lost, or a replica has ended")
    await faults.check(mesh)


def address(number: int) -> str:
    """An address of a phone."""
    return json.dumps({"phone": f"+7911123{number:04d}", "address": "Nevsky 1, Saint Petersburg"})


TTL = 15


async def written(chance: random.Random, count: int, ttl: int) -> str:
    """A body with values that cost the most memory."""
    values = await asyncio.to_thread(lambda: [primorial(chance) for _ in range(count)])
    return json.dumps([{"value": value, "ttl": ttl, "cls": "A"} for value in values])


async def filled(mesh: Mesh, chance: random.Random, count: int = 25) -> int:
    """Store some values; return the status."""
    return (await ask(mesh, "POST", "/values", await written(chance, count, TTL))).status_code


def exchanges(chance: random.Random) -> Iterator[tuple[str, Exchange]]:
    """All of them, and then any of them until the time is over."""
    began = time.monotonic()
    yield from EXCHANGES.items()
    while time.monotonic() - began < SECONDS:
        yield chance.choice([*EXCHANGES.items()])


async def look(mesh: Mesh) -> None:
    """Look at /classes all the time, at each replica. Raises TooLate."""
    async with httpx.AsyncClient(timeout=10) as client:
        while True:
            for member in mesh.members:
                began = time.monotonic()
                answer = await client.get(f"{member.public}/classes")
                took_s = time.monotonic() - began
                if answer.status_code != 200:
                    raise Broken(f"GET /classes was answered {answer.status_code}")
                if took_s > CLASSES_S:
                    raise TooLate(f"GET /classes took {took_s:.1f} s")
            await asyncio.sleep(0.1)
