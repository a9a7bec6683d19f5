"""Messages over real HTTP: replicas and both providers in processes of their own.

`GET /calls` of each provider lists the requests that it saw; the tests compare the answers with it.
"""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from tests.support.allowance import History, recorded
from tests.support.providers import ADMIN, providers

if TYPE_CHECKING:
    from tests.support.replicas import Process, Replicas
    from tests.support.server import Server

ANN = {"email": "ann@example.com", "password": "correct horse"}


#: Sixteen processes on few cores may be held up for long. These rows test the count, not the time-outs.
PATIENT = {
    "MESH_LEASE_TTL_MS": "60000",
    "REDIS_TIMEOUT_MS": "15000",
    "REDIS_CONNECT_TIMEOUT_MS": "15000",
    "BODY_TIMEOUT_MS": "60000",
    "MESSAGES_CONNECT_TIMEOUT_MS": "5000",
    "MESSAGES_PROVIDER_TIMEOUT_MS": "60000",
    "MESSAGES_PROBE_WAIT_MS": "60000",
    "LOG_FORMAT": "json",
}
#: Messages are given up sooner, so that the reservations of a dead replica become known sooner.
QUICK = {
    "MESSAGES_PROVIDER_TIMEOUT_MS": "2000",
    "MESSAGES_PROBE_WAIT_MS": "10000",
    "MESSAGES_CONNECT_TIMEOUT_MS": "500",
    "MESSAGES_CONNECT_TRIES": "1",
    "LOG_FORMAT": "json",
}
#: Between the two: a replica that waits for a core must not count as dead.
UNHURRIED = PATIENT | QUICK | {"MESSAGES_PROVIDER_TIMEOUT_MS": "8000", "MESSAGES_CONNECT_TIMEOUT_MS": "5000"}


class Visitor:
    """A client with a session, which may use another replica for each step."""

    def __init__(self, client: httpx.AsyncClient) -> None:
        self._client = client
        self.cookie = ""

    async def __call__(
        self, method: str, at: Process, path: str, body: Any = None, headers: dict[str, str] | None = None
    ) -> httpx.Response:
        sent = {"Cookie": self.cookie, **(headers or {})}
        answer = await self._client.request(method, at.public + path, json=body, headers=sent, timeout=120)
        if "Set-Cookie" in answer.headers:
            self.cookie = answer.headers["Set-Cookie"].partition(";")[0]
        self._client.cookies.clear()
        return answer

    async def log_in(self, at: Process, who: dict[str, str]) -> None:
        assert (await self("POST", at, "/auth/login", who)).status_code == 204

    async def send(self, at: Process, message: str, key: str | None = None, **more: Any) -> httpx.Response:
        headers = {} if key is None else {"Idempotency-Key": key}
        return await self("POST", at, "/messages", {"message": message, **more}, headers)


async def paying_visitor(replicas: Replicas, at: Process) -> Visitor:
    """Return a user to whom the administrator has given paid access."""
    admin, ann = Visitor(replicas.client), Visitor(replicas.client)
    await admin.log_in(at, ADMIN)
    made = (await ann("POST", at, "/auth/register", ANN)).json()
    assert (await admin("PATCH", at, f"/users/{made['id']}", {"paid_access": True})).status_code == 200
    await ann.log_in(at, ANN)
    return ann


async def metric(replicas: Replicas, name: str) -> float:
    """Return the sum of a counter over all live replicas."""
    total = 0.0
    for process in replicas.processes:
        if process.popen.poll() is None:
            text = (await replicas.client.get(process.private + "/metrics")).text
            total += sum(float(line.rsplit(" ", 1)[1]) for line in text.splitlines() if line.startswith(name))
    return total


async def test_every_route_over_two_replicas(replicas: Replicas) -> None:
    """Each step uses the replica that did not do the step before."""
    async with providers(limit=2, block_s=60) as both:
        one, two = await replicas(2, both.env)
        ann, admin = Visitor(replicas.client), Visitor(replicas.client)

        made = await ann("POST", one, "/auth/register", ANN)
        assert made.status_code == 201
        assert (await ann("POST", two, "/auth/register", ANN)).status_code == 409
        assert (await ann("GET", two, "/users/me")).status_code == 401
        await ann.log_in(two, ANN)
        assert (await ann("GET", one, "/users/me")).json() == made.json()
        change = {"email": "ann@example.org", "current_password": ANN["password"]}
        assert (await ann("PATCH", two, "/users/me", change)).status_code == 200
        assert (await ann("GET", one, "/users/me")).json()["email"] == "ann@example.org"

        assert [(await ann.send(at, "m")).json()["provider"] for at in (one, two)] == ["free", "free"]
        closed = await ann.send(one, "m")
        assert closed.status_code == 403
        assert 0 < int(closed.headers["Retry-After"]) <= 60
        shown = [(await ann("GET", at, "/quota")).json() for at in (one, two)]
        assert [(each["limit"], each["remaining"]) for each in shown] == [(2, 0), (2, 0)]
        assert shown[0]["blocked_until"] == shown[1]["blocked_until"]

        granted = f"/users/{made.json()['id']}"
        assert (await ann("PATCH", one, granted, {"paid_access": True})).status_code == 403
        await admin.log_in(one, ADMIN)
        assert (await admin("PATCH", two, granted, {"paid_access": True})).status_code == 200
        first = await ann.send(one, "paid for", "key-1")
        again = await ann.send(two, "paid for", "key-1")
        assert first.json()["provider"] == again.json()["provider"] == "paid"
        assert first.json()["id"] == again.json()["id"]
        assert (await ann.send(two, "something else", "key-1")).status_code == 409
        assert await both.taken() == {"m": 2, "paid for": 1}

        assert (await ann("POST", two, "/auth/logout")).status_code == 204
        assert (await ann("GET", one, "/users/me")).status_code == 401


async def test_replicas_share_the_state_of_an_account(replicas: Replicas) -> None:
    """A new password, a deactivation and failed logins on one replica count on the other."""
    async with providers(limit=2, block_s=60) as both:
        one, two = await replicas(2, both.env | {"MESSAGES_LOGIN_TRIES": "3"})
        ann, admin = Visitor(replicas.client), Visitor(replicas.client)
        user = (await ann("POST", one, "/auth/register", ANN)).json()["id"]
        await ann.log_in(one, ANN)
        await admin.log_in(two, ADMIN)

        renewed = ANN | {"password": "a better horse"}
        change = {"password": renewed["password"], "current_password": ANN["password"]}
        changed = await ann("PATCH", one, "/users/me", change)
        assert changed.status_code == 200
        assert (await ann("POST", two, "/auth/login", ANN)).status_code == 401
        await ann.log_in(two, renewed)

        assert (await admin("PATCH", one, f"/users/{user}", {"is_active": False})).status_code == 200
        assert (await ann("GET", two, "/users/me")).status_code == 401
        assert (await ann("GET", two, "/quota")).status_code == 401
        assert (await ann("POST", one, "/auth/login", renewed)).status_code == 401
        assert (await admin("PATCH", two, f"/users/{user}", {"is_active": True})).status_code == 200
        await ann.log_in(one, renewed)
        assert (await admin("PATCH", one, "/users/nobody", {"paid_access": True})).status_code == 404

        tries = [await ann("POST", at, "/auth/login", ANN) for at in (one, two, one, two, one)]
        assert [tried.status_code for tried in tries][-1] == 429
        assert int(tries[-1].headers["Retry-After"]) > 0


async def test_a_forged_address_does_not_evade_the_limit_on_guessing(replicas: Replicas) -> None:
    """X-Forwarded-For counts only from trusted proxies; behind one, each client has its own attempts."""

    async def guess(at: Process, number: int) -> int:
        headers = {"X-Forwarded-For": f"203.0.113.{number}"}
        body = ANN | {"password": f"guess {number}"}
        answer = await replicas.client.post(at.public + "/auth/login", json=body, headers=headers)
        return answer.status_code

    async with providers(limit=2, block_s=60) as both:
        limits = {"MESSAGES_LOGIN_TRIES": "3", "MESSAGES_LOGIN_ACCOUNT_TRIES": "8"}
        (direct,) = await replicas(1, both.env | limits)
        assert [await guess(direct, number) for number in range(5)] == [401] * 3 + [429] * 2
        (behind,) = await replicas(1, both.env | limits | {"TRUSTED_PROXIES": "127.0.0.1"})
        # Three attempts of the account are used up, for all strangers together.
        assert [await guess(behind, number) for number in range(8)] == [401] * 5 + [429] * 3


async def test_a_message_waits_for_a_block_that_another_replica_caused(replicas: Replicas) -> None:
    """A message with `max_wait_ms` waits for the free provider instead of paying."""
    async with providers(limit=1, block_s=1.5) as both:
        one, two = await replicas(2, both.env)
        ann = await paying_visitor(replicas, one)
        assert (await ann.send(one, "first")).json()["provider"] == "free"
        assert (await ann.send(two, "waits", max_wait_ms=10_000)).json()["provider"] == "free"
        assert (await ann.send(two, "pays")).json()["provider"] == "paid"
        assert (await both.free.calls())["refused"] == 0


async def test_restarting_everything_loses_nothing(replicas: Replicas, server: Server) -> None:
    """Users, sessions, answers and the window of the provider survive a kill -9 of the replica and of Redis."""
    async with providers(limit=2, block_s=60) as both:
        (process,) = await replicas(1, both.env)
        ann = await paying_visitor(replicas, process)
        sent = [(await ann.send(process, f"m{n}", f"key-{n}")).json() for n in range(3)]
        assert [each["provider"] for each in sent] == ["free", "free", "paid"]
        process.kill()
        server.kill()
        server.start()
        (process,) = await replicas(1, both.env)
        again = [(await ann.send(process, f"m{n}", f"key-{n}")).json() for n in range(3)]
        assert [each["id"] for each in again] == [each["id"] for each in sent]
        assert (await ann.send(process, "m3")).json()["provider"] == "paid"
        assert (await both.free.calls())["refused"] == 0
        await ann.log_in(process, ANN)


@pytest.mark.slow
async def test_a_message_of_a_killed_sender_is_not_sent_again(replicas: Replicas) -> None:
    """kill -9 while the provider works: the key gets 502 and reaches no provider again."""
    async with providers(limit=5, block_s=60, latency_ms=1_500) as both:
        slow = both.env | {
            "MESSAGES_PROVIDER_TIMEOUT_MS": "1900",
            "MESSAGES_PROBE_WAIT_MS": "0",
            "MESSAGES_CONNECT_TRIES": "1",
        }
        one, two = await replicas(2, slow)
        ann = await paying_visitor(replicas, two)
        sending = asyncio.create_task(ann.send(one, "m", "key-1"))
        while not (await both.taken())["m"]:
            await asyncio.sleep(0.02)
        one.kill()
        with pytest.raises(httpx.TransportError):
            await sending
        again = await ann.send(two, "m", "key-1")
        assert again.status_code == 502
        assert "not known" in again.json()["detail"]
        assert (await ann.send(two, "m", "key-1")).status_code == 502
        assert await both.taken() == {"m": 1}


@dataclass
class Race:
    """Many messages at once, each with its own key, sent to random replicas."""

    ann: Visitor
    keys: list[str]
    answers: dict[str, httpx.Response] = field(default_factory=dict)
    #: messages without a final answer, and why
    lost: dict[str, str] = field(default_factory=dict)

    async def run(self, processes: list[Process], seed: int) -> None:
        """Send every message that has no final answer."""
        chooser = random.Random(seed)
        todo = [key for key in self.keys if key not in self.answers]
        await asyncio.gather(*(self._send(chooser.choice(processes), key) for key in todo))

    async def finish(self, processes: list[Process], seed: int) -> None:
        """Send again, as clients do, until every message has a final answer."""
        for tries in range(30):
            await self.run(processes, seed + tries)
            if len(self.answers) == len(self.keys):
                return
        raise AssertionError(self.lost)

    async def _send(self, process: Process, key: str) -> None:
        try:
            answer = await self.ann.send(process, f"message of {key}", key)
        except httpx.TransportError as error:
            self.lost[key] = repr(error)
            return
        if answer.status_code == 503 or (answer.status_code == 502 and "is not known" not in answer.text):
            self.lost[key] = answer.text
        else:
            self.answers[key] = answer

    def providers(self) -> Counter[str]:
        return Counter(answer.json()["provider"] for answer in self.answers.values() if answer.status_code == 200)


def check_windows(free: dict[str, Any], history: History, limit: int) -> None:
    """The free provider saw exactly its limit in each finished window and refused nothing."""
    assert free["refused"] == 0
    seen = Counter(history.window_of(call["at"] * 1000) for call in free["calls"])
    assert [seen[number] for number in range(len(history.windows) - 1)] == [limit] * (len(history.windows) - 1)
    assert [window.used for window in history.windows[:-1]] == [limit] * (len(history.windows) - 1)
    assert not any(window.unanswered for window in history.windows)


def check_paid_while_closed(replicas: Replicas, paid: dict[str, Any], history: History) -> None:
    """Every message was sent to the paid provider because free was closed at that moment.

    The moment is the last look before paying, on Redis's clock. The record of Redis says whether the allowance was
    closed then, to the millisecond. Two things are outside of this check. The message needs time to reach the provider.
    And the block counts from the *answer* to the window's last free request: only the provider knows when it saw the
    request, and a replica that guessed an earlier end would be refused.
    """
    looked = dict(payments(replicas))
    for call in paid["calls"]:
        assert history.closed_at(looked[call["id"]]), (call, history.spells)
        assert looked[call["id"]] <= call["at"] * 1000


def payments(replicas: Replicas) -> Iterator[tuple[str, int]]:
    """Yield the id of each paid message and the time of the last look before it, from the logs of all replicas."""
    for process in replicas.processes:
        for line in process.log.read_text().splitlines():
            if line.startswith("{") and (said := json.loads(line))["event"] == "a message is paid for":
                assert said["reason"] in ("closed", "refused"), said
                yield said["message_id"], said["looked_ms"]


async def one_by_one(ann: Visitor, processes: list[Process], limit: int, wait_s: float) -> Counter[str]:
    """Send messages one after the other, across several windows, and count which provider took them."""
    took: Counter[str] = Counter()
    until, number = time.monotonic() + wait_s, 0
    while min(took["free"], took["paid"]) <= limit:
        assert time.monotonic() < until, took
        number += 1
        answer = await ann.send(processes[number % len(processes)], f"later-{number}")
        took[answer.json()["provider"]] += 1
        await asyncio.sleep(0.01)
    return took


async def open_again(ann: Visitor, at: Process, wait_s: float) -> None:
    """Wait until the quota says that the free provider is open."""
    until = time.monotonic() + wait_s
    while (await ann("GET", at, "/quota")).json()["remaining"] == 0:
        assert time.monotonic() < until
        await asyncio.sleep(0.02)


async def many(replicas: Replicas, count: int, env: dict[str, str]) -> list[Process]:
    """Start this many replicas together and wait until all are ready."""
    spawned = [replicas.spawn(env) for _ in range(count)]
    return [await ready(replicas, process, env) for process in spawned]


async def ready(replicas: Replicas, process: Process, env: dict[str, str]) -> Process:
    """Wait for a replica; start another one if the port was taken in the meantime."""
    try:
        await replicas.ready(process, 120)
    except AssertionError as error:
        if "Address already in use" not in str(error):
            raise
        return await ready(replicas, replicas.spawn(env), env)
    return process


async def race_for_the_quota(replicas: Replicas, count: int, limit: int, messages: int, block_s: float) -> None:
    """The free provider sees exactly its limit in each window; messages are paid for only while it is closed."""
    async with providers(limit, block_s) as both:
        with recorded(replicas.server) as record:
            processes = await many(replicas, count, both.env | PATIENT)
            race = Race(await paying_visitor(replicas, processes[0]), [f"key-{n}" for n in range(messages)])
            await race.finish(processes, seed=28)
            assert {answer.status_code for answer in race.answers.values()} == {200}
            later = await one_by_one(race.ann, processes, limit, 6 * block_s + 30)
            history = record.history(replicas.server, limit, round(block_s * 1000))
        free, paid = await both.free.calls(), await both.paid.calls()
        assert race.providers() + later == {"free": free["taken"], "paid": paid["taken"]}
        assert len(history.windows) > 2
        check_windows(free, history, limit)
        check_paid_while_closed(replicas, paid, history)
        assert {id for id, _ in payments(replicas)} == {call["id"] for call in paid["calls"]}
        assert await metric(replicas, "mesh_messages_paid_avoidable_total") == 0

        first = {key: answer.json()["id"] for key, answer in race.answers.items()}
        race.answers.clear()
        await race.finish(processes, seed=128)
        assert {key: answer.json()["id"] for key, answer in race.answers.items()} == first
        assert set((await both.taken()).values()) == {1}


async def race_with_kills(
    replicas: Replicas, count: int, kills: int, limit: int, messages: int, block_s: float, pace: dict[str, str]
) -> None:
    """Each killed replica costs one slot at most, all together cost one refusal, and the count recovers."""
    async with providers(limit, block_s, latency_ms=400) as both:
        with recorded(replicas.server) as record:
            processes = await many(replicas, count, both.env | pace)
            race = Race(await paying_visitor(replicas, processes[-1]), [f"key-{n}" for n in range(messages)])
            await kill_in_the_middle(replicas, race, processes, kills, limit)
            living = processes[kills:]
            await race.finish(living, seed=128)
            check_answers(race, await both.taken())
            await two_more_windows(race.ann, living, limit, block_s)
            history = record.history(replicas.server, limit, round(block_s * 1000))
        check_healing(await both.free.calls(), history, limit, kills)
        check_paid_while_closed(replicas, await both.paid.calls(), history)
        assert await metric(replicas, "mesh_messages_paid_avoidable_total") == 0


async def kill_in_the_middle(replicas: Replicas, race: Race, processes: list[Process], kills: int, limit: int) -> None:
    """Kill these replicas at the same time, in the middle of a window."""
    racing = asyncio.create_task(race.run(processes, seed=28))
    with replicas.server.redis() as redis:
        while redis.zcard("shared:messages:free:held") < limit // 2:
            await asyncio.sleep(0.005)
    for process in processes[:kills]:
        process.kill()
    await racing
    assert race.lost


def check_answers(race: Race, taken: Counter[str]) -> None:
    """Every message was handled once, or its answer says that nobody can know.

    That is the answer if the sender died, or if a provider that waited for a core did not answer in time.
    """
    for key, answer in race.answers.items():
        assert answer.status_code in (200, 502), answer.text
        assert taken[f"message of {key}"] <= 1
        assert answer.status_code == 502 or taken[f"message of {key}"] == 1
    unknown = {key: answer.json()["detail"] for key, answer in race.answers.items() if answer.status_code == 502}
    assert all("is not known" in detail for detail in unknown.values())
    assert all(key in race.lost or "did not answer" in detail for key, detail in unknown.items())


async def two_more_windows(ann: Visitor, living: list[Process], limit: int, block_s: float) -> None:
    """Fill two windows after the one that recovers, and begin a third, so that both are over."""
    for window in range(4):
        await open_again(ann, living[0], 3 * block_s + 5)
        wanted = limit if window < 3 else 1
        await asyncio.gather(*(ann.send(living[n % len(living)], f"w{window}-{n}") for n in range(wanted)))


def check_healing(free: dict[str, Any], history: History, limit: int, kills: int) -> None:
    """The killed replicas cost one slot each at most; the next window recovers, and all later ones are whole.

    All were killed within one window. Only the provider knows whether it counted their last requests: both histories
    look the same until a request is refused in one of them. So no count can recover without the risk of a refusal, and
    one refusal is enough, because the provider then says when it opens. The bound is one refusal, in the window after
    the kills, for any number of killed replicas.
    """
    died = [number for number, window in enumerate(history.windows) if window.unanswered]
    assert len(died) <= 1, history.windows
    whole = [limit] * (len(history.windows) - 1)
    seen = Counter(history.window_of(call["at"] * 1000) for call in free["calls"])
    if not died:
        assert [seen[number] for number in range(len(whole))] == whole and free["refused"] == 0
        return
    (own,) = died
    heals = own + 1
    assert limit - kills <= seen[own] <= limit
    refusals = [history.window_of(call["at"] * 1000) for call in free["calls"] if call["outcome"] == "refused"]
    assert refusals == [heals] * (seen[own] < limit)
    assert seen[heals] == (limit - seen[own] + 1 if refusals else limit)
    after = range(heals + 1, len(whole))
    assert len(after) >= 2
    assert (
        [seen[number] for number in after] == [history.windows[number].used for number in after] == whole[heals + 1 :]
    )


async def test_replicas_race_for_the_quota(replicas: Replicas) -> None:
    """Row 28 holds with three replicas."""
    await race_for_the_quota(replicas, count=3, limit=5, messages=60, block_s=1.5)


@pytest.mark.slow
async def test_killed_replicas_cost_one_slot_each(replicas: Replicas) -> None:
    """Row 28 with three replicas, of which one is killed."""
    await race_with_kills(replicas, count=3, kills=1, limit=5, messages=40, block_s=1.5, pace=QUICK)


@pytest.mark.faults
@pytest.mark.timeout(300)
async def test_row_28_16_replicas_race_for_the_quota(replicas: Replicas) -> None:
    """16 replicas, limit 10, 500 messages at once: 10 in each window, none refused, paid only while free is closed."""
    await race_for_the_quota(replicas, count=16, limit=10, messages=500, block_s=4)


@pytest.mark.faults
@pytest.mark.timeout(300)
async def test_row_28_with_replicas_killed_in_the_middle(replicas: Replicas) -> None:
    """4 of 16 killed: one slot each at most, one refusal, whole windows afterwards, and no key at a provider twice."""
    await race_with_kills(replicas, count=16, kills=4, limit=10, messages=500, block_s=4, pace=UNHURRIED)
