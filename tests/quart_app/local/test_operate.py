"""The commands that act on a running mesh."""

from __future__ import annotations

import asyncio
import getpass
import json
import re

import pytest
from click.testing import CliRunner, Result

from mesh import Cancelled, Class, MeshSettings, keys
from mesh.raw import Body, Effects, Request, Store, Worker, join
from quart_app.cli import main
from quart_app.local.ports import free_port
from tests.support.server import Server

A = keys.class_requests("A")


def run(server: Server, *words: str) -> Result:
    return CliRunner(env={"REDIS_URL": server.url}).invoke(main, list(words))


@pytest.fixture
def letters(server: Server) -> list[str]:
    """Three dead letters with one reason, and one with another."""
    with server.redis() as redis:
        reasons = ["it crashed"] * 3 + ["another"]
        return [
            redis.xadd(
                keys.DEAD,
                {
                    "kind": "request",
                    "stream": A,
                    "id": "1-0",
                    "reason": reason,
                    "deliveries": "3",
                    "op": "x",
                    "body": "{}",
                },
            )
            for reason in reasons
        ]


def test_dead_letters_are_listed_in_groups(server: Server, letters: list[str]) -> None:
    """The largest first, with an id to act on; one of them is shown whole."""
    rows = json.loads(run(server, "dead", "list", "--json").output)
    assert [(row["count"], row["newest"], row["reason"]) for row in rows] == [
        (3, letters[2], "it crashed"), (1, letters[3], "another"),
    ]  # fmt: skip
    listed = run(server, "dead", "list").output
    assert f"3  {A}  {letters[2]}" in listed and "4 dead letters" in listed
    shown = json.loads(run(server, "dead", "show", letters[0]).output)
    assert (shown["op"], shown["body"], shown["reason"]) == ("x", "{}", "it crashed")
    assert "there is no dead letter 9-9" in run(server, "dead", "show", "9-9").output


def test_a_group_goes_back_to_its_stream(server: Server, letters: list[str]) -> None:
    """The audit log names the user of this machine; a second run finds nothing left."""
    assert run(server, "dead", "replay", "--like", letters[2]).output == "3 replayed\n"
    assert run(server, "dead", "replay", "--like", letters[2]).output == "0 replayed, 1 gone already\n"
    with server.redis() as redis:
        assert (redis.xlen(A), redis.xlen(keys.DEAD)) == (3, 1)
        assert redis.xrange(keys.AUDIT)[0][1]["actor"] == getpass.getuser()


def test_discarding_asks_first(server: Server, letters: list[str]) -> None:
    """The command asks, unless it has --yes."""
    result = CliRunner(env={"REDIS_URL": server.url}).invoke(main, ["dead", "discard", letters[0]], input="n\n")
    assert result.exit_code == 1 and "Delete 1 dead letter," in result.output
    assert run(server, "dead", "discard", "--yes", *letters[:2]).output == "2 discarded\n"
    with server.redis() as redis:
        assert redis.xlen(keys.DEAD) == 2


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ([], "name letters by their ids"),
        (["1-0", "--like", "2-0"], "name letters by their ids"),
        (["first"], "'first' is not the id of a dead letter"),
        (["--like", "+"], "'+' is not the id of a dead letter"),
    ],
)
def test_what_cannot_be_meant_is_said(server: Server, words: list[str], says: str) -> None:
    """The command does nothing then."""
    result = run(server, "dead", "replay", *words)
    assert result.exit_code != 0 and says in result.output


def test_a_redis_that_is_away_is_a_sentence() -> None:
    """The message is the same for every command."""
    result = CliRunner(env={"REDIS_URL": "redis://127.0.0.1:1"}).invoke(main, ["dead", "list"])
    assert result.exit_code == 1 and "cannot be used" in result.output


async def in_thread(server: Server, *words: str) -> Result:
    return await asyncio.to_thread(run, server, *words)


async def test_a_running_mesh_is_operated(server: Server) -> None:
    """Pause, resume, trace, ops, cancel, drain: each says what it did, and what cannot be done is a sentence."""
    worker = Worker()
    gate = asyncio.Event()

    @worker.handles("count.put")
    async def put(request: Request, store: Store, transaction: Effects) -> Body:
        await gate.wait()
        return {}

    async with join(worker, MeshSettings(redis=server.settings)) as one:
        paused = (await in_thread(server, "pause", "count.get")).output
        assert "is paused within a second" in paused and "no replica serves an operation called count.get" in paused
        assert "count.get" in (await in_thread(server, "ops")).output
        assert "goes on within a second" in (await in_thread(server, "resume", "count.get")).output
        assert "was not paused" in (await in_thread(server, "resume", "count.get")).output
        first = asyncio.create_task(one.call(Class(one.cls), "count.put", {}))
        second = asyncio.create_task(one.call(Class(one.cls), "count.put", {}))
        async with asyncio.timeout(10):
            while not (found := (await in_thread(server, "trace", "--json", f"{one.id}-1")).output).startswith("["):
                await asyncio.sleep(0.05)
        assert (await in_thread(server, "cancel", json.loads(found)[0]["id"])).output.startswith("cancelled count.put")
        with pytest.raises(Cancelled):
            await first
        gate.set()
        await second
        traced = (await in_thread(server, "trace", f"{one.id}-2")).output
        assert "count.put  ok" in traced and "ms work" in traced
        rows = json.loads((await in_thread(server, "ops", "--json")).output)
        assert [(row["op"], row["answered"], row["failed"]) for row in rows] == [("count.put", 2, 1)]
        assert (rows[0]["kind"], rows[0]["served_by"]) == ("command", {str(one.database): one.id})
        listed = (await in_thread(server, "ops")).output
        assert (
            f"count.put                command served by {one.database}; 0 wait, 0 run, 0 later; 2 answered" in listed
        )
        document = json.loads((await in_thread(server, "ops", "--asyncapi")).output)
        assert document["asyncapi"] == "3.0.0" and document["operations"].keys() == {"count.put", "count.put.database"}
        assert f"{one.id} begins to drain" in (await in_thread(server, "drain", one.id)).output
    for words in ("cancel 1-0", "cancel nothing", f"cancel {'-' * 22}", "drain nobody", "trace nothing"):
        assert (await in_thread(server, *words.split())).exit_code == 1


def test_a_job_is_cancelled_by_its_id(server: Server) -> None:
    """The id of a job may begin with a hyphen, which is no option then; the audit log has an entry."""
    id = "-b_" + "x" * 19
    with server.redis() as redis:
        redis.hset(f"shared:values:job:{id}", mapping={"size": 900, "values": 4, "left": 1})
        redis.zadd("shared:values:jobs", {f"{id} 900": 1})
        redis.set("shared:values:jobs:size", 1000)
    said = run(server, "cancel", id)
    assert (said.exit_code, said.output) == (0, "Cancelled with 3 of 4 values finished.\n")
    again = run(server, "cancel", id)
    assert again.exit_code == 1 and f"there is no job {id}: it was deleted, or its time is over" in again.output
    assert "is not the id of a job" in run(server, "cancel", "nonsense").output
    with server.redis() as redis:
        assert redis.get("shared:values:jobs:size") == "100"
        ((_, entry),) = redis.xrange(keys.AUDIT)
        assert (entry["event"], entry["actor"], entry["ids"]) == ("job cancelled", getpass.getuser(), id)


def test_a_redis_that_is_not_there_is_one_sentence() -> None:
    """The message has the address once, and the reason of the system."""
    url = f"redis://:word@127.0.0.1:{free_port()}/0"
    said = CliRunner(env={"REDIS_URL": url}).invoke(main, ["ops", "--data", "nowhere"])
    assert said.exit_code == 1 and "word" not in said.output
    assert re.fullmatch(
        r"Error: Redis at 127\.0\.0\.1:\d+ cannot be used: connection refused; no mesh runs on nowhere\n", said.output
    )


def test_one_letter_is_no_plural(server: Server, letters: list[str]) -> None:
    """The question and the list say "1 letter"."""
    asked = run(server, "dead", "discard", letters[0])
    assert "Delete 1 dead letter, with" in asked.output and asked.exit_code == 1
    for id in letters[1:]:
        run(server, "dead", "discard", "--yes", id)
    assert "1 dead letter\n" in run(server, "dead", "list").output
