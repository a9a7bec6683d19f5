"""The claims about HTTP."""

from __future__ import annotations

import shutil
import subprocess

import pytest

from bench import http
from bench.load_http import LoadFailed, getting, last_line, load, posting
from bench.record import Record, Settings
from bench.spread import Spread

pytestmark = pytest.mark.skipif(shutil.which("wrk") is None, reason="wrk is not installed")


def test_a_load_reports_calls_and_cost() -> None:
    """The load sends real requests to the bare application, and each is answered."""
    with http.bare() as (port, pid):
        found = load("post.lua", [port], posting(3, "AB"), seconds=1, connections=2, watched={"app": [pid]})
    assert found.calls > 0
    assert found.median_ms > 0
    assert found.cpu_ms["app"] > 0


def test_an_answer_that_is_no_success_fails_the_load() -> None:
    """A quick 404 is not a fast answer."""
    with http.bare() as (port, _):
        with pytest.raises(LoadFailed, match="refused"):
            load("get.lua", [port], getting([7]) | {"BENCH_SUFFIX": "/nowhere"}, seconds=1)


def test_what_wrk_says_without_our_line_is_a_failure() -> None:
    """Half a report is none."""
    with pytest.raises(LoadFailed, match="PANIC"):
        last_line(subprocess.CompletedProcess([], 1, "Running 1s test", "PANIC: stack overflow"))


def test_ratios_take_what_was_measured() -> None:
    """If only one side was measured there is no ratio; otherwise there is one per verb."""
    series = {"post|mesh|rate": [60.0, 50.0], "post|bare|rate": [100.0, 100.0], "get|mesh|rate": [1.0, 1.0]}
    found = http.ratios(series)
    assert list(found) == ["POST, rate, mesh / bare"]
    assert found["POST, rate, mesh / bare"].spread == Spread.of([0.6, 0.5])


def test_the_section_shows_what_there_is(tmp_path: object) -> None:
    """A run of some turns only can be presented, too."""
    names = ("rate", "median_ms", "p99_ms", "cpu_ms_replicas")
    measured = {f"post|bare|{what}": Spread.of([1.0]) for what in names}
    text = http.present(Record("http", Settings(), measured, {}), tmp_path)  # type: ignore[arg-type]
    assert "POST, bare Quart route" in text
    assert "four replicas" not in text
