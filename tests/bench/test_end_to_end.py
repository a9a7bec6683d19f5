"""The comparison end to end: which peer counts as the best one, and what is said of those that failed."""

from __future__ import annotations

from pathlib import Path

from bench.end_to_end import LEVELS, OURS, PEER_WEBS, present, ratios
from bench.environments import PEERS
from bench.record import Record, Settings
from bench.spread import Spread


def test_ours_is_compared_with_the_best_peer_of_each_figure() -> None:
    """A peer without a figure for each round has failed, and does not count."""
    series = {
        f"{OURS}|32|1|rate": [300.0, 330.0], "arq|32|1|rate": [100.0, 110.0], "celery|32|1|rate": [50.0, 60.0],
        "taskiq|32|1|rate": [900.0],
        f"{OURS}|1|1|median_ms": [1.0], "arq|1|1|median_ms": [4.0], "celery|1|1|median_ms": [2.0],
    }  # fmt: skip
    found = ratios(series)
    rate = found["requests a second, 32 connections, 1 numbers each, quart-mesh / best peer"]
    median = found["median latency, 1 connections, 1 numbers each, quart-mesh / best peer"]
    assert (rate.spread.median, rate.met, rate.more_is_better) == (3.0, True, True)
    assert (median.spread.median, median.met, median.more_is_better) == (0.5, False, False)


def test_a_peer_whose_requests_failed_is_named() -> None:
    """A peer whose requests failed has no figures, and the report says so."""
    key = f"{OURS}|{LEVELS[0][0]}|{LEVELS[0][1]}"
    one = Spread.of([1.5])
    measured = {f"{key}|{what}": one for what in ("rate", "median_ms", "p99_ms", "cpu_ms")}
    record = Record("end_to_end", Settings(), measured, {}, facts={"failed": {"celery|1|1": 2}})
    text = present(record, Path())
    assert "| quart-mesh, one replica | 2 | 1.50 | 1.5 | 1.500 |" in text
    assert "| Flask + Celery | requests failed |" in text


def test_each_peer_has_an_environment_and_an_application() -> None:
    """The pins and the programs stand beside those of the other peers."""
    for name in PEER_WEBS:
        assert (PEERS / f"rest_{name}.txt").exists() and (PEERS / f"rest_{name}.py").exists()
