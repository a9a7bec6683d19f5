"""The parser of HTTP/1.1 requests.

llhttp reads the bytes. It accepts some requests that RFC 9112 forbids, and this module refuses those.
`tests/quart_app/http/test_parser.py` compares what this parser finds with what h11, a slower parser, finds in the same
bytes. It lists the differences.
"""

from __future__ import annotations

import re
from typing import Protocol

import httptools

#: The most bytes of a head, or of a body in chunks, that llhttp gets at once. Larger pieces cost fewer calls. But the
#: bounds are checked after each piece, so up to this many bytes beyond a bound are parsed, too.
MOST_PIECE_BYTES = 4096
#: The end of every head, and of every body of chunks. llhttp refuses line feeds without carriage returns.
BLANK_LINE = b"\r\n\r\n"
#: The most bytes of a request's head, or of what stands between two parts of a body in chunks (chunk sizes, trailers).
#: A larger bound suits longer cookies, and lets each connection hold more memory.
MAX_HEAD_BYTES = 32 * 1024
#: The most digits of a Content-Length, so that it fits into 64 bits.
MAX_LENGTH_DIGITS = 18
#: The methods that llhttp knows, except CONNECT and the methods of other protocols.
METHODS = {
    name: name.decode()
    for name in (
        b"GET", b"HEAD", b"POST", b"PUT", b"DELETE", b"OPTIONS", b"TRACE", b"PATCH", b"QUERY", b"PROPFIND",
        b"PROPPATCH", b"MKCOL", b"MKCALENDAR", b"COPY", b"MOVE", b"LOCK", b"UNLOCK", b"SEARCH", b"BIND", b"REBIND",
        b"UNBIND", b"ACL", b"REPORT", b"MKACTIVITY", b"CHECKOUT", b"MERGE", b"M-SEARCH", b"PURGE", b"LINK", b"UNLINK",
        b"NOTIFY", b"SUBSCRIBE", b"UNSUBSCRIBE",
    )
}  # fmt: skip
FORBIDDEN_ENCODING_DETAIL = "Transfer-Encoding is not allowed together with Content-Length or in HTTP/1.0"
#: Status of a refusal -> its text, if `Unreadable` is raised without one.
DETAIL_OF_STATUS = {
    400: "the request is not valid HTTP/1.1",
    431: "the head of the request is longer than 32 KB",
    501: "Transfer-Encoding can only be chunked",
}
UNKNOWN_METHOD_DETAIL = "this server does not know the method of the request"
#: A request line of valid form. If llhttp calls its method invalid, the method is only unknown to it: 501 and not 400.
_REQUEST_LINE = re.compile(rb"[\r\n]*[!#$%&'*+\-.^_`|~0-9A-Za-z]+ [\x21-\x7e]+ HTTP/1\.[01]\r\n")
#: The names of the two headers that say how long a body is.
_FRAMING_HEADER = re.compile(rb"[\r\n](?:transfer-encoding|content-length)[ \t]*:", re.IGNORECASE)
#: The headers that `Parser._checked_head` checks.
_CHECKED_HEADERS = frozenset({b"host", b"content-length", b"transfer-encoding", b"expect"})


class Unreadable(Exception):
    """The bytes are no request, or a request that we refuse: with this status, after which the connection closes."""

    def __init__(self, status: int, detail: str = "") -> None:
        super().__init__(status, detail)
        self.status = status
        self.detail = detail or DETAIL_OF_STATUS[status]


class Head:
    """The head of a request."""

    __slots__ = ("body_length", "expects_continue", "headers", "keep_alive", "method", "target", "version")

    def __init__(self, method: str, target: bytes, version: str, headers: list[tuple[bytes, bytes]]) -> None:
        self.method = method
        self.target = target
        self.version = version
        #: names in lower case
        self.headers = headers
        #: whether the client may send another request on this connection
        self.keep_alive = False
        #: whether the client waits for `100 Continue` before it sends the body
        self.expects_continue = False
        #: the announced length of the body in bytes; 0: there is no body; -1: it comes in chunks
        self.body_length = 0


class RequestReceiver(Protocol):
    """Receives what a parser finds: the connection."""

    def head_came(self, head: Head) -> None: ...

    def body_part_came(self, data: bytes) -> None: ...

    def whole_request_came(self) -> None: ...


class Parser:
    """The parser of one connection. After Unreadable it must not be fed again.

    llhttp cannot stop at the end of a request. So it gets the bytes in pieces, and a piece never goes beyond a place
    where the request may end. The connection feeds the bytes after the request once that request is answered.
    """

    def __init__(self, receiver: RequestReceiver) -> None:
        self._receiver = receiver
        self._llhttp = httptools.HttpRequestParser(self)
        self._target = b""
        self._headers: list[tuple[bytes, bytes]] = []
        self._is_in_head = False
        #: The bytes of the head so far, from its first piece on. Outside of a head: the last piece, in which a head may
        #: begin.
        self._head_so_far = b""
        #: the last bytes so far, at most three, because `BLANK_LINE` may be split between two pieces; b"" directly
        #: after a blank line, and in a body of known length
        self._last_bytes = b""
        #: Bytes since the last progress: the begin or end of the head, or a part of the body. More than MAX_HEAD_BYTES
        #: are refused.
        self._bytes_since_progress = 0
        #: bytes of the body that are still to come, if its length was announced
        self._body_bytes_left = 0
        self._head_refusal: Unreadable | None = None
        #: a request whose head offers an upgrade and whose body is still to come
        self._upgrading_head: Head | None = None
        #: whether llhttp reads the head that `_stay_in_http1` has made up
        self._reads_made_up_head = False

    @property
    def failed_method(self) -> bytes:
        """The method of the request in which reading failed. The connection asks, because HEAD gets no body."""
        return self._head_so_far.lstrip(b"\r\n").partition(b" ")[0]

    def feed(self, data: bytes, begin: int = 0) -> int:
        """Parse one piece of `data`, which begins at `begin`, and return where the piece ends. Raises Unreadable."""
        end = min(self._find_piece_end(data, begin), len(data))
        piece = data[begin:end]
        self._head_so_far = self._head_so_far + piece if self._is_in_head else piece
        self._last_bytes = (
            b"" if self._body_bytes_left or piece.endswith(BLANK_LINE) else (self._last_bytes + piece[-3:])[-3:]
        )
        self._bytes_since_progress += len(piece)
        try:
            self._llhttp.feed_data(piece)
        except httptools.HttpParserUpgrade:
            self._stay_in_http1()
        except httptools.HttpParserError as error:
            raise (self._head_refusal or self._refusal_for(error)) from error
        if self._bytes_since_progress > MAX_HEAD_BYTES:
            raise Unreadable(431)
        return end

    def _find_piece_end(self, data: bytes, begin: int) -> int:
        """Return where the piece from `begin` ends: at the end of the body, or where a head or chunks may end.

        The end may be beyond the data.
        """
        if self._body_bytes_left:
            return begin + self._body_bytes_left
        if self._last_bytes:
            offset = (self._last_bytes + data[begin : begin + 3]).find(BLANK_LINE)
            if offset >= 0:
                return begin + offset + len(BLANK_LINE) - len(self._last_bytes)
        blank_line_at = data.find(BLANK_LINE, begin, begin + MOST_PIECE_BYTES)
        return begin + MOST_PIECE_BYTES if blank_line_at < 0 else blank_line_at + len(BLANK_LINE)

    # llhttp calls these methods.

    def on_message_begin(self) -> None:
        if not self._reads_made_up_head:
            self._is_in_head = True
            self._bytes_since_progress = 0
            self._target = b""
            self._headers = []

    def on_url(self, part: bytes) -> None:
        self._target += part

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._is_in_head:  # headers after the body are trailers, which nobody reads
            name = name.lower()
            # llhttp does not recognise `chunked` if a space follows. So the space stays in the value, and
            # `_checked_head` refuses the value.
            self._headers.append((name, value if name == b"transfer-encoding" else value.rstrip(b" \t")))

    def on_headers_complete(self) -> None:
        if self._reads_made_up_head:
            self._reads_made_up_head = False
            return
        try:
            head = self._checked_head()
        except Unreadable as refusal:
            self._head_refusal = refusal  # `feed` raises this one, not the error that llhttp makes of it
            raise
        self._is_in_head = False
        self._bytes_since_progress = 0
        self._body_bytes_left = max(0, head.body_length)
        if self._llhttp.should_upgrade() and head.body_length:  # llhttp would not parse this body; see `_stay_in_http1`
            self._upgrading_head = head
        self._receiver.head_came(head)

    def on_body(self, data: bytes) -> None:
        self._bytes_since_progress = 0
        if self._body_bytes_left:
            self._body_bytes_left -= len(data)
        self._receiver.body_part_came(data)

    def on_message_complete(self) -> None:
        # If a head offers an upgrade, llhttp reports the end at once, but the body is still to come.
        if self._upgrading_head is None:
            self._receiver.whole_request_came()

    def _checked_head(self) -> Head:
        """Return the head that llhttp has just completed, if it passes our checks. Raises Unreadable.

        llhttp itself refuses a Content-Length that is not all digits, a second one, and one beside Transfer-Encoding:
        see `_refusal_for`.
        """
        method = METHODS.get(self._llhttp.get_method())
        version = self._llhttp.get_http_version()
        if method is None:
            raise Unreadable(501, UNKNOWN_METHOD_DETAIL)
        expected_start = b"%b %b HTTP/" % (method.encode(), self._target)
        if version not in {"1.1", "1.0"} or not self._head_so_far.lstrip(b"\r\n").startswith(expected_start):
            raise Unreadable(400)  # llhttp also accepts other protocols, and several spaces in a row
        head = Head(method, self._target, version, self._headers)
        host_header_count = 0
        for name, value in self._headers:
            if name not in _CHECKED_HEADERS:
                continue
            if name == b"host":
                host_header_count += 1
            elif name == b"content-length":
                if len(value) > MAX_LENGTH_DIGITS:
                    raise Unreadable(400)
                head.body_length = int(value)
            elif name == b"expect":
                head.expects_continue = version == "1.1" and value.lower() == b"100-continue"
            elif version == "1.0":  # from here on, the header is Transfer-Encoding
                raise Unreadable(400, FORBIDDEN_ENCODING_DETAIL)
            # llhttp refuses a body with two lengths itself. The first check is for a version that would not.
            elif head.body_length or value.lower() != b"chunked":
                raise Unreadable(501)
            else:
                head.body_length = -1
        if host_header_count > 1 or (version == "1.1" and not host_header_count):
            raise Unreadable(400)
        # A connection of HTTP/1.0 is closed after its first answer, as the RFC allows and h11 does.
        head.keep_alive = version == "1.1" and self._llhttp.should_keep_alive()
        return head

    def _stay_in_http1(self) -> None:
        """Go on with HTTP/1.1 after a head that offers another protocol (Upgrade).

        llhttp takes everything after such a head for the other protocol, even the body of the request. So a new parser
        gets a made-up head without the offer, and then the body. Without a body the old parser goes on: httptools
        has set it back, so it reads the next request.
        """
        head, self._upgrading_head = self._upgrading_head, None
        if head is not None:
            self._reads_made_up_head = True
            self._llhttp = httptools.HttpRequestParser(self)
            framing = (
                b"Transfer-Encoding: chunked" if head.body_length < 0 else b"Content-Length: %d" % head.body_length
            )
            self._llhttp.feed_data(b"POST / HTTP/1.1\r\n%b\r\n\r\n" % framing)

    def _refusal_for(self, error: httptools.HttpParserError) -> Unreadable:
        """Return the refusal that fits an error of llhttp."""
        if (
            self._is_in_head
            and len({name.strip(b"\r\n\t :").lower() for name in _FRAMING_HEADER.findall(self._head_so_far)}) > 1
        ):
            return Unreadable(400, FORBIDDEN_ENCODING_DETAIL)
        if isinstance(error, httptools.HttpParserInvalidMethodError) and _REQUEST_LINE.match(self._head_so_far):
            return Unreadable(501, UNKNOWN_METHOD_DETAIL)
        return Unreadable(501 if "Transfer-Encoding" in str(error) else 400)
