"""Processes of a measurement."""

from __future__ import annotations

import os
import sys
import time

import psutil
import pytest

from bench.processes import ChildFailed, child, cpu_seconds, until

GRANDPARENT = """
import subprocess, sys, time
print(subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"]).pid, flush=True)
time.sleep(60)
"""


def gone(pid: int) -> bool:
    return not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE


def test_a_child_goes_with_all_it_started() -> None:
    """Nothing of a turn disturbs the next one."""
    with child([sys.executable, "-c", GRANDPARENT], listen=True) as process:
        assert process.stdout is not None
        grandchild = int(process.stdout.readline())
    until(lambda: gone(grandchild), 5, "the grandchild is gone")
    assert process.returncode is not None


def test_a_child_that_failed_is_told_with_its_log() -> None:
    """A contender that fell over is an error with its reason, not a low figure."""
    with pytest.raises(ChildFailed, match="no such luck"):
        with child([sys.executable, "-c", "raise SystemExit('no such luck')"]) as process:
            process.wait(10)


def test_an_error_beside_a_child_comes_with_its_log() -> None:
    """The error says that a client ended early. Only the log of the client says why."""
    with pytest.raises(RuntimeError, match="ended early") as caught:
        with child([sys.executable, "-c", "raise SystemExit('no such luck')"], listen=True) as process:
            assert process.stdout is not None
            raise RuntimeError(f"ended early: {process.stdout.read()!r}")
    (note,) = caught.value.__notes__
    assert "no such luck" in note


def test_processor_time_is_that_of_the_whole_tree() -> None:
    """What a process lets its children do is its cost, too."""
    busy = "import subprocess, sys; subprocess.Popen([sys.executable, '-c', 'while True: pass']).wait()"
    with child([sys.executable, "-c", busy]) as process:
        until(lambda: cpu_seconds([process.pid]) > 0.3, 20, "the child's child has worked")
    assert cpu_seconds([os.getpid()]) > 0


def test_waiting_ends() -> None:
    """Every wait has a deadline."""
    begun = time.monotonic()
    with pytest.raises(TimeoutError, match="never"):
        until(lambda: False, 0.05, "never")
    assert time.monotonic() - begun < 5
