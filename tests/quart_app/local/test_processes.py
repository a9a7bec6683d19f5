"""Children: how they are started, kept running and stopped."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from quart_app.exits import EXIT_SETUP
from quart_app.local import processes
from quart_app.local.processes import Child, Program, Supervisor, ends_within, last_line, reason_of, restart_pause_s
from quart_app.local.spawning import spawn
from tests.support.waiting import eventually

FOREVER = "import time; time.sleep(60)"
#: Ignores SIGTERM, and says so once that is true.
STUBBORN = (
    "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('deaf', flush=True); time.sleep(60)"
)


def program(folder: Path, code: str, name: str = "it", **options: object) -> Program:
    return Program(name, [sys.executable, "-c", code], folder / f"{name}.log", **options)  # type: ignore[arg-type]


@pytest.fixture
def said() -> list[str]:
    return []


async def test_a_child_is_waited_for_no_longer_than_that(tmp_path: Path) -> None:
    """Every wait has a deadline."""
    with (tmp_path / "log").open("wb") as log:
        child = spawn([sys.executable, "-c", FOREVER], log)
    started = time.monotonic()
    assert await ends_within(child, 0.2) is False
    assert time.monotonic() - started < 2
    child.kill()
    assert await ends_within(child, 5) is True


async def test_a_child_does_not_get_our_ctrl_c(tmp_path: Path) -> None:
    """A child has a session of its own, and we stop our children in order."""
    code = "import os, sys; sys.exit(0 if os.getsid(0) == os.getpid() else 1)"
    with (tmp_path / "log").open("wb") as log:
        child = spawn([sys.executable, "-c", code], log)
    assert await ends_within(child, 20) and child.returncode == 0


async def test_what_a_child_reads_from_its_standard_input_is_not_in_its_arguments(tmp_path: Path) -> None:
    """`ps` shows arguments to every user of the machine."""
    with (tmp_path / "log").open("wb") as log:
        child = spawn([sys.executable, "-c", f"print(input(), flush=True); {FOREVER}"], log, stdin=b"the-secret\n")

    async def has_read() -> bool:
        return "the-secret" in (tmp_path / "log").read_text()

    await eventually(has_read)
    assert "the-secret" not in " ".join(psutil.Process(child.pid).cmdline())
    child.kill()
    child.wait()


async def test_a_child_that_is_killed_is_said_and_started_again(tmp_path: Path, said: list[str]) -> None:
    """The message has its name, the signal, and what happens now."""
    supervisor = Supervisor(said.append)
    async with supervisor.running(program(tmp_path, FOREVER, "Caddy")) as child, supervisor.keeping(child):
        first = child.pid
        assert first is not None
        os.kill(first, signal.SIGKILL)

        async def replaced() -> bool:
            return child.pid not in (None, first)

        await eventually(replaced)
        assert said == ["Caddy ended (killed by SIGKILL); starting it again in 0.1 s"]
        last = child.pid
    assert last is not None and not psutil.pid_exists(last)
    assert said[1:] == ["waiting for Caddy: it stops (at most 10 s)"]


async def test_a_child_that_cannot_be_started_again_is_tried_until_it_can(tmp_path: Path, said: list[str]) -> None:
    """A program that is being replaced by an upgrade is away for a moment."""
    script = tmp_path / "script"
    script.write_text("#!/bin/sh\nexec sleep 60\n")
    script.chmod(0o755)
    supervisor = Supervisor(said.append)
    wanted = Program("it", [str(script)], tmp_path / "log")
    async with supervisor.running(wanted) as child, supervisor.keeping(child):
        moved = script.rename(tmp_path / "away")
        assert child.pid is not None
        os.kill(child.pid, signal.SIGKILL)

        async def refused() -> bool:
            return any("it cannot be started" in line for line in said)

        await eventually(refused)
        moved.rename(script)

        async def runs() -> bool:
            return not child.has_ended()

        await eventually(runs)


@pytest.mark.parametrize(
    ("status", "lived_s", "last", "pause"),
    [
        (1, 0.1, 0.0, 0.1),
        (1, 0.1, 0.1, pytest.approx(0.3)),
        (1, 0.1, 4.0, 5.0),
        (1, 60.0, 4.0, 0.0),
        (-9, 60.0, 0.0, 0.0),
        (EXIT_SETUP, 60.0, 0.0, 5.0),
    ],
)
def test_a_child_that_ends_soon_waits_longer_each_time(status: int, lived_s: float, last: float, pause: float) -> None:
    """Up to five seconds; one that says that a new start will not help waits that long at once."""
    assert restart_pause_s(status, lived_s, last) == pause


def test_how_a_child_ended_is_said_in_words() -> None:
    """A negative number is a signal."""
    assert [reason_of(status) for status in (0, 78, -9, -15)] == [
        "exit status 0", "exit status 78", "killed by SIGKILL", "killed by SIGTERM",
    ]  # fmt: skip


async def test_a_child_that_ends_by_itself_is_told_with_its_last_line(tmp_path: Path, said: list[str]) -> None:
    """The reason is in its log, and few look there first."""
    child = Child(program(tmp_path, "print('the disk is full')"), said.append)
    child.start()
    keeping = asyncio.create_task(child.keep())

    async def told() -> bool:
        return bool(said)

    await eventually(told)
    keeping.cancel()
    await child.stop()
    assert said[0] == "it ended (exit status 0): the disk is full; starting it again in 0.1 s"


@pytest.mark.parametrize("end", [Child.kill, Child.tell_to_stop])
async def test_a_child_that_is_told_to_stop_before_it_is_started_again_is_not_started(
    tmp_path: Path, said: list[str], end: Callable[[Child], None]
) -> None:
    """A second Ctrl-C may come in the pause before a start; the process would outlive the mesh."""
    starts = tmp_path / "starts"
    child = Child(program(tmp_path, f"open({str(starts)!r}, 'a').write('x')"), said.append)
    child.start()
    keeping = asyncio.create_task(child.keep())

    async def told() -> bool:
        return bool(said)

    await eventually(told)
    end(child)
    await asyncio.wait_for(keeping, 5)
    assert starts.read_text() == "x"


async def test_a_child_that_does_not_stop_is_killed_and_said(tmp_path: Path, said: list[str]) -> None:
    """Each child has its own time to stop."""
    supervisor = Supervisor(said.append)
    async with supervisor.running(program(tmp_path, STUBBORN, stop_wait_s=0.3)) as child:
        await eventually(lambda: deaf(tmp_path))
    assert child.pid is None
    assert said == ["it did not stop within 0 s and is killed"]


async def deaf(folder: Path) -> bool:
    return "deaf" in (folder / "it.log").read_text()


async def test_all_can_be_ended_at_once(tmp_path: Path, said: list[str]) -> None:
    """The second Ctrl-C does not wait for anything, and nothing is started again."""
    supervisor = Supervisor(said.append)
    started = time.monotonic()
    async with supervisor.running(program(tmp_path, STUBBORN, stop_wait_s=60)) as child, supervisor.keeping(child):
        await eventually(lambda: deaf(tmp_path))
        supervisor.kill_all()
    assert time.monotonic() - started < 20
    assert child.pid is None and not any("again" in line for line in said)


async def test_a_cancelled_stop_kills(tmp_path: Path, said: list[str]) -> None:
    """Nothing of ours stays behind, whatever interrupts us."""
    child = Child(program(tmp_path, STUBBORN), said.append)
    child.start()
    await eventually(lambda: deaf(tmp_path))
    pid = child.pid
    stopping = asyncio.create_task(child.stop())
    await asyncio.sleep(0)
    stopping.cancel()
    with pytest.raises(asyncio.CancelledError):
        await stopping
    assert pid is not None and not psutil.pid_exists(pid)


def test_the_last_line_of_a_log_is_found_in_a_long_one(tmp_path: Path) -> None:
    """Only the end of the log is read; a log that is empty or missing is named instead."""
    log = tmp_path / "log"
    log.write_text("first\n" * 100_000 + "last\n\n")
    assert last_line(log) == "last"
    log.write_text("")
    assert last_line(log) == f"see {log}"
    assert last_line(tmp_path / "none") == f"see {tmp_path / 'none'}"


async def test_a_log_is_bounded_while_its_process_goes_on_writing(
    tmp_path: Path, said: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last part of it stays, in one file beside it."""
    monkeypatch.setattr(processes, "LOG_BYTES", 2000)
    monkeypatch.setattr(processes, "LOOK_AT_LOG_S", 0.0)
    code = "import time\nfor n in range(10**6): print(f'line {n}', flush=True); time.sleep(0.002)"
    supervisor = Supervisor(said.append)
    async with supervisor.running(program(tmp_path, code)) as child, supervisor.keeping(child):
        log, old = tmp_path / "it.log", tmp_path / "it.log.1"

        async def moved() -> bool:
            return old.exists() and 0 < log.stat().st_size < 2000 and "line" in last_line(log)

        await eventually(moved, 30)
        assert not child.has_ended()
    assert log.read_bytes()[:4] == b"line", "no hole at its beginning"


def test_a_pause_has_a_bound_that_a_user_can_bear() -> None:
    """The next try is never more than seconds away."""
    pause = 0.0
    for _ in range(20):
        pause = restart_pause_s(1, 0.0, pause)
    assert pause == processes.LONGEST_PAUSE_S
