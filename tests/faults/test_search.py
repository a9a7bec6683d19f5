"""Row 32, searched: what is the most expensive input that each route accepts?

The other tests of this row know expensive inputs. This one looks for more: it draws inputs of every route at random,
and changes the most expensive one so far. What counts is the longest time that the event loop was held, whatever the
answer.
"""

from __future__ import annotations

import asyncio
import json
import random
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from urllib.parse import quote

import gmpy2
import httpx2
import pytest

from tests.support.faults.checkers import Broken, TooLate
from tests.support.faults.matrix import Faults, row
from tests.support.faults.scenario import Mesh
from tests.support.faults.tally import held_ms

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")

HELD_MS = 20.0
CLASSES_S = 1.0
SECONDS = 60.0
#: An input that holds the loop is tried so many times more, and counts only if it holds it each time.
AGAIN = 2
#: Bodies in progress, values in work and unsent answers have bounds of their own; together they stay below this.
GROWTH = 400 << 20
BODY = (2 << 20) - 4096
SERVICES = "values,addresses,messages,grades,movements,tally"
#: What phones, accounts, ids and headers are made of.
TEXTS = [
    "7",
    "+",
    "(",
    "1-",
    "ext. 1",
    ";ext=1",
    "\u0667",
    "FLOWERS",
    "a=b; ",
    "a,",
    "\u0301",
    "\ufb03",
    "%C3%A4",
    "urn:uuid:",
]
SMALL_PRIMES = [prime for prime in range(2, 2600) if gmpy2.is_prime(prime)]
WORD_PRIMES = [int(gmpy2.next_prime(2**30 + 1_000_000 * n)) for n in range(200)]


@dataclass(frozen=True)
class Draw:
    """One input: `kind` of value or text, its `length`, how many go together, and how many clients send it at once."""

    route: str
    kind: int
    length: int
    count: int
    clients: int

    def changed(self, chance: random.Random) -> Draw:
        """Return an input that differs in one respect."""
        fresh = drawn(self.route, chance)
        name = chance.choice(["kind", "length", "count", "clients"])
        return replace(self, **{name: getattr(fresh, name)})


def drawn(route: str, chance: random.Random) -> Draw:
    """Return any input of a route; small and large ones are equally likely."""
    length, count = int(10 ** chance.uniform(1, 4.5)), int(10 ** chance.uniform(0, 4))
    return Draw(route, chance.randrange(100), length, count, chance.choice([1, 1, 2, 4, 8]))


@lru_cache(maxsize=64)
def primorial(digits: int) -> int:
    """Return the product of as many small primes as fit into so many digits."""
    value = 1
    for prime in SMALL_PRIMES:
        if len(str(value * prime)) > digits:
            break
        value *= prime
    return value


def value(draw: Draw, n: int) -> int:
    """Return the value of this number: of many equal factors, of many different ones, of two large ones, or prime."""
    digits = max(4, min(draw.length, 990))
    match draw.kind % 4:
        case 0:
            return int(2 ** (3 * digits - n % 150) * 3 ** (n % 150)) * (2 * n + 1)
        case 1:
            return primorial(digits) * (n + 1)
        case 2:
            return WORD_PRIMES[n % 200] * WORD_PRIMES[n // 200 % 200]
    return WORD_PRIMES[n % 200] if n > 50 else int(gmpy2.next_prime(10 ** min(digits, 150) + 1000 * n))


def values(draw: Draw) -> str:
    """Return the body of a POST of values."""
    numbers = [value(draw, n) for n in range(min(draw.count, 10_000, BODY // min(draw.length + 40, 1040)))]
    as_text = draw.kind % 8 > 3
    return json.dumps([{"value": str(n) if as_text else n, "ttl": 5, "cls": "AB"[draw.kind // 8 % 2]} for n in numbers])


def text(draw: Draw, most: int) -> str:
    """Return a text of one of the kinds."""
    piece = TEXTS[draw.kind % len(TEXTS)]
    return (piece * (min(draw.length, most) // len(piece) + 1))[:most]


def account(draw: Draw) -> str:
    """Return the body of a registration or a login."""
    return json.dumps({"email": text(draw, 250) + "@a.example", "password": text(draw, 256)})


Input = tuple[str, str, str, dict[str, str]]

#: route -> method, path, body, headers
ROUTES: dict[str, Callable[[Draw], Input]] = {
    "values": lambda draw: ("POST", "/values", values(draw), {}),
    "job": lambda draw: ("POST", "/values", values(draw), {"prefer": "respond-async"}),
    "find": lambda draw: ("GET", f"/values/{SMALL_PRIMES[draw.kind]}?limit={draw.count}", "", {}),
    "all": lambda draw: ("GET", f"/values/{SMALL_PRIMES[draw.kind % 4]}", "", {}),
    "prime": lambda draw: ("GET", f"/values/{value(draw, draw.count)}", "", {}),
    "phone": lambda draw: ("GET", "/addr_by_phone?phone=" + quote("+7" + text(draw, 250)), "", {}),
    "address": lambda draw: (
        "POST", "/addr_by_phone", json.dumps({"phone": "+7" + text(draw, 250), "address": text(draw, 5000)}), {},
    ),
    "register": lambda draw: ("POST", "/auth/register", account(draw), {}),
    "login": lambda draw: ("POST", "/auth/login", account(draw), {}),
    "message": lambda draw: ("POST", "/messages", json.dumps({"message": text(draw, 16_000)}), {}),
    "account": lambda draw: ("GET", "/users/me", "", {"cookie": "session=" + quote(text(draw, 5000))}),
    "grade": lambda draw: ("GET", "/get?user_id=" + quote(text(draw, 5000)), "", {}),
    "movement": lambda draw: ("GET", "/api/movements/" + quote(text(draw, 5000), safe=""), "", {}),
    "stock": lambda draw: ("GET", f"/api/warehouses/{'0' * 32}/products/{'1' * 31}{draw.kind % 10}", "", {}),
    "headers": lambda draw: (
        "GET", "/classes", "", {"prefer": quote(text(draw, 5000)), "x-forwarded-for": quote(text(draw, 5000))},
    ),
}  # fmt: skip


@row(32, "the most expensive input of each route, searched for")
async def test_row_32_no_input_that_a_search_finds_holds_the_event_loop(faults: Faults) -> None:
    """The loop is held 20 ms at most, memory is bounded, GET /classes takes a second at most, no lease is lost."""
    folder = faults.folder / "movements.db"
    mesh = await faults.mesh(2, classes="AB", wired=False, SERVICES=SERVICES, MOVEMENTS_DB_PATH=str(folder))
    worst: dict[str, tuple[float, Draw]] = {}
    before, usual = await mesh.epochs(), [used(member.pid) for member in mesh.members]
    addresses = [member.private for member in mesh.members]
    await held_ms(mesh.client, addresses)  # the start does not count
    began, tried, slowest_s = time.monotonic(), 0, 0.0
    while time.monotonic() - began < SECONDS:
        route = faults.chance.choice([*ROUTES])
        draw = drawn(route, faults.chance)
        if route in worst and faults.chance.random() < 0.5:
            draw = worst[route][1].changed(faults.chance)
        slowest_s = max(slowest_s, await tried_out(mesh, draw))
        longest_ms = await held_ms(mesh.client, addresses)
        for _ in range(AGAIN if longest_ms > HELD_MS else 0):
            slowest_s = max(slowest_s, await tried_out(mesh, draw))
            longest_ms = min(longest_ms, await held_ms(mesh.client, addresses))
        worst[route] = max(worst.get(route, (0.0, draw)), (longest_ms, draw), key=lambda found: found[0])
        tried += 1
    grown = [peak(member.pid) - was for member, was in zip(mesh.members, usual, strict=True)]
    most_ms, most = max(worst.values(), key=lambda found: found[0])
    grown_mb = max(grown) >> 20
    faults.note(f"{tried} inputs; loop held {most_ms:.0f} ms at most ({most}); {grown_mb} MB more at the peak")
    if await mesh.epochs() != before or any(member.exits for member in mesh.members):
        raise Broken("a lease was lost, or a replica has ended")
    if max(grown) > GROWTH:
        raise Broken(f"a process grew by {grown_mb} MB")
    if "Traceback" in mesh.logs():
        raise Broken(mesh.logs())
    if slowest_s > CLASSES_S:
        raise TooLate(f"GET /classes took {slowest_s:.1f} s")
    if slow := {route: found for route, found in worst.items() if found[0] > HELD_MS}:
        raise TooLate(f"the event loop was held (ms): {slow}")
    await faults.check(mesh)


async def tried_out(mesh: Mesh, draw: Draw) -> float:
    """Send an input by all of its clients at once; return how long GET /classes took beside it. Raises Broken."""
    method, path, body, headers = await asyncio.to_thread(ROUTES[draw.route], draw)
    url = mesh.members[draw.count % 2].public

    async def send(path: str, method: str = "GET", body: str = "", **headers: str) -> int:
        try:
            sent = await mesh.client.request(
                method, url + path, content=body, headers={"content-type": "application/json", **headers}, timeout=20
            )
        except httpx2.RemoteProtocolError:  # the connection was closed after the answer to a request that is too large
            return 0
        if sent.status_code == 202:
            await mesh.client.delete(url + sent.headers["Location"])
        return int(sent.status_code)

    sending = [asyncio.create_task(send(path, method, body, **headers)) for _ in range(draw.clients)]
    await asyncio.sleep(0.01)
    began = time.monotonic()
    statuses = {await send("/classes")}
    took_s = time.monotonic() - began
    statuses |= set(await asyncio.gather(*sending))
    if statuses & {500, 502}:
        raise Broken(f"{draw} was answered {sorted(statuses)}")
    return took_s


def used(pid: int) -> int:
    """Return the memory of a process in bytes, and begin to look for its peak."""
    Path(f"/proc/{pid}/clear_refs").write_text("5")
    return _memory(pid, "VmRSS")


def peak(pid: int) -> int:
    """Return the most memory of a process, in bytes, since `used`."""
    return _memory(pid, "VmHWM")


def _memory(pid: int, name: str) -> int:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(name)).split()[1]) << 10
