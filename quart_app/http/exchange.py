"""One request and its answer: what an ASGI application receives and sends, as bytes of HTTP/1.1."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import time
from collections.abc import Iterable
from http import HTTPStatus
from typing import Any, Protocol
from urllib.parse import unquote, urlsplit

import structlog
from hypercorn.utils import suppress_body
from quart.utils import encode_headers
from werkzeug.exceptions import HTTPException
from werkzeug.http import http_date

from quart_app.http.parser import Head
from quart_app.http.problems import Problem
from quart_app.http.protection import HEADERS
from quart_app.http.request import HAS_ARRIVED
from quart_app.http.request_log import RequestLog

log = structlog.get_logger(__name__)
#: Of requests that this process answers without its application.
requests = RequestLog()

#: A client that sends a body faster than the application reads it waits from so many bytes on.
MAX_UNREAD = 64 * 1024
CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
ASGI = {"spec_version": "2.1", "version": "3.0"}
_STATUS = {int(status): b"HTTP/1.1 %d %b\r\n" % (status, status.phrase.encode()) for status in HTTPStatus}


class Wire(Protocol):
    """The connection of a request, as far as the request needs it."""

    client: Any
    server: Any
    scheme: str
    state: dict[str, Any]

    def is_last(self) -> bool:
        """Return whether the connection closes after the answer in any case."""

    def write(self, data: bytes) -> None: ...

    async def drain(self) -> None:
        """Wait while the client does not read what was written."""

    def body_was_read(self) -> None:
        """Go on reading, as there is room for more of the body."""

    def answered(self, exchange: Exchange, *, keep: bool) -> None:
        """Begin with the next request, or close the connection if it cannot be kept."""


class Exchange:
    """A request whose head has come, and its answer.

    The task of the request runs the application. Nothing else runs for a request: what comes of its body waits here
    until the application asks for it, and the connection cancels the task when the client has gone.
    """

    def __init__(self, wire: Wire, head: Head) -> None:
        self.head = head
        #: whether the whole body has come
        self.is_complete = False
        self.unread = 0
        #: the answer that the client gets in place of the application's
        self.refusal: Problem | None = None
        self._wire = wire
        self._parts: list[bytes] = []
        self._end_was_told = False
        self._news: asyncio.Future[None] | None = None
        self._gone = False
        self._task: asyncio.Task[None] | None = None
        self._is_running = False
        #: the head of an answer whose body follows
        self._begin: bytes | None = None
        self._has_begun = False
        self._is_over = False
        self._bodiless = False
        self._keep = False
        self._in_chunks = False
        #: bytes that the application has announced and not sent yet; None: it has announced no length
        self._left: int | None = None

    def start(self, app: Any, context: contextvars.Context) -> None:
        """Begin to answer, in a task with this context."""
        self._task = asyncio.get_running_loop().create_task(self._run(app), context=context)

    def body_came(self, data: bytes) -> None:
        self._parts.append(data)
        self.unread += len(data)
        self._wake()

    def has_arrived(self) -> bool:
        return self.is_complete

    def body_ended(self) -> None:
        self.is_complete = True
        self._wake()

    def refuse(self, problem: Problem) -> None:
        """Answer with this, whatever the application does; if it has begun to answer, cut the answer off."""
        self.refusal = problem
        if self._task is None:
            self._tell(problem)
        else:
            self.cancel()

    def cancel(self) -> None:
        """End the work on a request that is not answered; its client gets 503."""
        if self._task is not None:
            self._task.cancel()
            if not self._is_running:  # then its task never begins
                self._tell(self.refusal or _stopping())

    async def ended(self) -> None:
        """Wait until the task of the request has ended."""
        if self._task is not None:
            await asyncio.wait([self._task])

    def client_went(self) -> None:
        """End the work on a request whose client has gone."""
        self._gone = True
        self._wake()
        self.cancel()

    async def receive(self) -> dict[str, Any]:
        """Return what has come of the body, or that the client has gone (ASGI)."""
        while not (self._gone or self._is_over):
            if self._parts or (self.is_complete and not self._end_was_told):
                body = self._parts[0] if len(self._parts) == 1 else b"".join(self._parts)
                self._parts.clear()
                self.unread = 0
                more = not self.is_complete
                self._end_was_told = not more
                if more:
                    self._wire.body_was_read()  # more of it may come at once
                return {"type": "http.request", "body": body, "more_body": more}
            if self.head.expects_continue and not (self._has_begun or self.is_complete):
                self.head.expects_continue = False
                self._wire.write(CONTINUE)
            self._news = asyncio.get_running_loop().create_future()
            await self._news
        return {"type": "http.disconnect"}

    async def send(self, message: Any) -> None:
        """Send a part of the answer (ASGI). The head waits for the first part of the body.

        So the client wakes up once, and a process that dies in between does not leave half an answer with a balancer.
        """
        if self._gone or self._is_over:
            return
        kind = message["type"]
        if kind == "http.response.start":
            self._begin_answer(message["status"], message.get("headers", ()))
            if self._left is None and not self._bodiless:
                self._write(b"")  # the head of a stream does not wait for it
        elif kind == "http.response.body":
            self._send_body(message.get("body", b""), more=message.get("more_body", False))
            await self._wire.drain()

    def _begin_answer(self, status: int, headers: Iterable[tuple[bytes, bytes]]) -> None:
        if self._has_begun or self._begin is not None:
            raise RuntimeError("the answer has begun already")
        lines = [_STATUS.get(status) or b"HTTP/1.1 %d \r\n" % status]
        keep = self.head.keep_alive and self.is_complete and not self._wire.is_last()
        length = None
        for name, value in headers:
            if name == b"connection":
                keep = keep and b"close" not in value.lower()
                continue
            if name == b"content-length":
                length = int(value)
            elif name == b"transfer-encoding":
                continue
            lines.append(b"%b: %b\r\n" % (name, value))
        self._bodiless = suppress_body(self.head.method, status)
        self._left = 0 if self._bodiless else length
        if length is None and not (self._bodiless and status in {204, 304}):
            self._in_chunks = self.head.version == "1.1"
            if self._in_chunks:
                lines.append(b"transfer-encoding: chunked\r\n")
            else:
                keep = False
        lines.append(date_line())
        if not keep:
            lines.append(b"connection: close\r\n")
        begin = b"".join(lines)
        if begin.count(b"\n") != len(lines) or begin.count(b"\r") != len(lines) or b"\0" in begin:
            raise ValueError("a header of the answer contains a line break")
        self._keep = keep
        self._begin = begin + b"\r\n"

    def _send_body(self, data: bytes, *, more: bool) -> None:
        if self._begin is None and not self._has_begun:
            raise RuntimeError("the answer has no head yet")
        if self._bodiless:
            data = b""
        elif self._left is not None:
            self._left -= len(data)
            if self._left < 0 or (self._left and not more):
                raise RuntimeError("the answer is not as long as it says")
        elif self._in_chunks:
            data = (b"%x\r\n%b\r\n" % (len(data), data) if data else b"") + (b"" if more else b"0\r\n\r\n")
        self._write(data)
        if not more:
            self._end(keep=self._keep)

    def _write(self, data: bytes) -> None:
        if self._begin is not None:
            data, self._begin = self._begin + data, None
            self._has_begun = True
        if data:
            self._wire.write(data)

    def _end(self, *, keep: bool) -> None:
        self._is_over = True
        self._wake()
        self._wire.answered(self, keep=keep)

    def _wake(self) -> None:
        if self._news is not None and not self._news.done():
            self._news.set_result(None)

    async def _run(self, app: Any) -> None:
        self._is_running = True
        try:
            await app(self._scope(), self.receive, self.send, None, None)
            if not self._is_over:
                self._tell(Problem(500, "the application has not answered"))
        except asyncio.CancelledError:
            self._tell(self.refusal or _stopping())
        except HTTPException as error:
            self._tell(Problem(error.code or 400, error.description or ""))
        except Exception:
            log.exception("the application failed")
            self._tell(Problem(500, "internal error; the server log has the details"))

    def _tell(self, problem: Problem) -> None:
        """Answer without the application, as the last on the connection. An answer that has begun is cut off."""
        if self._is_over:
            return
        if not self._gone and not self._has_begun:
            requests.write(self.head.method, "none", problem.status, problem.detail)
            self._begin = None
            self.head.keep_alive = False
            document = problem.document()
            self._begin_answer(problem.status, last_headers(problem))
            self._write(b"" if self._bodiless else document)
        self._end(keep=False)

    def _scope(self) -> dict[str, Any]:
        """Return the ASGI scope. Raises HTTPException if the target names no path."""
        head, wire = self.head, self._wire
        raw_path, _, query_string = head.target.partition(b"?")
        path = raw_path.decode("ascii")
        if b"%" in raw_path:
            path = unquote(path)
        if not _is_readable(path):
            raise _NoPath
        return {
            "type": "http",
            "asgi": ASGI,
            "http_version": head.version,
            "method": head.method,
            "scheme": wire.scheme,
            "path": path,
            "raw_path": raw_path,
            "query_string": query_string,
            "root_path": "",
            "headers": head.headers,
            "client": wire.client,
            "server": wire.server,
            "state": wire.state.copy(),
            "extensions": {HAS_ARRIVED: self.has_arrived},
        }


def _stopping() -> Problem:
    return Problem(503, "this replica stops before it can answer; retry after 1 s", retry_after=1)


class _NoPath(HTTPException):
    code = 400
    description = "the request names no path"


def _is_readable(path: str) -> bool:
    """Return whether this is a path or a URL. Quart itself refuses a URL whose host is wrong."""
    if path.startswith("/"):
        return True
    with contextlib.suppress(ValueError):
        return bool(path and urlsplit(path))
    return False


_date: tuple[int, bytes] = (0, b"")


def date_line() -> bytes:
    """Return the Date header of answers, made once a second."""
    global _date
    now = int(time.time())
    if _date[0] != now:
        _date = now, b"date: %b\r\n" % http_date(now).encode()
    return _date[1]


def last_headers(problem: Problem) -> list[tuple[bytes, bytes]]:
    """Return the headers of a problem that is answered without the application, as the last on its connection."""
    headers = problem.response().headers
    headers.update({**HEADERS, "Connection": "close"})
    return encode_headers(headers)
