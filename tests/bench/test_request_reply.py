"""The claim about request and reply."""

from __future__ import annotations

import io
import json
import os
from dataclasses import replace

import pytest

from bench.record import Settings
from bench.request_reply import EARLIER, MESH, TurnFailed, check_stored, follow, found_ratios, is_there, turn
from bench.servers import valkey


def said(*facts: dict[str, object]) -> io.StringIO:
    return io.StringIO("".join(json.dumps(fact) + "\n" for fact in facts))


def test_a_client_that_fell_silent_is_no_result() -> None:
    """Figures without the last line of the client are not taken."""
    with pytest.raises(TurnFailed, match="before it was done"):
        follow(said({"event": "begin"}, {"event": "end", "calls": 1}), [os.getpid()], "one")


def test_what_was_answered_must_be_stored() -> None:
    """A contender that answers without storing is not quicker, it is wrong."""
    with valkey() as server:
        server.redis().set("stored:1", 1)
        check_stored(server, [{"calls": 1}], 1, "one")
        with pytest.raises(TurnFailed, match="2 answers, 1 stored"):
            check_stored(server, [{"calls": 2}], 2, "one")


def test_the_goal_is_held_against_the_best_peer_of_each_round() -> None:
    """20 times the best means the best of that round."""
    series = {
        "mesh|128|rate": [40.0, 40.0],
        "arq|128|rate": [4.0, 1.0],
        "celery|128|rate": [1.0, 4.0],
        "nats|128|rate": [50.0, 50.0],
    }
    ratios = dict(found_ratios(series))
    assert ratios["rate at 128 in flight, mesh / best Redis peer"].spread.highest == 10
    assert ratios["rate at 128 in flight, mesh / NATS, nothing stored"].met


def test_an_earlier_release_that_is_not_there_is_left_out(capsys: pytest.CaptureFixture[str]) -> None:
    """A clone may have a short history; the other contenders are measured all the same."""
    assert is_there(MESH)
    assert not is_there(replace(EARLIER, commit="0123abc"))
    assert "earlier is left out: the history has no commit 0123abc" in capsys.readouterr().err


def test_a_turn_of_the_mesh_answers_and_stores() -> None:
    """Real processes ask, work, store, answer and count."""
    (level,) = turn(MESH, Settings(seconds=0.3, levels=(4,)))
    assert level["in_flight"] == 4
    assert level["calls"] > 0
    assert level["failures"] == 0
    assert level["cpu_ms"] > 0
