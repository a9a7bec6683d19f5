"""Row 46: strangers who want to become administrator while replicas restart with other settings."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import httpx

from quart_app.messages.users import ADMINISTRATORS, FIRST_ADMIN
from tests.support.faults.checkers import Broken
from tests.support.faults.matrix import Faults, row
from tests.support.faults.scenario import START_S, Mesh

OPERATOR = "of the operator"
STRANGER = "of a stranger"
#: One address in several spellings; `{}` is its name.
SPELLINGS = ("{}@corp.example", "{}@CORP.example", " {}@corp.example", "{}@ｃｏｒｐ.example")


@dataclass
class Stranger:
    """An account that asks for addresses of the administrator, by registering and by changing its own."""

    mesh: Mesh
    client: httpx.AsyncClient
    name: str
    cookie: dict[str, str] = field(default_factory=dict)

    async def enter(self) -> None:
        """Register and log in."""
        login = {"email": f"{self.name}@elsewhere.example", "password": STRANGER}
        answer = await self.say("POST", "/auth/register", login)
        assert answer.status_code == 201, answer.text
        answer = await self.say("POST", "/auth/login", login)
        assert answer.status_code == 204, answer.text

    async def say(self, method: str, path: str, body: Any = None) -> httpx.Response:
        """One request by way of the balancer."""
        headers = {"Cookie": "; ".join(f"{name}={value}" for name, value in self.cookie.items())}
        answer = await self.client.request(method, self.mesh.address + path, json=body, headers=headers)
        self.cookie |= dict(answer.cookies)
        self.client.cookies.clear()
        return answer

    async def want(self, name: str, after_s: float) -> None:
        """Ask for an address of this name, again and again, in every spelling and both ways."""
        await asyncio.sleep(after_s)
        while True:
            for spelling in SPELLINGS:
                email = spelling.format(name if self.mesh.chance.random() < 0.5 else name.upper())
                body = {"email": email, "password": STRANGER, "current_password": STRANGER}
                register = self.mesh.chance.random() < 0.5
                with contextlib.suppress(httpx.TransportError):
                    if register:
                        await self.say("POST", "/auth/register", {"email": email, "password": STRANGER})
                    else:
                        await self.say("PATCH", "/users/me", {k: v for k, v in body.items() if k != "password"})
                await asyncio.sleep(0.02)


@row(46, "strangers want to be administrator; replicas restart with MESSAGES_ADMIN_EMAIL")
async def test_row_46_no_stranger_becomes_administrator(faults: Faults) -> None:
    """One account is administrator, with the operator's password; nobody else takes its address."""
    mesh = await faults.mesh(3, SERVICES="values,messages,tally", MESSAGES_COOKIE_SECURE="false")
    async with httpx.AsyncClient(timeout=30) as client, mesh.load(pause_s=0.2):
        strangers = [Stranger(mesh, client, f"stranger-{number}") for number in range(3)]
        await asyncio.gather(*(stranger.enter() for stranger in strangers))
        async with wanting(strangers, "old"):
            await asyncio.sleep(1)
        # An account that is older than the setting.
        await restart(mesh, "old", 1)
        await check(mesh, faults, strangers)
        # Either may come first: a replica is ready within seconds.
        async with wanting(strangers, "race", after_s=mesh.chance.uniform(0.5, 5)):
            await restart(mesh, "race", 2)
        if not await log_in(strangers[0].client, mesh, "race"):
            await restart(mesh, "boss", 1)
            name = "boss"
        else:
            name = "race"
        await check(mesh, faults, strangers)
        # The administrator moves to another address, and the old one is asked for.
        await move(client, mesh, name)
        async with wanting(strangers, name):
            await asyncio.sleep(1)
            await restart(mesh, name, 2)
        await check(mesh, faults, strangers)
        if mesh.connect().exists(f"shared:messages:email:{name}@corp.example"):
            raise Broken("a stranger has the address of the administrator")
        if not await log_in(client, mesh, "moved"):
            raise Broken("the administrator is shut out")
    faults.note(f"address {name}")
    await faults.check(mesh)


@contextlib.asynccontextmanager
async def wanting(strangers: list[Stranger], name: str, after_s: float = 0) -> AsyncIterator[None]:
    """The strangers ask for an address while the block lasts."""
    tasks = [asyncio.create_task(stranger.want(name, after_s)) for stranger in strangers]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        for task in tasks:
            with contextlib.suppress(asyncio.CancelledError):
                await task


async def restart(mesh: Mesh, name: str, count: int) -> None:
    """Restart some replicas, one after the other, with this administrator, in some spelling."""
    for member in mesh.chance.sample(mesh.members, count):
        member.env["MESSAGES_ADMIN_EMAIL"] = mesh.chance.choice(SPELLINGS).format(name.capitalize())
        member.env["MESSAGES_ADMIN_PASSWORD"] = OPERATOR
        pid = member.pid
        member.send(signal.SIGTERM)
        await mesh.within(START_S, lambda member=member, pid=pid: _is_back(member, pid), "the replica is ready again")


async def _is_back(member: Any, pid: int) -> bool:
    return member.popen is not None and member.pid != pid and await member.ready()


async def log_in(client: httpx.AsyncClient, mesh: Mesh, name: str) -> bool:
    """Whether the operator's password opens the account of this name, and it administrates."""
    operator = Stranger(mesh, client, name)
    body = {"email": f"{name}@corp.example", "password": OPERATOR}
    if (await operator.say("POST", "/auth/login", body)).status_code != 204:
        return False
    return bool((await operator.say("GET", "/users/me")).json()["is_admin"])


async def move(client: httpx.AsyncClient, mesh: Mesh, name: str) -> None:
    """The administrator changes their own address."""
    operator = Stranger(mesh, client, name)
    await operator.say("POST", "/auth/login", {"email": f"{name}@corp.example", "password": OPERATOR})
    change = {"email": "moved@corp.example", "current_password": OPERATOR}
    answer = await operator.say("PATCH", "/users/me", change)
    assert answer.status_code == 200, answer.text


async def check(mesh: Mesh, faults: Faults, strangers: list[Stranger]) -> None:
    """No stranger administrates, and no account but the recorded one."""
    for stranger in strangers:
        answer = await stranger.say("GET", "/users/me")
        if answer.status_code == 200 and answer.json()["is_admin"]:
            raise Broken(f"{stranger.name} is administrator")
    with mesh.connect() as redis:
        recorded = {redis.hget(FIRST_ADMIN, "id")} - {None}
        accounts = [redis.hgetall(key) for key in redis.scan_iter("shared:messages:user:*")]
        administrators = {account["id"] for account in accounts if account["is_admin"] == "1"}
        if not administrators == recorded == redis.smembers(ADMINISTRATORS):
            raise Broken(f"administrators are {administrators}, recorded is {recorded}")
