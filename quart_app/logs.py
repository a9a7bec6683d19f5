"""Structured logs with request ids, to standard error.

A log that cannot be written must not stop, delay or fail a request. So a thread writes the lines, and a bounded number
of bytes waits for it. Lines beyond the bound are dropped and counted:

    written -> waiting -> in the stream
       |          '-> dropped: the stream is closed or full
       '-> dropped: the reader of the stream is stuck or slow
"""

from __future__ import annotations

import atexit
import logging
import os
import select
import sys
import threading
import time
from collections import deque
from collections.abc import Callable

import structlog
from structlog.tracebacks import ExceptionDictTransformer

from mesh import tracing
from quart_app.settings import AppSettings

#: Bytes of lines that may wait for the stream.
MOST_BYTES = 4 << 20
#: Most characters of one fact, and of a traceback. The text of some facts comes from a client or from a stream.
MOST_TEXT, MOST_TRACEBACK = 2000, 20_000
#: How long the end of the process waits for the last lines.
DRAIN_S = 1.0


class Sink:
    """A text stream that never blocks and never raises. With the descriptor None it drops every line.

    `tell` returns the line that says how many lines were dropped. By default this line is JSON.
    """

    def __init__(
        self, descriptor: int | None, most_bytes: int = MOST_BYTES, tell: Callable[[int], bytes] | None = None
    ) -> None:
        self.dropped = 0
        self._tell = tell or _dropped
        self._descriptor = descriptor
        self._most_bytes = most_bytes
        self._waiting: deque[bytes] = deque()
        self._bytes = 0
        self._changed = threading.Condition()
        threading.Thread(target=self._run, name="log", daemon=True).start()

    def write(self, text: str) -> int:
        """Hand a line to the thread, or drop it if too much waits."""
        line = text.encode("utf-8", "backslashreplace")
        with self._changed:
            if self._descriptor is None or self._bytes + len(line) > self._most_bytes:
                self.dropped += 1
            else:
                self._waiting.append(line)
                self._bytes += len(line)
                self._changed.notify_all()
        return len(text)

    def flush(self) -> None:
        """Do nothing. A text stream must have this method, but no caller may wait for the thread."""

    def drain(self, most_s: float = DRAIN_S) -> None:
        """Wait until all lines are written, but no longer than this."""
        with self._changed:
            self._changed.wait_for(lambda: not self._bytes, most_s)

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting)
                line = self._waiting.popleft()
                dropped = self.dropped
            lost = 0 if self._put(line) else 1
            told = dropped if dropped and not lost and self._put(self._tell(dropped)) else 0
            with self._changed:
                self._bytes -= len(line)
                self.dropped += lost - told
                self._changed.notify_all()

    def _put(self, line: bytes) -> bool:
        """Write all of these bytes and return True, or return False if the stream cannot take them."""
        assert self._descriptor is not None
        try:
            while line:
                line = line[os.write(self._descriptor, line) :]
        except BlockingIOError:
            # Somebody has made the stream non-blocking. The processes on a terminal share this state.
            select.select([], [self._descriptor], [], 1)
            return self._put(line)
        except OSError:
            # The disk may be full, and may have room again when the next line comes.
            time.sleep(0.01)
            return False
        return True


def _dropped(count: int) -> bytes:
    return b'{"event": "log lines dropped", "level": "warning", "count": %d}\n' % count


_sinks: list[Sink] = []


def drain(most_s: float = DRAIN_S) -> None:
    """Wait until the lines logged so far are written, but no longer than this."""
    for sink in _sinks:
        sink.drain(most_s)


def add_origin(_: object, __: str, event: structlog.typing.EventDict) -> structlog.typing.EventDict:
    """Add the ids of the call and of the trace that a line belongs to. They are the same on every replica."""
    call, trace = tracing.CALL.get(), tracing.trace_id()
    if call:
        event.setdefault("request_id", call)
    if trace:
        event.setdefault("trace_id", trace)
    return event


def shorten(_: object, __: str, event: structlog.typing.EventDict) -> structlog.typing.EventDict:
    """Cut long texts, so that no text from outside fills the log."""
    for name, value in event.items():
        most = MOST_TRACEBACK if name == "exception" else MOST_TEXT
        if isinstance(value, str) and len(value) > most:
            event[name] = f"{value[:most]}… ({len(value)} characters)"
    return event


def configure(settings: AppSettings) -> None:
    """Set up logging for this process."""
    sink = Sink(_descriptor())
    _sinks[:] = [sink]
    atexit.register(drain)
    processors: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        add_origin,
        shorten,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    if settings.log_format == "json":
        # Local variables of a traceback hold passwords, tokens and people's data.
        tracebacks = ExceptionDictTransformer(show_locals=False)
        processors += [structlog.processors.ExceptionRenderer(tracebacks), structlog.processors.JSONRenderer()]
    else:
        plain = structlog.dev.ConsoleRenderer(
            colors=sys.stderr is not None and sys.stderr.isatty(),
            exception_formatter=structlog.dev.plain_traceback,
        )
        processors.append(plain)
    structlog.configure(
        processors=processors,
        wrapper_class=structlog.make_filtering_bound_logger(getattr(logging, settings.log_level.upper())),
        logger_factory=structlog.WriteLoggerFactory(file=sink),  # type: ignore[arg-type]
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(sink)
    logging.basicConfig(level=logging.WARNING, handlers=[handler], format="%(levelname)s %(name)s %(message)s")


def fill_standard_streams() -> None:
    """Open the null device as each standard stream that is closed; call this before anything else is opened.

    A socket would get the free number, and libuv aborts the process when it closes a descriptor of that number.
    """
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)


def _descriptor() -> int | None:
    """Return the descriptor of standard error; None if it was closed when the process began."""
    return sys.stderr.fileno() if sys.stderr is not None else None
