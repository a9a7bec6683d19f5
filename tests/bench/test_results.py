"""What many results add to a GET."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from bench import results
from bench.record import Settings

ANSWER: list[dict[str, Any]] = [{"value": 2 * n, "prime_factors": [n, 2]} for n in range(1000, 2000)]


@contextlib.contextmanager
def no_replicas(count: int, **settings: Any) -> Iterator[Any]:
    class Mesh:
        ports: Sequence[int] = (0,)

    yield Mesh()


def test_a_run_measures_none_one_and_many(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The one is the last factor of the many, which no other value has."""
    asked: list[dict[int, int]] = []

    def round_of(mesh: Any, primes: dict[int, int], answer: Any) -> dict[str, float]:
        asked.append(primes)
        return {"encode_ms": 0.1, **{f"{n}|{who}": 0.1 * n for n in primes for who in ("replicas", "redis")}}

    for name, stand_in in {"replicas": no_replicas, "round_of": round_of}.items():
        monkeypatch.setattr(results, name, stand_in)
    monkeypatch.setattr(results, "plant", lambda mesh, classes, primes, results: [2])
    monkeypatch.setattr(results, "get", lambda port, prime: ANSWER)
    record = results.measure(Settings(rounds=2))
    assert asked == 2 * [{0: results.NOWHERE, 1: 1999, 1000: 2}]
    text = results.present(record, tmp_path)
    assert "| 1,000 | 100.000" in text and "1,000 results more than one" in text and "≤ 3" in text
    monkeypatch.setattr(results, "get", lambda port, prime: ANSWER[1:])
    with pytest.raises(RuntimeError):
        results.measure(Settings(rounds=1))


def test_the_ratio_is_what_the_results_add_over_the_encoding() -> None:
    """Of the same round."""
    series = {"1000|replicas": [0.5, 0.4], "1|replicas": [0.3, 0.3], "0|replicas": [0.1, 0.1], "encode_ms": [0.1, 0.1]}
    found = results.ratios(series)
    assert [ratio.spread.highest for ratio in found.values()] == pytest.approx([2.0, 4.0])
    assert [ratio.spread.lowest for ratio in found.values()] == pytest.approx([1.0, 3.0])


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_the_time_of_an_act_is_that_of_the_watched_processes() -> None:
    """Of all of their threads."""

    class Mesh:
        watched = {"ours": [os.getpid()], "nobody": []}  # noqa: RUF012

    mesh: Any = Mesh()
    found = results.costs(mesh, lambda: sum(range(1_000_000)) and None)
    assert found["ours"] > 1 and found["nobody"] == 0


def test_the_quickest_quarter_counts() -> None:
    """Disturbed GETs do not."""
    assert results.quickest([1.0] * 30 + [1000.0] * 70) == 1.0
    assert results.encode_ms(ANSWER) > 0
