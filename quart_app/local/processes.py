"""Child processes that are kept running until they are stopped.

    starting --> running --ends by itself--> waiting (backoff) --> starting
    in any state --stop--> told to stop --> killed if it takes too long

A `Supervisor` owns all children of a mesh. It reports what happens to them, and can end all of them at once.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import subprocess
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from quart_app.exits import EXIT_SETUP
from quart_app.local.forks import Fork, ForkServer
from quart_app.local.spawning import spawn

#: A child that ran for longer than STABLE_S is started again at once. After a shorter run, the pause before the next
#: start about doubles each time, from FIRST_PAUSE_S to LONGEST_PAUSE_S. Longer pauses leave the mesh without the child
#: for longer; shorter ones cost more starts of a child that cannot run.
STABLE_S = 10.0
FIRST_PAUSE_S = 0.1
LONGEST_PAUSE_S = 5.0
#: Every LOOK_AT_LOG_S, `rotate_log` looks at a log. The content of one that is longer than LOG_BYTES is moved to a
#: second file, whose former content is lost. Larger numbers keep older lines, and take more of the disk.
LOG_BYTES = 16 << 20
LOOK_AT_LOG_S = 5.0
#: The pause after the exit status EXIT_SETUP, even the first time: before a new start somebody must repair the setup. A
#: longer pause delays the start after the repair; a shorter one costs more starts that must fail.
SETUP_PAUSE_S = 5.0
#: How often `Child` looks whether its process still runs. A longer pause delays the next start; a shorter one takes
#: more of the processor.
POLL_S = 0.05

#: Tells the user of `mesh up` a sentence.
Say = Callable[[str], None]


async def ends_within(process: subprocess.Popen[bytes] | Fork, longest_wait_s: float) -> bool:
    """Wait until a process ends, but at most `longest_wait_s`. Return whether it has ended."""
    give_up_at_s = time.monotonic() + longest_wait_s
    while process.poll() is None:
        if time.monotonic() >= give_up_at_s:
            return False
        await asyncio.sleep(0.02)  # shorter than POLL_S, because somebody waits for the end; costs more looks
    return True


@dataclass(frozen=True, slots=True)
class Program:
    """What a child runs, and how it is told to stop."""

    name: str
    command: Sequence[str]
    #: what it prints is appended here
    log: Path
    #: None: the environment of this process
    env: Mapping[str, str] | None = None
    #: what it reads from its standard input: a way to pass secrets, because `ps` does not show it
    stdin: bytes = b""
    #: makes the process as a fork, without standard input; None: a new process is started
    fork_server: ForkServer | None = None
    stop_signal: signal.Signals = signal.SIGTERM
    #: how long it may take to stop before it is killed
    stop_wait_s: float = 10.0
    #: what it does while it stops, in words for the user who waits
    stopping_phrase: str = "it stops"


def restart_pause_s(status: int, lived_s: float, previous_pause_s: float) -> float:
    """Return how long to wait before a child is started again. Its last process ended with this status."""
    if status == EXIT_SETUP:
        return max(SETUP_PAUSE_S, previous_pause_s)
    if lived_s > STABLE_S:
        return 0.0
    return min(LONGEST_PAUSE_S, 2 * previous_pause_s + FIRST_PAUSE_S)


def reason_of(status: int) -> str:
    """Return how a child ended, in words."""
    if status >= 0:
        return f"exit status {status}"
    with contextlib.suppress(ValueError):  # a signal without a name
        return f"killed by {signal.Signals(-status).name}"
    return f"killed by signal {-status}"


def rotate_log(path: Path) -> None:
    """Move the content of a long log to a file beside it. The process goes on writing to the first file, now empty.

    Lines that it writes between the copy and the emptying are lost.
    """
    with contextlib.suppress(OSError):  # a log that cannot be copied goes on growing
        if path.stat().st_size > LOG_BYTES:
            shutil.copyfile(path, path.with_suffix(".log.1"))
            os.truncate(path, 0)


def last_line(path: Path) -> str:
    """Return the last line of a log, or a hint at its path if it has no lines."""
    with contextlib.suppress(OSError):  # there is no log
        with path.open("rb") as file:
            # A log may be long, so only its last 4096 bytes are read. If the last line is longer, only its end is
            # returned.
            file.seek(max(0, path.stat().st_size - 4096))
            lines = file.read().decode("utf-8", errors="replace").strip().splitlines()
        if lines:
            return lines[-1].strip()
    return f"see {path}"


class Child:
    """One program that is started again whenever it ends, until `stop`."""

    def __init__(self, program: Program, say: Say) -> None:
        self.program = program
        #: the exit status of the last process that ended
        self.status: int | None = None
        self._say = say
        #: the process that runs. After its end it stays here until `has_ended` has taken its exit status
        self._process: subprocess.Popen[bytes] | Fork | None = None
        self._started_at_s = 0.0
        #: whether `stop`, `tell_to_stop` or `kill` was called, so that `keep` must not start the process again
        self._is_stopping = False
        self._stop_signal_was_sent = False

    @property
    def pid(self) -> int | None:
        """The id of the process that runs now."""
        return None if self._process is None or self._process.poll() is not None else self._process.pid

    def start(self) -> None:
        """Start a process. Raises OSError if the system cannot."""
        program = self.program
        self._started_at_s = time.monotonic()
        if program.fork_server is not None:
            self._process = program.fork_server.start_fork(program.name, program.command, program.log, program.env)
            return
        with program.log.open("ab") as log:
            self._process = spawn(program.command, log, program.env, stdin=program.stdin)

    def has_ended(self) -> bool:
        """Return whether no process runs. If one has just ended, take its exit status into `status`."""
        if self._process is not None and self._process.poll() is not None:
            self.status = self._process.returncode
            self._process = None
        return self._process is None

    async def keep(self) -> None:
        """Start a process whenever none runs, until the task is cancelled or the child was told to stop."""
        pause_s = 0.0
        while True:
            await self._wait_for_end()
            if self._is_stopping:
                return
            status = self.status or 0  # None only if no process was ever started
            pause_s = restart_pause_s(status, time.monotonic() - self._started_at_s, pause_s)
            self._say(f"{self._end_in_words(status)}; starting it again{f' in {pause_s:.1f} s' if pause_s else ''}")
            await asyncio.sleep(pause_s)
            if self._is_stopping:
                return
            try:
                self.start()
            except OSError as error:  # the loop tries again, after a longer pause
                self._say(f"{self.program.name} cannot be started: {error}")

    async def _wait_for_end(self) -> None:
        """Wait until the process ends, and keep its log within bounds meanwhile."""
        log_checked_at_s = 0.0
        while not self.has_ended():
            if time.monotonic() - log_checked_at_s > LOOK_AT_LOG_S:
                log_checked_at_s = time.monotonic()
                rotate_log(self.program.log)
            await asyncio.sleep(POLL_S)

    def _end_in_words(self, status: int) -> str:
        """Return how the process ended, in words, with the last line of its log unless a signal killed it."""
        ending = f"{self.program.name} ended ({reason_of(status)})"
        return ending if status < 0 else f"{ending}: {last_line(self.program.log)}"

    def kill(self) -> None:
        """End the process at once."""
        self._is_stopping = True
        if self._process is not None:
            self._process.kill()

    def tell_to_stop(self) -> None:
        """Tell the process to stop, without waiting for it."""
        self._is_stopping = True
        # The signal is sent only once: at a second one some programs stop without finishing their work.
        if self._process is not None and not self._stop_signal_was_sent:
            self._stop_signal_was_sent = True
            self._process.send_signal(self.program.stop_signal)

    async def stop(self) -> None:
        """Tell the process to stop, and kill it if it takes too long or the wait is cancelled."""
        self.tell_to_stop()
        process = self._process
        if process is None:
            return
        try:
            if not await ends_within(process, self.program.stop_wait_s):
                self._say(f"{self.program.name} did not stop within {self.program.stop_wait_s:.0f} s and is killed")
        finally:
            if process.poll() is None:
                process.kill()
            process.wait()  # without this call the ended process would stay as a zombie


class Supervisor:
    """Runs the children of a mesh: `running` runs a program until its block ends, and `keeping` starts it again."""

    def __init__(self, say: Say) -> None:
        self.say = say
        self._children: list[Child] = []

    def kill_all(self) -> None:
        """Kill every child at once, because the user does not want to wait."""
        for child in self._children:
            child.kill()

    @contextlib.asynccontextmanager
    async def running(self, program: Program) -> AsyncIterator[Child]:
        """Start a program, and stop it at the end of the block. A program that ends before is not started again.

        Raises OSError if the program cannot be started.
        """
        child = Child(program, self.say)
        child.start()
        self._children.append(child)
        try:
            yield child
        finally:
            await child.stop()
            self._children.remove(child)

    @contextlib.asynccontextmanager
    async def keeping(self, *children: Child) -> AsyncIterator[None]:
        """Start each of these children again whenever it ends, until the end of the block; then tell all to stop."""
        tasks = [asyncio.create_task(child.keep()) for child in children]
        try:
            yield
        finally:
            still_running = [child.program for child in children if child.pid is not None]
            if still_running:
                self.say(_waiting_sentence(still_running))
            # All are told at once. At the end of `running`, `stop` then waits for each of them.
            for child in children:
                child.tell_to_stop()
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)
            for task in tasks:
                if not task.cancelled():
                    task.result()  # raises the error that ended `keep`, if one did


def _waiting_sentence(programs: Sequence[Program]) -> str:
    """Return a sentence for the user who waits for these programs to stop.

    If there are several, they are of one kind: their names differ only in the number at the end ("replica 3").
    """
    program = programs[0]
    names = program.name if len(programs) == 1 else f"{len(programs)} {program.name.rstrip(' 0123456789')}s"
    return f"waiting for {names}: {program.stopping_phrase} (at most {program.stop_wait_s:.0f} s)"
