"""The client of a provider tells the outcomes apart by what is certain, over real sockets."""

from __future__ import annotations

import asyncio
import ssl
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from email.utils import formatdate
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import httpx
import pytest

from quart_app.messages.provider import (
    LONGEST_BLOCK_MS,
    MAX_ANSWER_BYTES,
    SHORTEST_BLOCK_MS,
    TOO_LATE,
    Answered,
    Blocked,
    Failed,
    ProviderClient,
    ProviderOutcome,
    Unknown,
    Unsent,
    read_retry_after_ms,
)
from quart_app.messages.settings import LONGEST_PAUSE_MS, MessageSettings
from tests.support import tls

if TYPE_CHECKING:
    from tests.support.messages import Providers

Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@asynccontextmanager
async def serving(handler: Handler) -> AsyncIterator[str]:
    """A server that does what the test says."""

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await handler(reader, writer)
        finally:
            writer.close()

    server = await asyncio.start_server(handle, "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/"
    finally:
        server.close()


@asynccontextmanager
async def client_of(url: str, **settings: Any) -> AsyncIterator[ProviderClient]:
    chosen = {"provider_timeout_ms": 300, "connect_timeout_ms": 200} | settings
    made = ProviderClient(url, MessageSettings(**chosen))
    try:
        yield made
    finally:
        await made.close()


def answering(head: str, body: bytes = b"") -> Handler:
    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"}")
        writer.write(f"HTTP/1.1 {head}\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body)
        await writer.drain()

    return handler


async def outcome_of(handler: Handler, **settings: Any) -> ProviderOutcome:
    async with serving(handler) as url, client_of(url, **settings) as sender:
        return await sender.send("m1", "hello")


async def test_the_reply_of_a_provider_is_returned(providers: Providers) -> None:
    """The simulator itself replies; a refusal says for how long."""
    async with client_of(providers.free_url) as sender:
        outcomes = [await sender.send(f"m{n}", f"hello {n}") for n in range(3)]
    assert outcomes[0] == Answered("handled by the free provider: hello 0")
    assert outcomes[2] == Blocked(1_000)


async def test_the_id_of_the_message_is_sent_as_idempotency_key() -> None:
    """A provider that knows the header can recognise a repeated message."""
    seen = b""

    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal seen
        seen = await reader.readuntil(b"}")

    await outcome_of(handler)
    assert b"idempotency-key: m1\r\n" in seen.lower()


@pytest.mark.parametrize(
    ("head", "body"),
    [
        ("500 Oops", b""),
        ("404 Gone", b"{}"),
        ("301 Moved\r\nLocation: http://127.0.0.1:1/", b""),
        ("200 OK", b"not json"),
        ("200 OK", b"[]"),
        ("200 OK", b'{"reply":"x"}'),
        ("200 OK", b'{"response":1}'),
        ("200 OK", b"[" * 100_000),
        ("200 OK", b"\xff"),
    ],
)
async def test_an_answer_without_a_reply_has_failed(head: str, body: bytes) -> None:
    """The provider saw the message, and nothing more is known."""
    assert isinstance(await outcome_of(answering(head, body)), Failed)


async def test_an_unreachable_provider_got_nothing() -> None:
    """A refused connection is certain, so it is tried a few times."""
    began = time.monotonic()
    async with client_of("http://127.0.0.1:1/", connect_tries=3) as sender:
        assert isinstance(await sender.send("m1", "hello"), Unsent)
    assert 0.1 < time.monotonic() - began < 2


async def test_the_pauses_between_tries_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """A message takes no longer than `work_ms` says, however many tries are allowed."""
    monkeypatch.setattr("quart_app.messages.provider.random.uniform", lambda low, high: high)
    began = time.monotonic()
    async with client_of("http://127.0.0.1:1/", connect_tries=6) as sender:
        assert isinstance(await sender.send("m1", "hello"), Unsent)
    assert 1.5 < time.monotonic() - began < 5 * LONGEST_PAUSE_MS / 1000


async def test_a_request_that_could_not_leave_is_repeated() -> None:
    """A provider that starts a moment later gets the message once."""
    seen: list[bytes] = []

    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        seen.append(await reader.readuntil(b"}"))
        writer.write(b'HTTP/1.1 200 OK\r\nContent-Length: 16\r\n\r\n{"response":"x"}')
        await writer.drain()

    async with serving(handler) as url:
        pass
    port = int(url.rsplit(":", 1)[1].strip("/"))
    async with client_of(url, connect_tries=10) as sender:
        sending = asyncio.create_task(sender.send("m1", "hello"))
        await asyncio.sleep(0.05)
        server = await asyncio.start_server(handler, "127.0.0.1", port)
        assert await sending == Answered("x")
        server.close()
    assert len(seen) == 1


@pytest.mark.parametrize("cut", ["at once", "in the answer", "never"])
async def test_a_request_without_an_answer_is_unknown_and_not_repeated(cut: str) -> None:
    """The request or the answer may be lost, or the provider may be slow."""
    seen = 0

    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal seen
        seen += 1
        await reader.readuntil(b"}")
        if cut == "in the answer":
            writer.write(b'HTTP/1.1 200 OK\r\nContent-Length: 16\r\n\r\n{"resp')
            await writer.drain()
        elif cut == "never":
            await asyncio.sleep(1)

    assert isinstance(await outcome_of(handler), Unknown)
    assert seen == 1


async def test_an_answer_that_is_too_long_is_not_read_to_its_end() -> None:
    """The bound is one megabyte."""
    handler = answering("200 OK", b'{"response":"' + b"x" * MAX_ANSWER_BYTES + b'"}')
    assert isinstance(await outcome_of(handler, provider_timeout_ms=5_000), Unknown)


async def test_a_slow_answer_ends_at_the_deadline() -> None:
    """The time-out is for the whole answer, not for each byte."""

    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"}")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n")
        for _ in range(100):
            writer.write(b"x")
            await writer.drain()
            await asyncio.sleep(0.05)

    began = time.monotonic()
    assert isinstance(await outcome_of(handler), Unknown)
    assert time.monotonic() - began < 1


async def test_an_ended_reservation_sends_nothing(providers: Providers) -> None:
    """The reservation is checked right before the first byte, after connecting."""
    async with client_of(providers.free_url) as sender:
        assert await sender.send("m1", "hello", may_send=lambda: False) == Unsent(TOO_LATE)
        answers = iter([True, False, False])
        assert await sender.send("m1", "hello", may_send=lambda: next(answers)) == Answered(
            "handled by the free provider: hello"
        )
    assert providers.messages == ["hello"]


@pytest.mark.parametrize(
    ("said", "meant"),
    [
        ("3", 3_000),
        ("0", SHORTEST_BLOCK_MS),
        ("99999999999999999999", LONGEST_BLOCK_MS),
        ("9" * 400, LONGEST_BLOCK_MS),
        (formatdate(1_700_000_030, usegmt=True), 30_000),
        (formatdate(1_600_000_000, usegmt=True), SHORTEST_BLOCK_MS),
        ("Sunday, 06-Nov-94 08:49:37 GMT", SHORTEST_BLOCK_MS),
        ("-3", None),
        ("3.5", None),
        ("soon", None),
        ("", None),
        ("²", None),
    ],
)
def test_retry_after_in_both_its_forms(said: str, meant: int | None) -> None:
    """A date counts from the Date of the answer, so the two clocks need not agree."""
    headers = httpx.Headers({"Date": formatdate(1_700_000_000, usegmt=True)})
    headers["Retry-After"] = said
    assert read_retry_after_ms(headers) == meant


def test_an_absent_retry_after_is_none() -> None:
    """The caller then assumes the usual block."""
    assert read_retry_after_ms(httpx.Headers()) is None


async def test_on_sent_is_called_before_the_answer() -> None:
    """A request that has left arrives even if this process dies."""
    said: list[str] = []

    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"}")
        said.append("seen")
        await asyncio.sleep(0.1)
        writer.write(b'HTTP/1.1 200 OK\r\nContent-Length: 16\r\n\r\n{"response":"x"}')
        await writer.drain()
        said.append("answered")

    async with serving(handler) as url, client_of(url) as sender:
        await sender.send("m1", "hello", pass_turn_on=lambda: said.append("left"))
    assert said.index("left") < said.index("answered")


async def test_on_sent_is_called_when_the_first_try_fails() -> None:
    """Other messages do not wait for the next tries."""
    said = list[float]()
    async with client_of("http://127.0.0.1:1/", connect_tries=3) as sender:
        # Making a client reads certificates, which takes longer than the try.
        began = time.monotonic()
        await sender.send("m1", "hello", pass_turn_on=lambda: said.append(time.monotonic() - began))
    assert said[0] < 0.1 < time.monotonic() - began


@tls.needed
async def test_a_provider_whose_certificate_nobody_vouches_for_gets_no_message(tmp_path: Path) -> None:
    """The certificate is checked over TLS."""
    seen: list[bytes] = []

    async def provider(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        seen.append(await reader.read(1))

    async with serving(provider) as url, tls.before(urlsplit(url).port or 0, await tls.certificate(tmp_path)) as port:
        async with client_of(f"https://127.0.0.1:{port}/") as client:
            assert isinstance(await client.send("id", "hello"), Unsent)
    assert b"".join(seen) == b""


@pytest.mark.parametrize(("scheme", "loads"), [("http", 0), ("https", 1)])
def test_certificates_are_loaded_only_where_they_are_needed(
    scheme: str, loads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Loading them takes 17 ms of the start of each replica, for each provider."""
    loaded: list[Any] = []
    monkeypatch.setattr(ssl.SSLContext, "load_verify_locations", lambda self, *a, **k: loaded.append(self))
    monkeypatch.setattr(ssl.SSLContext, "load_default_certs", lambda self, *a, **k: loaded.append(self))
    ProviderClient(f"{scheme}://127.0.0.1:1/", MessageSettings())
    assert len(loaded) == loads
