"""One request and its answer, between a connection and an ASGI application.

The connection brings the head and the body of the request. The application sends the answer as ASGI messages, which
this module writes as HTTP/1.1.
"""

from __future__ import annotations

import asyncio
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
from quart_app.http.protection import PROTECTIVE_HEADERS
from quart_app.http.request import BODY_HAS_ARRIVED
from quart_app.http.request_log import RequestLog

log = structlog.get_logger(__name__)
#: Writes the log lines of the requests that `Exchange` answers itself, because the application does not.
server_answer_log = RequestLog()

#: While the application has left this number of bytes of a body untaken, the connection parses no more, and soon reads
#: no more from its socket. So the client has to wait, and a body that the application reads slowly does not fill the
#: memory. With a larger number, each such body takes more memory; with a smaller one, the socket is paused more often.
MAX_UNTAKEN_BYTES = 64 * 1024
CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
#: The versions of ASGI that the scope of each request names, as Hypercorn's scopes do.
ASGI_VERSIONS = {"spec_version": "2.1", "version": "3.0"}
_STATUS_LINES = {int(status): b"HTTP/1.1 %d %b\r\n" % (status, status.phrase.encode()) for status in HTTPStatus}


class ExchangeConnection(Protocol):
    """What an exchange needs of its connection."""

    #: these four are for the ASGI scope of the request; `Connection` says what they hold
    client: Any
    server: Any
    scheme: str
    state: dict[str, Any]

    def answer_is_last(self) -> bool:
        """Return whether the connection must be closed after the answer to the present request."""

    def write(self, data: bytes) -> None: ...

    async def wait_for_room(self) -> None:
        """Wait until the client has read enough of what was written."""

    def parse_more_body(self) -> None:
        """Go on parsing the body, because the application has taken what came before."""

    def exchange_ended(self, exchange: Exchange, *, keep_connection: bool) -> None:
        """Go on to the next request if `keep_connection` is true, or else close the connection."""


class Exchange:
    """A request whose head has arrived, and its answer.

    A request has one task, which runs the application. The bytes of the body stay here until the application asks for
    them. When the client has gone, the connection cancels the task.
    """

    def __init__(self, connection: ExchangeConnection, head: Head) -> None:
        #: the head of the request; `Connection._refuse` makes one up if what has come is no valid head
        self.head = head
        #: whether the whole body of the request has arrived
        self.body_has_arrived = False
        #: how many bytes of the body have arrived and were not taken by the application
        self.untaken_byte_count = 0
        #: the problem that the client gets instead of the application's answer
        self.refusal: Problem | None = None
        self._connection = connection
        self._untaken_parts: list[bytes] = []
        #: whether `receive` has told the application that the body has ended
        self._end_was_received = False
        #: done when `receive` has to look again: for more of the body, its end, or the end of the exchange
        self._receive_wakeup: asyncio.Future[None] | None = None
        self._client_has_gone = False
        self._task: asyncio.Task[None] | None = None
        #: whether the task has made its first step
        self._has_started = False
        #: the head of the answer until it is written (see `send`); None: no answer has begun, or the head is written
        self._unsent_answer_head: bytes | None = None
        #: whether the head of the answer is written
        self._answer_head_is_written = False
        #: whether the answer is complete or cut off
        self._is_over = False
        #: whether the answer must not have a body
        self._answer_is_bodiless = False
        #: whether the connection takes a further request after the answer
        self._keeps_connection = False
        #: whether the body of the answer is sent in chunks
        self._sends_chunks = False
        #: how many of the announced bytes the application has still to send; None: it has announced no length
        self._answer_bytes_left: int | None = None

    def start(self, app: Any, context: contextvars.Context) -> None:
        """Run the application in a new task with these context variables.

        The connection gives the variables, because it may call this in the task of the previous request.
        """
        self._task = asyncio.get_running_loop().create_task(self._run(app), context=context)

    def body_part_came(self, data: bytes) -> None:
        """Keep a part of the body until the application asks for it. The connection calls this and `body_ended`."""
        self._untaken_parts.append(data)
        self.untaken_byte_count += len(data)
        self._wake_receive()

    def _get_body_has_arrived(self) -> bool:
        """Return whether the whole body has arrived. The application calls this (the extension BODY_HAS_ARRIVED)."""
        return self.body_has_arrived

    def body_ended(self) -> None:
        self.body_has_arrived = True
        self._wake_receive()

    def refuse(self, problem: Problem) -> None:
        """Answer with this problem instead of the application. If its answer has begun, cut that answer off."""
        self.refusal = problem
        if self._task is None:  # the bytes had no valid head, so no application was started; `head` is made up
            self._answer_with(problem)
        else:
            self.cancel()

    def cancel(self) -> None:
        """Cancel the application. The client gets 503, or the problem of `refuse`."""
        if self._task is not None:
            self._task.cancel()
            if not self._has_started:  # a task that is cancelled before its first step never runs `_run`
                self._answer_with(self.refusal or _stopping_problem())

    async def wait_until_ended(self) -> None:
        """Wait until the task of the request has ended."""
        if self._task is not None:
            await asyncio.wait([self._task])

    def client_went(self) -> None:
        """Cancel the application, because nobody reads the answer."""
        self._client_has_gone = True
        self._wake_receive()
        self.cancel()

    async def receive(self) -> dict[str, Any]:
        """Wait for more of the body and return it, or `http.disconnect` if the client has gone (ASGI `receive`)."""
        while not (self._client_has_gone or self._is_over):
            if self._untaken_parts or (self.body_has_arrived and not self._end_was_received):
                body = self._untaken_parts[0] if len(self._untaken_parts) == 1 else b"".join(self._untaken_parts)
                self._untaken_parts.clear()
                self.untaken_byte_count = 0
                more_follows = not self.body_has_arrived
                self._end_was_received = not more_follows
                if more_follows:
                    self._connection.parse_more_body()
                return {"type": "http.request", "body": body, "more_body": more_follows}
            if self.head.expects_continue and not (self._answer_head_is_written or self.body_has_arrived):
                self.head.expects_continue = False  # it is answered once
                self._connection.write(CONTINUE)
            self._receive_wakeup = asyncio.get_running_loop().create_future()
            await self._receive_wakeup
        return {"type": "http.disconnect"}

    async def send(self, message: Any) -> None:
        """Send one part of the answer (ASGI `send`). The head is written together with the first part of the body.

        So the client wakes up once. If the process dies before the first part of the body, a balancer has got no part
        of the answer, and may ask another replica. But if no length is announced, the head is sent at once.
        """
        if self._client_has_gone or self._is_over:
            return
        message_type = message["type"]
        if message_type == "http.response.start":
            self._begin_answer(message["status"], message.get("headers", ()))
            if self._answer_bytes_left is None and not self._answer_is_bodiless:
                self._write(b"")  # an answer without a length is a stream: its first part may come much later
        elif message_type == "http.response.body":
            self._send_body(message.get("body", b""), more_follows=message.get("more_body", False))
            await self._connection.wait_for_room()

    def _begin_answer(self, status: int, headers: Iterable[tuple[bytes, bytes]]) -> None:
        if self._answer_head_is_written or self._unsent_answer_head is not None:
            raise RuntimeError("the answer has begun already")
        head_lines = [_STATUS_LINES.get(status) or b"HTTP/1.1 %d \r\n" % status]
        # If the answer comes before the end of the request's body, the rest of the body is not worth reading.
        keep_connection = self.head.keep_alive and self.body_has_arrived and not self._connection.answer_is_last()
        announced_length = None
        for name, value in headers:
            if name == b"connection":  # the application may close the connection, but not keep it
                keep_connection = keep_connection and b"close" not in value.lower()
                continue
            if name == b"content-length":
                announced_length = int(value)
            elif name == b"transfer-encoding":
                continue  # this class frames the body itself
            head_lines.append(b"%b: %b\r\n" % (name, value))
        self._answer_is_bodiless = suppress_body(self.head.method, status)
        self._answer_bytes_left = 0 if self._answer_is_bodiless else announced_length
        # A body of unknown length is sent in chunks. The head of an answer to HEAD announces chunks, too, because it is
        # the head of the answer to GET. An answer 204 or 304 never has a body.
        if announced_length is None and not (self._answer_is_bodiless and status in {204, 304}):
            self._sends_chunks = self.head.version == "1.1"
            if self._sends_chunks:
                head_lines.append(b"transfer-encoding: chunked\r\n")
            else:
                keep_connection = False
        head_lines.append(date_line())
        if not keep_connection:
            head_lines.append(b"connection: close\r\n")
        answer_head = b"".join(head_lines)
        line_break_counts = answer_head.count(b"\n"), answer_head.count(b"\r")
        # A further line break, inside a header, would begin another header, or another answer.
        if line_break_counts != (len(head_lines), len(head_lines)) or b"\0" in answer_head:
            raise ValueError("a header of the answer contains a line break or a zero byte")
        self._keeps_connection = keep_connection
        self._unsent_answer_head = answer_head + b"\r\n"

    def _send_body(self, data: bytes, *, more_follows: bool) -> None:
        """Send a part of the answer's body; the last part has no `more_follows`, and ends the exchange.

        Raises RuntimeError if the body is not as long as the head says.
        """
        if self._unsent_answer_head is None and not self._answer_head_is_written:
            raise RuntimeError("the answer has no head yet")
        if self._answer_is_bodiless:
            data = b""
        elif self._answer_bytes_left is not None:
            self._answer_bytes_left -= len(data)
            if self._answer_bytes_left < 0 or (self._answer_bytes_left and not more_follows):
                raise RuntimeError("the answer is not as long as it says")
        elif self._sends_chunks:
            data = (b"%x\r\n%b\r\n" % (len(data), data) if data else b"") + (b"" if more_follows else b"0\r\n\r\n")
        self._write(data)
        if not more_follows:
            self._finish(keep_connection=self._keeps_connection)

    def _write(self, data: bytes) -> None:
        if self._unsent_answer_head is not None:
            data, self._unsent_answer_head = self._unsent_answer_head + data, None
            self._answer_head_is_written = True
        if data:
            self._connection.write(data)

    def _finish(self, *, keep_connection: bool) -> None:
        """End the exchange, and hand the connection back; `keep_connection` says whether it takes a further request."""
        self._is_over = True
        self._wake_receive()
        self._connection.exchange_ended(self, keep_connection=keep_connection)

    def _wake_receive(self) -> None:
        if self._receive_wakeup is not None and not self._receive_wakeup.done():
            self._receive_wakeup.set_result(None)

    async def _run(self, app: Any) -> None:
        """Let the application answer this request. If it ends without an answer, the client gets a problem."""
        self._has_started = True
        try:
            # Hypercorn's wrapper of the application takes two functions more, which an ASGI application does not use.
            await app(self._scope(), self.receive, self.send, None, None)
            if not self._is_over:
                self._answer_with(Problem(500, "the application has not answered"))
        except asyncio.CancelledError:  # not raised again: this answer is the end of the task
            self._answer_with(self.refusal or _stopping_problem())
        except HTTPException as error:  # from `_scope`; the application itself answers those of its routes
            self._answer_with(Problem(error.code or 400, error.description or ""))
        except Exception:
            log.exception("the application failed")
            self._answer_with(Problem(500, "internal error; the server log has the details"))

    def _answer_with(self, problem: Problem) -> None:
        """Answer with this problem, and close the connection. If an answer has begun, cut it off."""
        if self._is_over:
            return
        if not self._client_has_gone and not self._answer_head_is_written:
            # "none" in place of a route, as in the lines of `Application.handle_request`.
            server_answer_log.write(self.head.method, "none", problem.status, problem.detail)
            self._unsent_answer_head = None
            self.head.keep_alive = False
            document = problem.document()
            self._begin_answer(problem.status, closing_headers(problem))
            self._write(b"" if self._answer_is_bodiless else document)
        self._finish(keep_connection=False)

    def _scope(self) -> dict[str, Any]:
        """Return the ASGI scope. Raises HTTPException if Quart could not find a path in the target."""
        head, connection = self.head, self._connection
        raw_path, _, query_string = head.target.partition(b"?")
        path = raw_path.decode("ascii")  # llhttp refuses a target with other characters
        if b"%" in raw_path:
            path = unquote(path)
        if not _quart_can_split(path):
            raise _PathMissing
        return {
            "type": "http",
            "asgi": ASGI_VERSIONS,
            "http_version": head.version,
            "method": head.method,
            "scheme": connection.scheme,
            "path": path,
            "raw_path": raw_path,
            "query_string": query_string,
            "root_path": "",
            "headers": head.headers,
            "client": connection.client,
            "server": connection.server,
            "state": connection.state.copy(),  # ASGI wants a copy for each request
            "extensions": {BODY_HAS_ARRIVED: self._get_body_has_arrived},
        }


def _stopping_problem() -> Problem:
    return Problem(503, "this replica stops before it can answer; retry after 1 s", retry_after=1)


class _PathMissing(HTTPException):
    code = 400
    description = "the request names no path"


def _quart_can_split(path: str) -> bool:
    """Return whether Quart can find a path in the target of a request, which may be a path or a whole URL.

    Quart splits a target that does not begin with "/" like a URL, and uses only the path of that.
    """
    if path.startswith("/"):
        return True
    try:
        urlsplit(path)
    except ValueError:  # it has brackets that enclose no IP address
        return False
    return path != ""


#: The second (Unix time) for which `date_line` last formatted a Date header, and the line of this header.
_cached_date_line: tuple[int, bytes] = (0, b"")


def date_line() -> bytes:
    """Return the Date header for answers. It is formatted once a second."""
    global _cached_date_line
    now = int(time.time())
    if _cached_date_line[0] != now:
        _cached_date_line = now, b"date: %b\r\n" % http_date(now).encode()
    return _cached_date_line[1]


def closing_headers(problem: Problem) -> list[tuple[bytes, bytes]]:
    """Return the headers of a problem that the server answers itself and after which it closes the connection."""
    headers = problem.response().headers
    headers.update({**PROTECTIVE_HEADERS, "Connection": "close"})
    return encode_headers(headers)
