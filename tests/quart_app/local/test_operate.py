"""The commands that act on a running mesh."""

from __future__ import annotations

import getpass
import json

import pytest
from click.testing import CliRunner, Result

from mesh import keys
from quart_app.local.cli import main
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
    """Unless --yes says that this was done."""
    result = CliRunner(env={"REDIS_URL": server.url}).invoke(main, ["dead", "discard", letters[0]], input="n\n")
    assert result.exit_code == 1 and "Delete 1 dead letters" in result.output
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
    """Nothing is done then."""
    result = run(server, "dead", "replay", *words)
    assert result.exit_code != 0 and says in result.output


def test_a_redis_that_is_away_is_a_sentence() -> None:
    """As for every command."""
    result = CliRunner(env={"REDIS_URL": "redis://127.0.0.1:1"}).invoke(main, ["dead", "list"])
    assert result.exit_code == 1 and "cannot be used" in result.output
