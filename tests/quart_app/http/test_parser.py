"""The parser against h11: the same requests in the same bytes, but for the differences that are listed here.

Two servers that find different requests in the same bytes are what request smuggling needs. So no difference may let us
go on reading where h11 stops, but for the empty lines that RFC 9112 (2.2) asks a server to skip.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import h11
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from quart_app.http.parser import MAX_HEAD_BYTES, Head, Parser, Unreadable

#: method, target, headers, body
Request = tuple[str, bytes, list[tuple[bytes, bytes]], bytes]


@dataclass
class Read:
    """What a parser made of some bytes: the complete requests, and how it ended."""

    requests: list[Request] = field(default_factory=list)
    #: None: it waits for more; "close": the last request closes the connection
    end: int | str | None = None
    #: what was left when the last request was refused or waited for
    rest: bytes = b""


class Collector:
    """Collects what our parser finds."""

    def __init__(self) -> None:
        self.requests: list[Request] = []
        self.head: Head
        self.body = b""
        self.closes = False

    def head_came(self, head: Head) -> None:
        self.head, self.body = head, b""

    def body_part_came(self, data: bytes) -> None:
        self.body += data

    def whole_request_came(self) -> None:
        assert not self.closes, "a request after the last one"
        self.requests.append((self.head.method, self.head.target, normal(self.head.headers), self.body))
        self.closes = not self.head.keep_alive


def normal(headers: list[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
    return sorted((name, value.lower() if name == b"transfer-encoding" else value) for name, value in headers)


def by_us(data: bytes, piece: int = 1 << 20) -> Read:
    """Read with our parser, to which the bytes come in pieces of this size."""
    found = Collector()
    parser = Parser(found)
    end: int | str | None = None
    try:
        for begin in range(0, len(data), piece):
            part, done = data[begin : begin + piece], 0
            while done < len(part) and not found.closes:
                done = parser.feed(part, done)
    except Unreadable as error:
        end = error.status
    return Read(found.requests, "close" if found.closes else end)


def by_h11(data: bytes) -> Read:
    """Read with h11, and with the rule for two lengths that RFC 9112 (6.3) adds for servers."""
    connection = h11.Connection(h11.SERVER, max_incomplete_event_size=MAX_HEAD_BYTES)
    connection.receive_data(data)
    read, head, body = Read(), None, b""
    while True:
        read.rest = connection.trailing_data[0] if connection.their_state is h11.IDLE else read.rest
        try:
            event = connection.next_event()
        except h11.RemoteProtocolError as error:
            read.end = error.error_status_hint
            return read
        if isinstance(event, h11.Request):
            head, body = event, b""
            names = {name for name, _ in event.headers}
            if b"transfer-encoding" in names and (b"content-length" in names or event.http_version < b"1.1"):
                read.end = 400
                return read
        elif isinstance(event, h11.Data):
            body += bytes(event.data)
        elif isinstance(event, h11.EndOfMessage) and head is not None:
            read.requests.append((head.method.decode(), head.target, normal(list(head.headers)), body))
            connection.send(h11.Response(status_code=404, headers=[("content-length", "0")]))
            connection.send(h11.EndOfMessage())
            if connection.our_state is not h11.DONE or connection.their_state is not h11.DONE:
                read.end = "close"
                return read
            connection.start_next_cycle()
        else:
            return read


def post(*headers: bytes, line: bytes = b"POST / HTTP/1.1", host: bytes = b"Host: x\r\n", body: bytes = b"") -> bytes:
    return line + b"\r\n" + host + b"".join(header + b"\r\n" for header in headers) + b"\r\n" + body


CHUNKED = b"Transfer-Encoding: chunked"
NEXT = b"GET /next HTTP/1.1\r\nHost: x\r\n\r\n"

#: what differs: (bytes, requests and end of ours, of h11's, why we leave it so)
DIFFERENCES: dict[str, tuple[bytes, tuple[int, object], tuple[int, object], str]] = {
    "empty line first": (b"\r\n" + post(), (1, None), (0, 400), "RFC 9112, 2.2: a server should ignore it"),
    "line feed alone": (post().replace(b"\r", b""), (0, 400), (1, None), "RFC 9112, 2.2: may be recognised"),
    "line feed after a chunk": (post(CHUNKED, body=b"0\r\n\n"), (0, 400), (1, None), "as above"),
    "folded header": (post(b"X: a\r\n b"), (0, 400), (1, None), "RFC 9112, 5.2: 400 is the first choice"),
    "HTTP/1.2": (post(line=b"POST / HTTP/1.2"), (0, 400), (1, None), "there is no such version"),
    "HTTP/0.9": (post(line=b"POST / HTTP/0.9"), (0, 400), (1, "close"), "nobody speaks it"),
    "preface of HTTP/2": (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", (0, 400), (1, 400), "HTTP/2 is not spoken here"),
    "unknown method": (post(line=b"FOO / HTTP/1.1"), (0, 501), (1, None), "RFC 9110, 9.1: 501; no route had it"),
    "small letters": (post(line=b"get / HTTP/1.1"), (0, 501), (1, None), "as above: methods know case"),
    "CONNECT": (post(line=b"CONNECT x:1 HTTP/1.1"), (0, 501), (1, None), "this is no proxy"),
    "equal lengths": (post(b"Content-Length: 0", b"Content-Length: 0"), (0, 400), (1, None), "RFC 9112, 6.3: may"),
    "list of lengths": (post(b"Content-Length: 0, 0"), (0, 400), (1, None), "as above"),
    "length of 19 digits": (post(b"Content-Length: " + b"0" * 19), (0, 400), (1, None), "nobody sends so much"),
    "space after coding": (post(CHUNKED + b" ", body=b"0\r\n\r\n"), (0, 501), (1, None), "llhttp does not know it"),
    "space after chunk size": (post(CHUNKED, body=b"0 \r\n\r\n"), (0, 400), (1, None), "RFC 9112, 7.1 has none"),
    "empty chunk extension": (post(CHUNKED, body=b"0;\r\n\r\n"), (0, 400), (1, None), "RFC 9112, 7.1.1: needs a name"),
    "target that is no URL": (post(line=b"POST ? HTTP/1.1"), (0, 400), (1, None), "the application answered 400"),
    "close for a proxy": (post(b"Proxy-Connection: close"), (1, "close"), (1, None), "closing is always allowed"),
}


@pytest.mark.parametrize("name", DIFFERENCES)
def test_each_difference_is_as_it_is_described(name: str) -> None:
    """A difference that is gone or new shows here, for example after an update of llhttp."""
    data, ours, theirs, _ = DIFFERENCES[name]
    found, expected = by_us(data), by_h11(data)
    assert (len(found.requests), found.end) == ours
    assert (len(expected.requests), expected.end) == theirs


#: What both refuse alike, the status included.
REFUSED: dict[str, tuple[bytes, int]] = {
    "no host": (post(host=b""), 400),
    "two hosts": (post(b"Host: y"), 400),
    "length and chunks": (post(b"Content-Length: 3", CHUNKED, body=b"0\r\n\r\n"), 400),
    "chunks and length": (post(CHUNKED, b"Content-Length: 3", body=b"0\r\n\r\n"), 400),
    "chunks in HTTP/1.0": (post(CHUNKED, line=b"POST / HTTP/1.0", body=b"0\r\n\r\n"), 400),
    "another coding": (post(b"Transfer-Encoding: gzip"), 501),
    "two codings": (post(b"Transfer-Encoding: gzip, chunked"), 501),
    "chunks twice": (post(CHUNKED, b"Transfer-Encoding: Chunked "), 501),
    "different lengths": (post(b"Content-Length: 3", b"Content-Length: 4"), 400),
    "signed length": (post(b"Content-Length: +3"), 400),
    "length of letters": (post(b"Content-Length: 0x3"), 400),
    "space before colon": (post(b"X : a"), 400),
    "space before length": (post(b"Content-Length : 3"), 400),
    "nul in a value": (post(b"X: a\0"), 400),
    "return in a value": (post(b"X: a\rb"), 400),
    "no name": (post(b": a"), 400),
    "two spaces": (post(line=b"POST  / HTTP/1.1"), 400),
    "two spaces after": (post(line=b"POST /  HTTP/1.1"), 400),
    "another protocol": (post(line=b"POST / RTSP/1.1"), 400),
    "beyond ASCII": (post(line=b"POST /\xff HTTP/1.1"), 400),
    "signed chunk": (post(CHUNKED, body=b"-3\r\nabc\r\n0\r\n\r\n"), 400),
    "chunk of letters": (post(CHUNKED, body=b"0x3\r\nabc\r\n0\r\n\r\n"), 400),
    "chunk too long": (post(CHUNKED, body=b"3\r\nabcd\r\n0\r\n\r\n"), 400),
    "huge chunk": (post(CHUNKED, body=b"f" * 21 + b"\r\n"), 400),
    "coding without name": (post(b"Transfer-Encoding:"), 501),
}


@pytest.mark.parametrize("name", REFUSED)
def test_both_refuse_the_same(name: str) -> None:
    """Both parsers stop at what they refuse, and read nothing after it as a request."""
    data, status = REFUSED[name]
    for found in (by_us(data + NEXT), by_us(data + NEXT, 3), by_h11(data + NEXT)):
        assert (found.requests, found.end) == ([], status)


@pytest.mark.parametrize("begin", [post(b"X: ")[:-4], post(CHUNKED, body=b"0\r\nX: "), post(CHUNKED, body=b"1;a=")])
def test_heads_trailers_and_extensions_are_bounded(begin: bytes) -> None:
    """What is kept, or skipped, until a head or a chunk is complete has the bound of a head."""
    data = begin + b"a" * (MAX_HEAD_BYTES + 4096)
    assert by_us(data).end == by_us(data, 1000).end == by_h11(data).end == 431
    assert by_us(begin + b"a" * (MAX_HEAD_BYTES - 100)).end is None


@pytest.mark.parametrize("offer", [b"h2c", b"websocket"])
@pytest.mark.parametrize("framing", [(b"Content-Length: 31", NEXT), (CHUNKED, b"1f\r\n" + NEXT + b"\r\n0\r\n\r\n")])
def test_a_body_behind_an_offer_of_another_protocol_is_a_body(offer: bytes, framing: tuple[bytes, bytes]) -> None:
    """llhttp takes what follows such a head for the other protocol, and httptools for the next request."""
    assert len(NEXT) == 31
    data = post(b"Upgrade: " + offer, b"Connection: Upgrade", framing[0], body=framing[1])
    for piece in (1, 50, 1 << 20):
        assert by_us(data + post(), piece) == Read(by_h11(data + post()).requests)
    assert [request[3] for request in by_us(data + post()).requests] == [NEXT, b""]


def test_the_parser_stops_after_each_request() -> None:
    """The next request is parsed when it is its turn, and an announced body in one piece."""
    found = Collector()
    parser = Parser(found)
    requests = [
        post(),
        post(b"Content-Length: 9000", body=b" " * 9000),
        post(CHUNKED, body=b"1\r\n \r\n0\r\n\r\n"),
        NEXT,
    ]
    data, done, ends = b"".join(requests), 0, []
    while done < len(data):
        done = parser.feed(data, done)
        if len(found.requests) > len(ends):
            ends.append(done)
    assert ends == [len(b"".join(requests[: count + 1])) for count in range(4)]


PLAIN_HEADERS = [
    b"X: a",
    b"X:",
    b"X: a \t",
    b"X: \xff",
    b"Connection: keep-alive",
    b"Connection: x, Close",
    b"Expect: 100-continue",
    b"Upgrade: h2c",
    b"Connection: Upgrade",
]
ODD_HEADERS = [
    b"X : a",
    b" X: a",
    b"X\x01: a",
    b"X: a\0",
    b"X: a\x0bb",
    b"X: a\rb",
    b"X",
    b": a",
    b"X: a\r\n b",
    b"Host: y",
    b"Content-Length: 3",
    b"Content-Length: +3",
    b"Content-Length: 3, 3",
    b"Content-Length:",
    CHUNKED,
    b"Content-Length : 3",
    b"Transfer-Encoding: gzip, chunked",
    b"Transfer-Encoding:\x0bchunked",
    b"Transfer-Encoding: xchunked",
    b"Transfer-Encoding : chunked",
    b"Transfer-Encoding: chunked\t",
]
PLAIN_LINES = [
    b"POST / HTTP/1.1",
    b"GET /a?b=%20c HTTP/1.1",
    b"HEAD http://x/y HTTP/1.1",
    b"OPTIONS * HTTP/1.1",
    b"GET / HTTP/1.0",
]
ODD_LINES = [
    b"GET  / HTTP/1.1",
    b"GET /a b HTTP/1.1",
    b"GET /",
    b"GET / HTTP/1.1 ",
    b"GET / RTSP/1.1",
    b"CONNECT x:1 HTTP/1.1",
    b"PRI * HTTP/2.0",
    b"FOO / HTTP/1.1",
    b"GET /\xff HTTP/1.1",
    b"",
    b"SOURCE / ICE/1.0",
]
PLAIN_BODIES = [
    (b"", b""),
    (b"Content-Length: 3\r\n", b"abc"),
    (CHUNKED + b"\r\n", b"3\r\nabc\r\n0\r\n\r\n"),
    (CHUNKED + b"\r\n", b"02;a=b\r\nab\r\n1\r\nc\r\n0\r\nT: v\r\n\r\n"),
]
ODD_BODIES = [
    (CHUNKED + b"\r\n", odd)
    for odd in (
        b"3 \r\nabc\r\n0\r\n\r\n",
        b"3\nabc\n0\n\n",
        b"g\r\n",
        b"-3\r\nabc\r\n",
        b"3\r\nabcd\r\n0\r\n\r\n",
        b"3;a\rb\r\nabc\r\n0\r\n\r\n",
        b"0\r\nbad\r\n\r\n",
        b"0\r\nContent-Length: 3\r\n\r\n",
        b"0;\r\n\r\n",
    )
] + [(b"Content-Length: 3\r\n", b"ab"), (b"Content-Length: 3\r\n", b"abcd")]


def requests(lines: list[bytes], headers: list[bytes], bodies: list[tuple[bytes, bytes]]) -> st.SearchStrategy[bytes]:
    def build(line: bytes, chosen: list[bytes], body: tuple[bytes, bytes]) -> bytes:
        return post(*chosen, line=line, host=b"Host: x\r\n" + body[0], body=body[1])

    return st.builds(
        build, st.sampled_from(lines), st.lists(st.sampled_from(headers), max_size=3), st.sampled_from(bodies)
    )


plain = st.lists(requests(PLAIN_LINES, PLAIN_HEADERS, PLAIN_BODIES), min_size=1, max_size=3).map(b"".join)
odd = st.lists(
    requests(PLAIN_LINES * 3 + ODD_LINES, PLAIN_HEADERS + ODD_HEADERS, PLAIN_BODIES * 3 + ODD_BODIES),
    min_size=1,
    max_size=3,
).map(b"".join)


@st.composite
def damaged(draw: st.DrawFn) -> bytes:
    """Odd requests in which a few bytes were replaced, left out or put in."""
    data = draw(odd)
    for _ in range(draw(st.integers(0, 2))):
        at = draw(st.integers(0, len(data)))
        put = draw(
            st.sampled_from([b"", b"\r", b"\n", b" ", b"\t", b"\0", b":", b";", b",", b"\x7f", b"\xff", b"0", b"\r\n"])
        )
        data = data[:at] + put + data[at + draw(st.integers(0, 2)) :]
    return data


@settings(max_examples=400, deadline=None)
@given(plain, st.integers(1, 60))
def test_plain_requests_are_read_alike(data: bytes, piece: int) -> None:
    """Methods, targets, headers and bodies are those that h11 finds, and so is the end of the connection."""
    expected = by_h11(data)
    for found in (by_us(data), by_us(data, piece)):
        assert (found.requests, found.end) == (expected.requests, expected.end)


@settings(max_examples=1500, deadline=None)
@given(damaged(), st.integers(1, 60))
@example(b"GET / HTTP/1.1\r\nHost: x\r\n\r\nGET /  HTTP/1.1\r\nHost: x\r\n\r\n", 1)
@example(b"POST / HTTP/1.1\r\nHost: x\r\n\r\nPOST / RTSP/1.1\r\nHost: x\r\n\r\n", 7)
def test_no_bytes_are_a_request_for_us_alone(data: bytes, piece: int) -> None:
    """The requests that we find are the first of those that h11 finds, however the bytes arrive.

    We find more of them only behind an empty line, at which h11 stops.
    """
    found, expected = by_us(data), by_h11(data)
    common = min(len(found.requests), len(expected.requests))
    assert found.requests[:common] == expected.requests[:common]
    if len(found.requests) > common:
        assert expected.rest[:1] in {b"\r", b"\n"}
    in_pieces = by_us(data, piece)
    assert in_pieces.requests == found.requests
    assert type(in_pieces.end) is type(found.end)
