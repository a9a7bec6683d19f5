"""The load that every contender is put under."""

from __future__ import annotations

import asyncio
import importlib.util
import sys
from types import ModuleType

import pytest

from bench.environments import PEERS


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The module as a peer imports it: by file, without the project."""
    spec = importlib.util.spec_from_file_location("bench_load", PEERS / "load.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "bench_load", module)
    spec.loader.exec_module(module)
    return module


async def test_as_many_calls_are_in_flight_as_asked(load: ModuleType) -> None:
    """A level of 16 means 16, all the time."""
    now, most = 0, 0

    async def call(number: int) -> int:
        nonlocal now, most
        now += 1
        most = max(most, now)
        await asyncio.sleep(0.001)
        now -= 1
        return number

    driven = load.Load(call)
    await driven.run(16, 0.05)
    assert most == 16
    assert len(driven.latencies) >= 16


async def test_a_wrong_answer_is_a_failure(load: ModuleType) -> None:
    """A contender that answers the wrong call is not quick."""

    async def call(number: int) -> int:
        return number + 1

    driven = load.Load(call)
    await driven.run(1, 0.03)
    assert not driven.latencies
    assert driven.failures > 0


def test_a_summary_counts_answers_only(load: ModuleType) -> None:
    """The rate is answers over time; latencies in ms."""
    found = load.summary(4, [0.001, 0.003, 0.002], 0.5, failures=7)
    assert found["rate"] == 6
    assert found["median_ms"] == pytest.approx(2)
    assert found["failures"] == 7


def test_no_answer_at_all_is_told(load: ModuleType) -> None:
    """A level without an answer has the rate 0 and no latency, and raises nothing."""
    assert load.summary(1, [], 1.0, 3)["rate"] == 0


async def test_delayed_requests_are_waited_for(load: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """The time ends when the last of them has run, and what ran before does not count."""
    monkeypatch.setattr(load, "DELAY_S", 0.05)
    monkeypatch.setattr(load, "LOOK_S", 0.001)
    ran = 7

    def run() -> None:
        nonlocal ran
        ran += 1

    async def send(number: int) -> int:
        asyncio.get_running_loop().call_later(0.1, run)
        await asyncio.sleep(0.001)
        return number

    async def count() -> int:
        return ran

    driven = load.Load(send)
    elapsed = await load.send_and_wait(driven, 4, 0.02, count)
    assert ran == 7 + len(driven.latencies) > 7
    assert elapsed >= 0.05


async def test_a_delayed_request_that_never_runs_ends_the_level(
    load: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The measurement does not hang when a delayed request never runs."""
    monkeypatch.setattr(load, "DELAY_S", 0.0)
    monkeypatch.setattr(load, "PATIENCE_S", 0.05)
    monkeypatch.setattr(load, "LOOK_S", 0.001)

    async def send(number: int) -> int:
        await asyncio.sleep(0.01)
        return number

    async def count() -> int:
        return 0

    with pytest.raises(TimeoutError, match="accepted for later, 0 ran"):
        await load.send_and_wait(load.Load(send), 1, 0.02, count)
