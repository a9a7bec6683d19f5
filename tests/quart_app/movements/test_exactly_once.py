"""Row 27 of the fault matrix: after kills between commit and acknowledgement no event is missing or stored twice."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import redis
from sqlalchemy import select

from quart_app.movements.address import async_url
from quart_app.movements.database import MovementDatabase
from quart_app.movements.producer import MovementSimulator
from quart_app.movements.tables import movements, warehouses
from tests.support.faults.checkers import Findings
from tests.support.faults.matrix import RESULTS, Result
from tests.support.movements import GROUP, STREAM, consumers
from tests.support.server import Server

Message = dict[str, Any]


@dataclass(frozen=True)
class Load:
    """The messages to send, and how often their consumers are killed."""

    movements: int
    poison: int
    batch: int
    kills: int
    within_s: float


SMALL = Load(movements=3000, poison=5, batch=100, kills=8, within_s=60)
FULL = Load(movements=50_000, poison=50, batch=500, kills=50, within_s=240)


def send(client: redis.Redis, messages: Sequence[Message], poison: int) -> None:
    """Add the messages to the stream, with unreadable ones between them."""
    spoilt = {len(messages) * n // poison for n in range(poison)}
    pipe = client.pipeline(transaction=False)
    for place, message in enumerate(messages):
        pipe.xadd(STREAM, {"body": json.dumps(message)})
        if place in spoilt:
            pipe.xadd(STREAM, {"body": f'{{"poison": {place}'})
        if place % 2000 == 0:
            pipe.execute()
    pipe.execute()


def all_settled(client: redis.Redis) -> bool:
    return client.xlen(STREAM) == 0 and client.xpending(STREAM, GROUP)["pending"] == 0


def identity_and_content(message: Message) -> tuple[str, ...]:
    data = message["data"]
    names = ("movement_id", "warehouse_id", "product_id", "event", "quantity")
    return (message["source"], message["id"], *(str(data[name]) for name in names))


async def stored(database: MovementDatabase) -> Counter[tuple[str, ...]]:
    """Return every row of `movements`, in the form of its message."""
    columns = movements.c
    wanted = (columns.source, columns.event_id, columns.movement_id, columns.warehouse_id, columns.product_id)
    async with database.reading() as connection:
        rows = await connection.execute(select(*wanted, columns.event, columns.quantity))
        return Counter(tuple(str(value) for value in row) for row in rows)


async def stock(database: MovementDatabase) -> dict[tuple[str, str], tuple[int, int, int]]:
    columns = warehouses.c
    async with database.reading() as connection:
        rows = await connection.execute(
            select(columns.warehouse_id, columns.product_id, columns.balance, columns.quantity, columns.deficit)
        )
        return {(str(row[0]), str(row[1])): (row[2], row[3], row[4]) for row in rows}


def expected_stock(messages: Sequence[Message]) -> dict[tuple[str, str], tuple[int, int, int]]:
    """Return the stock that follows from the messages."""
    balance: Counter[tuple[str, str]] = Counter()
    for message in {(one["source"], one["id"]): one for one in messages}.values():
        data = message["data"]
        sign = 1 if data["event"] == "arrival" else -1
        balance[data["warehouse_id"], data["product_id"]] += sign * data["quantity"]
    return {key: (value, max(value, 0), max(-value, 0)) for key, value in balance.items()}


async def differences(database: MovementDatabase, messages: Sequence[Message]) -> Findings:
    """Return the rows that are in the tables or in the expected ones, but not in both."""
    found, wanted = await stored(database), Counter({identity_and_content(one) for one in messages})
    findings = Findings(lost=[*map(str, (wanted - found).elements())], doubled=[*map(str, (found - wanted).elements())])
    stocks, expected = await stock(database), expected_stock(messages)
    findings.other = [f"stock of {key}: {value}" for key, value in stocks.items() ^ expected.items()]
    return findings


async def run(server: Server, database_url: str, load: Load) -> Findings:
    """Send the load, kill the consumers as often as it says, and compare the tables."""
    messages = MovementSimulator(seed=27).make_messages(load.movements, duplicates=0.5, shuffle=True)
    assert len({(one["source"], one["id"]) for one in messages}) == 2 * load.movements
    database = MovementDatabase(async_url(database_url))
    await database.migrate()
    with server.redis() as client:
        send(client, messages, load.poison)
        client.xgroup_create(STREAM, GROUP, id="0")
        options = {"size": 4, "batch": load.batch, "kills": load.kills, "seed": 27}
        with consumers(server.url, database_url, **options) as running:
            running.run_until(lambda: all_settled(client), load.within_s)
        assert running.killed == load.kills
        letters = [fields for _, fields in client.xrange("mesh:dead")]
    findings = await differences(database, messages)
    await database.close()
    poison = [letter for letter in letters if letter["body"].startswith('{"poison"') and "not JSON" in letter["reason"]]
    findings.lost += ["a dead letter"] * (load.poison - len(poison))
    findings.other += [f"dead letter: {letter}" for letter in letters if letter not in poison]
    return findings


async def test_killed_between_commit_and_acknowledgement(server: Server, database_url: str) -> None:
    """Events come twice and in random order. Both tables are exact, and only unreadable ones are dead letters."""
    findings = await run(server, database_url, SMALL)
    assert not findings, findings.says()


@pytest.mark.faults
@pytest.mark.timeout(400)
async def test_row_27(server: Server, database_url: str) -> None:
    """The same load with 100,000 events and fifty kills."""
    row = Result(
        27, f"kill -9 between the commit ({async_url(database_url).get_backend_name()}) and the acknowledgement"
    )
    began, row.verdict = time.monotonic(), "FAILS"
    RESULTS.append(row)
    row.findings = await run(server, database_url, FULL)
    row.row_s = time.monotonic() - began
    row.notes.append(f"{2 * FULL.movements} events, half of them twice; {FULL.kills} kills; {FULL.poison} unreadable")
    assert not row.findings, row.findings.says()
    row.verdict = "passes"
