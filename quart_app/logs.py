"""Structured logs with request ids, to standard error.

A log that cannot be written must not stop, delay or fail a request. So a thread writes the lines, and a bounded number
of bytes waits for it. Lines beyond the bound are dropped and counted:

    written -> waiting -> in the stream
       |          '-> dropped: the stream is closed or full
       '-> dropped: the reader of the stream is stuck or slow

A stream is here a text stream such as standard error, not one of Redis.
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

#: Bytes of lines that may wait for the stream. With more, a longer stall of the reader loses no line, but each process
#: may need as much more memory.
MOST_BYTES = 4 << 20
#: The most characters of one fact, and of a traceback. The text of some facts comes from a client or from a stream.
#: With larger numbers, a line tells more, and one request can fill more of the log.
MOST_TEXT, MOST_TRACEBACK = 2000, 20_000
#: How long the end of the process waits until the last lines are written. If nobody reads the log, a longer wait delays
#: the end; after a shorter one, more lines may be lost.
LAST_LINES_WAIT_S = 1.0


class Sink:
    """A text stream that never blocks and never raises. With the descriptor None it drops every line.

    `line_about_dropped` gets the number of dropped lines, and returns the line that reports it. By default this line is
    JSON; `mesh up` writes a sentence in its place.
    """

    def __init__(
        self,
        descriptor: int | None,
        most_bytes: int = MOST_BYTES,
        line_about_dropped: Callable[[int], bytes] | None = None,
    ) -> None:
        #: how many lines were dropped, and are not reported in the stream yet
        self.unreported_count = 0
        self._line_about_dropped = line_about_dropped or _json_about_dropped
        self._descriptor = descriptor
        self._most_bytes = most_bytes
        self._waiting: deque[bytes] = deque()
        #: bytes of the lines that wait, and of the line that is being written
        self._waiting_bytes = 0
        #: guards the two numbers and the queue `_waiting`; notified when one of them changes
        self._queue_changed = threading.Condition()
        threading.Thread(target=self._write_lines, name="log", daemon=True).start()

    def write(self, text: str) -> int:
        """Hand a line to the thread, or drop it if too much waits."""
        line = text.encode("utf-8", "backslashreplace")
        with self._queue_changed:
            if self._descriptor is None or self._waiting_bytes + len(line) > self._most_bytes:
                self.unreported_count += 1
            else:
                self._waiting.append(line)
                self._waiting_bytes += len(line)
                self._queue_changed.notify_all()
        return len(text)

    def flush(self) -> None:
        """Do nothing. A text stream must have this method, but no caller may wait for the thread."""

    def wait_until_written(self, longest_wait_s: float = LAST_LINES_WAIT_S) -> None:
        """Wait until all lines are written, but no longer than this."""
        with self._queue_changed:
            self._queue_changed.wait_for(lambda: not self._waiting_bytes, longest_wait_s)

    def _write_lines(self) -> None:
        """Write the lines as they come, for ever. After a written line, write how many lines were dropped, if any."""
        while True:
            with self._queue_changed:
                self._queue_changed.wait_for(lambda: self._waiting)
                line = self._waiting.popleft()
                to_report = self.unreported_count
            # Written without the lock, so that a slow stream does not stop `write`, which may count more dropped lines.
            now_dropped = 0 if self._write_whole(line) else 1
            reported = (
                to_report
                if to_report and not now_dropped and self._write_whole(self._line_about_dropped(to_report))
                else 0
            )
            with self._queue_changed:
                self._waiting_bytes -= len(line)
                self.unreported_count += now_dropped - reported
                self._queue_changed.notify_all()

    def _write_whole(self, line: bytes) -> bool:
        """Write all of these bytes and return True, or return False if the stream cannot take them."""
        assert self._descriptor is not None
        while line:
            try:
                line = line[os.write(self._descriptor, line) :]
            except BlockingIOError:
                # Somebody has made the stream non-blocking. The processes on a terminal share this state. So wait until
                # the stream takes bytes, for at most a second, and go on with the rest of the line.
                select.select([], [self._descriptor], [], 1)
            except OSError:
                # The disk may be full, and may have room again after the pause, when the next line comes. In a longer
                # pause more lines would be dropped; with a shorter one more writes would fail.
                time.sleep(0.01)
                return False
        return True


def _json_about_dropped(count: int) -> bytes:
    return b'{"event": "log lines dropped", "level": "warning", "count": %d}\n' % count


#: The sink of the latest `configure`, as the only element. Before `configure` the list is empty.
_sinks: list[Sink] = []


def wait_until_written(longest_wait_s: float = LAST_LINES_WAIT_S) -> None:
    """Wait until the lines logged so far are written, but no longer than this."""
    for sink in _sinks:
        sink.wait_until_written(longest_wait_s)


# structlog calls a processor, such as the next two functions, with the logger, the name of its method, and the fields
# of the line. One of the fields is `event`, the phrase.


def add_ids(_: object, __: str, fields: structlog.typing.EventDict) -> structlog.typing.EventDict:
    """Add the ids of the call and of the trace that a line belongs to. They are the same on every replica."""
    call_id, trace_id = tracing.CALL.get(), tracing.trace_id()
    if call_id:
        fields.setdefault("request_id", call_id)
    if trace_id:
        fields.setdefault("trace_id", trace_id)
    return fields


def shorten(_: object, __: str, fields: structlog.typing.EventDict) -> structlog.typing.EventDict:
    """Cut long texts, so that no text from outside fills the log."""
    for name, value in fields.items():
        most_characters = MOST_TRACEBACK if name == "exception" else MOST_TEXT
        if isinstance(value, str) and len(value) > most_characters:
            fields[name] = f"{value[:most_characters]}… ({len(value)} characters)"
    return fields


def configure(settings: AppSettings) -> None:
    """Set up logging for this process."""
    sink = Sink(_stderr_descriptor())
    _sinks[:] = [sink]
    # The thread of the sink ends with the process, even if lines still wait.
    atexit.register(wait_until_written)
    processors: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        add_ids,
        shorten,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    if settings.log_format == "json":
        # Local variables in a traceback may have passwords, tokens and people's data, so they are not logged.
        tracebacks = ExceptionDictTransformer(show_locals=False)
        processors += [structlog.processors.ExceptionRenderer(tracebacks), structlog.processors.JSONRenderer()]
    else:
        renderer = structlog.dev.ConsoleRenderer(
            colors=sys.stderr is not None and sys.stderr.isatty(),
            exception_formatter=structlog.dev.plain_traceback,
        )
        processors.append(renderer)
    structlog.configure(
        processors=processors,
        wrapper_class=structlog.make_filtering_bound_logger(getattr(logging, settings.log_level.upper())),
        # structlog only writes and flushes; its annotation asks for a whole text stream.
        logger_factory=structlog.WriteLoggerFactory(file=sink),  # type: ignore[arg-type]
        cache_logger_on_first_use=True,
    )
    # The lines of libraries that use the module `logging` go into the same sink.
    handler = logging.StreamHandler(sink)
    logging.basicConfig(level=logging.WARNING, handlers=[handler], format="%(levelname)s %(name)s %(message)s")


def fill_standard_streams() -> None:
    """Open the null device as each standard stream that is closed; call this before anything else is opened.

    Otherwise the next socket would get the descriptor 0, 1 or 2, and libuv aborts the process when it closes one of
    these.
    """
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)


def _stderr_descriptor() -> int | None:
    """Return the descriptor of standard error; None if it was closed when the process began."""
    return sys.stderr.fileno() if sys.stderr is not None else None
