"""Rows 30 and 32 of the fault matrix: bytes that nobody should send, and the most expensive bytes that are accepted.

Row 30: no answer is a 500, each comes in time, the event loop is never held longer than 100 ms, the process grows by at
most 50 MB, and afterwards everything works as before.

Row 32: the event loop is held 20 ms at most, no lease is lost and no replica ends, GET /classes takes a second at most.
The expensive values of /values have a file of their own, `test_expensive.py`.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import random
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path
from urllib.parse import quote, urlsplit

import gmpy2
import psutil
import pytest

from tests.support.faults.checkers import Broken, TooLate
from tests.support.faults.matrix import Faults, row
from tests.support.faults.scenario import Member, Mesh
from tests.support.hostile import LARGE, large

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")

#: Each case writes these bytes to one port; an incomplete request ends with the end of the stream.
Bytes = tuple[str, bytes]

STALL_S = 8.0
HELD_MS = 100.0
GROWTH = 50 << 20
#: Cases that are no HTTP; the server may close the connection without an answer.
SILENCE = 0


def post(body: bytes | str, path: str = "/values", kind: str = "application/json", head: str = "") -> bytes:
    """Return a POST with this body."""
    data = body.encode() if isinstance(body, str) else body
    return (
        f"POST {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Type: {kind}\r\n{head}"
        f"Content-Length: {len(data)}\r\n\r\n"
    ).encode() + data


def get(path: str | bytes, head: str = "") -> bytes:
    """Return a GET of this path."""
    raw = path.encode() if isinstance(path, str) else path
    return b"GET " + raw + f" HTTP/1.1\r\nHost: x\r\nConnection: close\r\n{head}\r\n".encode()


def item(value: object = 6, ttl: object = 5, cls: object = "A") -> str:
    return json.dumps([{"value": value, "ttl": ttl, "cls": cls}])


LONG_PRIME = int(gmpy2.next_prime(gmpy2.mpz(10) ** 999))

BODIES: dict[str, bytes | str] = {
    "nothing": "",
    "a letter": "x",
    "half an object": '[{"value":',
    "a byte order mark": b"\xef\xbb\xbf[]",
    "UTF-16": "[]".encode("utf-16"),
    "bad UTF-8": b'[{"value": 6, "ttl": 5, "cls": "\xff\xfe"}]',
    "half a surrogate pair": '[{"value": 6, "ttl": 5, "cls": "\\ud800"}]',
    "a null byte": '[{"value": 6, "ttl": 5, "cls": "A\\u0000"}]',
    "NaN": '[{"value": NaN, "ttl": 5, "cls": "A"}]',
    "infinity": '[{"value": 6, "ttl": -Infinity, "cls": "A"}]',
    "a key twice": '[{"value": 6, "value": 7, "ttl": 5, "cls": "A"}]',
    "an unknown key": '[{"value": 6, "ttl": 5, "cls": "A", "__proto__": {}}]',
    "true for a number": item(True),
    "a float": item(6.0),
    "an exponent": '[{"value": 1e3, "ttl": 5, "cls": "A"}]',
    "a huge exponent": '[{"value": 1e999999999, "ttl": 5, "cls": "A"}]',
    "zero": item(0),
    "less than nothing": item(-1),
    "minus zero": '[{"value": -0, "ttl": 5, "cls": "A"}]',
    "no time to live": item(6, 0),
    "for ever": item(6, 1 << 70),
    "no class": item(6, 5, None),
    "another class": item(6, 5, "E"),
    "a class of a megabyte": item(6, 5, "A" * (1 << 20)),
    "4299 digits": f'[{{"value": {"9" * 4299}, "ttl": 5, "cls": "A"}}]',
    "4301 digits": f'[{{"value": {"9" * 4301}, "ttl": 5, "cls": "A"}}]',
    "a million digits": f'[{{"value": {"9" * 1_000_000}, "ttl": 5, "cls": "A"}}]',
    "a million digits as text": item("9" * 1_000_000),
    "digits of another script": item("\u0661\u0662\u0663"),
    "superscript digits": item("\u00b2"),
    "a 1000-digit prime": item(LONG_PRIME),
    "1000 digits": item(int("9" * 1000)),
    "100000 deep lists": "[" * 100_000 + "]" * 100_000,
    "100000 deep objects": '{"a":' * 100_000 + "1" + "}" * 100_000,
    "an object for a list": "{}",
    "a string for a list": '"[]"',
    "ten million spaces": " " * 1_900_000,
    "ten thousand items": json.dumps([{"value": 2**61 - i, "ttl": 1, "cls": "A"} for i in range(10_000)]),
    "ten thousand bad items": json.dumps([{"value": -i, "ttl": "x", "cls": 7} for i in range(10_000)]),
    "ten thousand of one": json.dumps([{"value": 6, "ttl": 1, "cls": "B"}] * 10_000),
    "a hundred thousand nothings": "[" + ",".join(["{}"] * 100_000) + "]",
    "a hundred thousand keys": json.dumps([{f"k{i}": i for i in range(100_000)}]),
    "more than may be sent": " " * (3 << 20),
}

PATHS = {
    "a path of 60 KB": "/" + "a" * 60_000,
    "dots": "/values/../../etc/passwd",
    "percent dots": "/values/%2e%2e%2f%2e%2e%2fetc",
    "a null byte": "/values/%00",
    "bad UTF-8": "/values/%ff%fe",
    "raw bytes": b"/values/\xff\xfe",
    "a bad percent": "/values/%zz",
    "not a number": "/values/x",
    "less than nothing": "/values/-3",
    "a plus": "/values/+3",
    "not a prime": "/values/4",
    "one": "/values/1",
    "nothing": "/values/0",
    "digits of another script": "/values/%D9%A3",
    "a 1000-digit prime": f"/values/{LONG_PRIME}",
    "a number of 1001 digits": f"/values/1{'0' * 1000}",
    "a number of 20000 digits": "/values/" + "7" * 20_000,
    "a limit of nothing": "/values/3?limit=0",
    "a limit of many": "/values/3?limit=" + "9" * 300,
    "a limit of words": "/values/3?limit=x&after=y",
    "a thousand limits": "/values/3?" + "limit=1&" * 1000,
    "after all": "/values/3?after=" + "9" * 999,
    "another method": "/nowhere",
    "a URL for a path": "http://x/values/3",
    "no path": "*",
    "a question mark": "?",
    "half an address": "http://[",
    "an asset of 3000 letters": "/docs/assets/" + "a" * 3000,
    "slashes": "//values//3",
}

HEADS = {
    "a wait of words": "Prefer: wait=x\r\n",
    "a wait of nothing": "Prefer: wait=0\r\n",
    "a wait for ever": "Prefer: wait=" + "9" * 400 + "\r\n",
    "a request id of a page": "X-Request-ID: " + "a" * 8000 + "\r\n",
    "a request id with a line in it": "X-Request-ID: a%0d%0aSet-Cookie: b\r\n",
    "a header of 30 KB": "X: " + "a" * 30_000 + "\r\n",
    "a hundred kilobytes of headers": "".join(f"X{i}: {'a' * 100}\r\n" for i in range(1000)),
    "a header that is none": "nonsense\r\n",
    "a null in a header": "X: \x00\r\n",
    "an upgrade": "Upgrade: websocket\r\nConnection: Upgrade\r\n",
    "an upgrade with its key": (
        "Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
        "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
    ),
    "an upgrade to HTTP/2": "Upgrade: h2c\r\nHTTP2-Settings: AAMAAABkAARAAAAAAAIAAAAA\r\nConnection: Upgrade\r\n",
    "an expectation": "Expect: 200-maybe\r\n",
    "compressed": "Content-Encoding: gzip\r\n",
    "two lengths": "Content-Length: 2\r\n",
    "a length and chunks": "Transfer-Encoding: chunked\r\n",
    "a range": "Range: bytes=0-\r\n",
}

WIRES = {
    "nothing at all": b"",
    "a line of noise": bytes(range(256)) + b"\r\n\r\n",
    "TLS": bytes.fromhex("16030100a5010000a10303") + bytes(160),
    "HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(9),
    "HTTP/0.9": b"GET /\r\n",
    "no version": b"GET / \r\n\r\n",
    "version nine": b"GET / HTTP/9.9\r\nHost: x\r\n\r\n",
    "a host that none can have": b"GET /health HTTP/1.1\r\nHost: " + b"a" * 70 + b".x\r\n\r\n",
    "a host of dots": b"GET /health HTTP/1.1\r\nHost: ....\r\n\r\n",
    "no host": b"GET /classes HTTP/1.1\r\n\r\n",
    "a bad length": b"POST /values HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n",
    "a length of words": b"POST /values HTTP/1.1\r\nHost: x\r\nContent-Length: many\r\n\r\n",
    "a huge length": b"POST /values HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999999999\r\n\r\n[]",
    "less than its length": post("[        ")[:-8],
    "bad chunks": b"POST /values HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
    "a huge chunk": b"POST /values HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nffffffffffffffff\r\n[",
    "a thousand requests at once": get("/health").replace(b"Connection: close\r\n", b"") * 1000,
}


def corpus() -> dict[str, bytes]:
    """Return all cases by name."""
    kinds = (
        "text/plain",
        "application/xml",
        "multipart/form-data; boundary=x",
        "application/json; charset=utf-7",
        "",
        "/",
    )
    return {
        **{f"body: {name}": post(body) for name, body in BODIES.items()},
        **{f"path: {name}": get(path) for name, path in PATHS.items()},
        **{f"head: {name}": post(item(), head=head) for name, head in HEADS.items()},
        **{f"head of a GET: {name}": get("/values/3", head) for name, head in HEADS.items()},
        **{f"type: {kind}": post(item(), kind=kind) for kind in kinds},
        **{
            f"method: {word}": get("/values").replace(b"GET", word.encode(), 1)
            for word in ("TRACE", "PUT", "get", "X" * 99)
        },
        **{f"wire: {name}": data for name, data in WIRES.items()},
    }


async def exchange(member: Member, data: bytes, *, end: bool) -> tuple[int, float]:
    """Write bytes, with `end` also the end of the stream; return the first answer's status and the seconds it took."""
    url, began = urlsplit(member.public), time.monotonic()
    answer = b""
    with contextlib.suppress(OSError):
        reader, writer = await asyncio.open_connection(url.hostname, url.port)
        try:
            with contextlib.suppress(OSError):
                writer.write(data)
                await writer.drain()
                if end:
                    writer.write_eof()
            async with asyncio.timeout(STALL_S):
                while piece := await reader.read(1 << 16):
                    answer += piece
        finally:
            writer.transport.abort()
    status = int(answer.split(b" ", 2)[1]) if answer.startswith(b"HTTP/1.1 ") else SILENCE
    return status, time.monotonic() - began


def peak(pid: int) -> int:
    """Return the most memory of a process since `forget`, in bytes."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) << 10


def forget(pid: int) -> int:
    """Reset the peak and return the present memory of the process, in bytes."""
    Path(f"/proc/{pid}/clear_refs").write_text("5")
    return psutil.Process(pid).memory_info().rss


async def held_ms(mesh: Mesh, member: Member) -> float:
    """Return the longest time, in ms, that the event loop was held since the last call."""
    return (await mesh.client.get(f"{member.private}/tally/loop")).json()["held_ms"]


@row(30, "the HTTP corpus: hostile heads, paths, methods and bodies", selection=True)
async def test_row_30_hostile_bytes_are_answered_and_forgotten(faults: Faults) -> None:
    """No case gets a 500, stalls, holds the event loop or uses much memory; the mesh works afterwards."""
    mesh = await faults.mesh(2, classes="AB", wired=False)
    target = mesh.members[0]
    async with mesh.load(clients=2):
        await asyncio.sleep(1)
    before, wrong, held = forget(target.pid), [], {}
    await held_ms(mesh, target)
    for name, data in corpus().items():
        try:
            status, took_s = await exchange(target, data, end=name.startswith("wire"))
        except TimeoutError:
            status, took_s = -1, STALL_S
        held[name] = await held_ms(mesh, target)
        if status == 500 or status < 0 or (status == SILENCE and not name.startswith(("wire", "head", "path"))):
            wrong.append((name, status, round(took_s, 2)))
    grown = peak(target.pid) - before
    faults.note(f"{len(held)} kinds; loop held {max(held.values()):.0f} ms at most; {grown >> 20} MB more at the peak")
    if wrong:
        raise Broken(f"answers with 500, late or missing: {wrong}")
    if grown > GROWTH:
        raise Broken(f"the process grew by {grown >> 20} MB")
    slow = {name: round(ms) for name, ms in held.items() if ms > HELD_MS}
    if slow:
        raise Broken(f"the event loop was held (ms): {slow}")
    if not await mesh.serves():
        raise Broken("the replica does not serve any more")
    await faults.check(mesh)


@row(30, "two hundred bodies that never end", selection=True)
async def test_row_30_bodies_that_never_end_hold_nobody_up(faults: Faults) -> None:
    """Each client sends a byte now and then; other clients get their answers as usual."""
    mesh = await faults.mesh(2, classes="AB", wired=False)
    url = urlsplit(mesh.members[0].public)
    slow = [await asyncio.open_connection(url.hostname, url.port) for _ in range(200)]
    for _, writer in slow:
        writer.write(post(" " * 1000)[:-1000])
    async with mesh.load(clients=4, to=mesh.members[0].public):
        for _ in range(10):
            for _, writer in slow:
                writer.write(b" ")
            await asyncio.sleep(0.2)
    for _, writer in slow:
        writer.transport.abort()
    if not all(sample.ok and sample.took_s < 2 for sample in mesh.history.samples):
        raise Broken(mesh.history.says())
    await faults.check(mesh)


#: Of each replica with all services: where a body is read, and how.
READ = [
    ("POST", "/values"), ("POST", "/addr_by_phone"), ("PUT", "/addr_by_phone"), ("POST", "/messages"),
    ("POST", "/auth/register"), ("POST", "/auth/login"),
]  # fmt: skip
SERVICES = "values,addresses,messages,grades,tally"
LOOP_MS = 20.0
CLASSES_S = 1.0
#: bytes of a body, and how many clients send one at the same time
SIZES = [((2 << 20) - 1024, 8), (16_000, 16), (2000, 16)]


def dear(chance: random.Random) -> dict[str, bytes]:
    """The dearest input found for every other route; each is admitted, whatever its answer."""
    digits = "".join(chance.choices("0123456789", k=250))
    phones = {
        "digits": digits, "pluses": "+" * 250, "brackets": "+1" + "(" * 248, "dashes": "+" + "1-" * 120,
        "letters": "+1-800-" + "FLOWERS" * 30, "Arabic digits": "+" + "\u0667" * 250,
        "extensions": "+79111234567;ext=1" * 12,
        "extension words": "+79111234567" + " ext. 1" * 30, "contexts": "tel:1" + ";phone-context=+7" * 14,
    }  # fmt: skip
    found = {f"phone: {name}": get("/addr_by_phone?phone=" + quote(phone)) for name, phone in phones.items()}
    found |= {f"path: {name}": get("/addr_by_phone/" + quote(phone, safe="")) for name, phone in phones.items()}
    for name, phone in phones.items():
        body = json.dumps({"phone": phone, "address": "\u00e4" * 255}, ensure_ascii=False)
        found[f"new phone: {name}"] = post(body, "/addr_by_phone")
    long = {"email": "a" * 60 + "@" + "b." * 90 + "example.com", "password": "\ufb03" * 256}
    found |= {f"account: {path}": post(json.dumps(long), path) for path in ("/auth/register", "/auth/login")}
    accents = {"email": "\u0301" * 240 + "@example.com", "password": "\u0344" * 256}
    found |= {f"accents: {path}": post(json.dumps(accents), path) for path in ("/auth/register", "/auth/login")}
    cookie = f"Cookie: session={'a' * 8000}.{'b' * 8000}.{'c' * 8000}\r\n"
    found |= {f"cookie: {path}": get(path, cookie) for path in ("/users/me", "/quota")}
    found["cookies"] = get("/users/me", f"Cookie: {'a=b; ' * 6000}\r\n")
    found["preferences"] = get("/values/2", f"Prefer: {'a,' * 15_000}\r\n")
    found["forwarded for"] = get("/classes", f"X-Forwarded-For: {'10.0.0.1,' * 3000}\r\n")
    found["arguments"] = get("/values/2?" + "a=1&" * 7000)
    found["a name"] = get("/get?user_id=" + "%C3%A4" * 5000)
    found |= {path: get(path) for path in ("/openapi.json", "/docs/assets/swagger-ui-bundle.js", "/docs", "/")}
    return found


@row(
    32, "the largest bodies in every form, eight at a time, and the dearest input of every other route", selection=True
)
async def test_row_32_no_body_holds_the_event_loop(faults: Faults) -> None:
    """Nobody else waits for it, and no lease is lost."""
    mesh = await faults.mesh(2, classes="AB", wired=False, SERVICES=SERVICES)
    target, held = mesh.members[0], {}
    before = await mesh.epochs()
    await held_ms(mesh, target)
    async with watched(mesh):
        for number, (name, (size, clients)) in enumerate(itertools.product(LARGE, SIZES)):
            method, path = READ[number % len(READ)]
            data = post(large(name, size), path).replace(b"POST", method.encode(), 1)
            answers = await asyncio.gather(*(exchange(target, data, end=False) for _ in range(clients)))
            held[f"{name}, {size} bytes"] = await held_ms(mesh, target)
            if wrong := [status for status, _ in answers if not 200 <= status < 500 and status != 503]:
                raise Broken(f"{name} at {path} was answered with {wrong}")
        for name, data in dear(faults.chance).items():
            status, _ = await exchange(target, data, end=False)
            held[name] = await held_ms(mesh, target)
            if status in {500, SILENCE}:
                raise Broken(f"{name} was answered with {status}")
    faults.note(f"{len(held)} kinds; loop held {max(held.values()):.0f} ms at most")
    if await mesh.epochs() != before or any(member.exits for member in mesh.members):
        raise Broken("a lease was lost, or a replica has ended")
    if slow := {name: round(ms) for name, ms in held.items() if ms > LOOP_MS}:
        raise TooLate(f"the event loop was held (ms): {slow}")
    await faults.check(mesh)


@contextlib.asynccontextmanager
async def watched(mesh: Mesh) -> AsyncIterator[None]:
    """Ask every replica for the classes while the block lasts. Raises TooLate or Broken."""
    slowest, statuses = 0.0, set()

    async def ask() -> None:
        nonlocal slowest
        while True:
            for member in mesh.members:
                began = time.monotonic()
                statuses.add((await mesh.client.get(member.public + "/classes")).status_code)
                slowest = max(slowest, time.monotonic() - began)
            await asyncio.sleep(0.05)

    asking = asyncio.create_task(ask())
    try:
        yield
    finally:
        asking.cancel()
    if statuses != {200}:
        raise Broken(f"GET /classes was answered with {sorted(statuses)}")
    if slowest > CLASSES_S:
        raise TooLate(f"GET /classes took {slowest:.2f} s")
