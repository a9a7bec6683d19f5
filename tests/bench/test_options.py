"""What options cost, beside a plain call and beside the peers."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench.environments import PEERS
from bench.options import CONTENDERS, OPTIONS, WAYS, check_effects, effects, over_plain, present, ratios, turn
from bench.record import Record, Settings
from bench.request_reply import TurnFailed
from bench.servers import valkey
from bench.spread import Spread


def test_each_request_must_have_run_exactly_once() -> None:
    """A contender that loses a request, or runs it twice, is not cheap, it is wrong."""
    check_effects([1, 1], accepted=2, asked=2, name="one")
    with pytest.raises(TurnFailed, match="2 accepted, 1 ran"):
        check_effects([1], accepted=2, asked=2, name="one")
    with pytest.raises(TurnFailed, match="1 of them more than once"):
        check_effects([1, 2], accepted=2, asked=2, name="one")
    with pytest.raises(TurnFailed, match="2 asked, 2 accepted, 3 ran"):
        check_effects([1, 1, 1], accepted=2, asked=2, name="one")


def test_a_request_that_was_refused_may_be_missing_or_not() -> None:
    """The client does not know whether it ran when it got no answer."""
    check_effects([1, 1], accepted=2, asked=3, name="one")
    check_effects([1, 1, 1], accepted=2, asked=3, name="one")


def test_effects_are_found_in_every_database() -> None:
    """The mesh has them in the database of its worker, and the peers in the first one."""
    with valkey() as server:
        with server.redis() as client:
            client.hset("effects", "1", 1)
            client.set("other", 1)
            client.select(3)
            client.hset("db3:bench:effects", mapping={"1": 1, "2": 2})
        assert sorted(effects(server)) == [1, 1, 2]


def test_an_option_is_compared_with_the_plain_call_of_the_same_round() -> None:
    """What disturbs a round disturbs both sides of a ratio."""
    series = {"docket|plain|cpu_ms": [1.0, 2.0], "docket|key|cpu_ms": [1.5, 2.0], "arq|plain|cpu_ms": [1.0, 1.0]}
    assert dict(over_plain(series)) == {"docket|key|over_plain": [1.5, 1.0]}


def test_the_mesh_is_compared_with_the_best_peer_that_has_the_option() -> None:
    """The best peer of a round has the highest rate, or the lowest processor time; without a peer there is no ratio."""
    series = {
        "mesh|lane|rate": [100.0, 100.0],
        "mesh|key|rate": [100.0, 100.0],
        "arq|key|rate": [10.0, 50.0],
        "docket|key|rate": [20.0, 20.0],
        "mesh|key|cpu_ms": [1.0, 1.0],
        "arq|key|cpu_ms": [10.0, 4.0],
        "docket|key|cpu_ms": [5.0, 5.0],
        "mesh|key|over_plain": [1.2, 1.4],
    }
    found = dict(ratios(series))
    assert set(found) == {
        "processor time a request, mesh, idempotency key / plain",
        "requests/s, idempotency key, mesh / best peer",
        "CPU ms a request, idempotency key, mesh / best peer",
    }
    rate, spent = found["requests/s, idempotency key, mesh / best peer"], list(found.values())[-1]
    assert (rate.spread.lowest, rate.spread.highest, rate.more_is_better) == (2, 5, True)
    assert (spent.spread.lowest, spent.spread.highest, spent.more_is_better) == (0.2, 0.25, False)


def test_an_option_that_a_peer_does_not_have_is_a_dash(tmp_path: Path) -> None:
    """An option that a peer lacks is neither left out nor shown as zero."""
    figures = {
        f"{name}|{option}|{what}": Spread.of([2.0])
        for name, ways in WAYS.items()
        for option in ways
        for what in ("rate", "cpu_ms", "over_plain")
    }
    text = present(Record("options", Settings(rounds=1), figures, {}), tmp_path)
    lines = [line for line in text.splitlines() if line.startswith("| arq")]
    assert [line.count(" - ") for line in lines] == [1, 1, 1, 1]
    assert lines[0].endswith("| 2 | 2 | - | 2 |") and lines[2].endswith("| 2.00 | - | 2.00 |")


def test_each_contender_has_a_plain_call_and_a_program() -> None:
    """Everything else is compared with the plain call."""
    assert {one.name for one in CONTENDERS} == set(WAYS)
    for one in CONTENDERS:
        assert (PEERS / one.program).is_file()
        assert {"plain"} < set(WAYS[one.name]) <= set(OPTIONS)


@pytest.mark.parametrize("option", OPTIONS)
def test_a_turn_of_the_mesh_runs_each_request_once(option: str) -> None:
    """Real processes run the requests of each option, from the send to the effect."""
    (mesh,) = [one for one in CONTENDERS if one.name == "mesh"]
    found = turn(mesh, option, Settings(seconds=0.3))
    assert found["calls"] > 0
    assert found["failures"] == 0
