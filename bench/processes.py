"""Child processes of a measurement: start, read output, measure cost, and end with all their children."""

from __future__ import annotations

import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil

from quart_app.local import allocator


class ChildFailed(RuntimeError):
    """A process of the measurement failed; the message has the end of its log."""


def tail(log: Path, size: int = 2000) -> str:
    """Return the end of a log."""
    return log.read_text(errors="replace")[-size:]


@contextmanager
def child(
    argv: Sequence[str | os.PathLike[str]],
    *,
    environ: Mapping[str, str] | None = None,
    folder: Path | None = None,
    listen: bool = False,
    patience_s: float = 3.0,
) -> Iterator[subprocess.Popen[str]]:
    """Run a process in a group of its own while the block lasts. Raises ChildFailed when it failed by itself.

    An error of the block gets the end of the log as a note, because it is often the process's error.
    `listen` opens its stdout for reading; `patience_s` is the time it may take to end. All Python processes, ours and
    those of peers, get the same allocator.
    """
    with tempfile.NamedTemporaryFile("w", prefix="bench-", suffix=".log") as log:
        process = subprocess.Popen(
            [os.fspath(part) for part in argv],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE if listen else log,
            stderr=log,
            env={**os.environ, **allocator.python_variables(), **(environ or {})},
            cwd=folder,
            text=True,
            start_new_session=True,
        )
        try:
            yield process
        except Exception as error:
            error.add_note(f"the log of {' '.join(map(str, argv))}: {tail(Path(log.name))}")
            raise
        finally:
            failed = process.poll()
            end(process, patience_s)
        if failed:
            raise ChildFailed(f"{' '.join(map(str, argv))} ended with {failed}: {tail(Path(log.name))}")


def end(process: subprocess.Popen[str], patience_s: float) -> None:
    """Send SIGTERM to the group, then SIGKILL to the rest of it."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGTERM)
    with suppress(subprocess.TimeoutExpired):
        process.wait(patience_s)
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    if process.stdout:
        process.stdout.close()


def cpu_seconds(pids: Sequence[int]) -> float:
    """Return the processor time so far of processes and their live descendants, in seconds."""
    total = 0.0
    for pid in pids:
        with suppress(psutil.NoSuchProcess):
            root = psutil.Process(pid)
            for process in [root, *root.children(recursive=True)]:
                with suppress(psutil.NoSuchProcess):
                    spent = process.cpu_times()
                    total += spent.user + spent.system
    return total


def resident_bytes(pid: int) -> int:
    """Return the resident memory of one process."""
    return psutil.Process(pid).memory_info().rss


def until(condition: object, timeout_s: float, what: str, interval_s: float = 0.01) -> None:
    """Wait until `condition()` is true. Raises TimeoutError with `what`."""
    end_at = time.monotonic() + timeout_s
    while not condition():  # type: ignore[operator]
        if time.monotonic() > end_at:
            raise TimeoutError(f"{what}: not within {timeout_s} s")
        time.sleep(interval_s)
