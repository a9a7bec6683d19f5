"""The HTTP client of one provider. The outcome of a request says what is certain about the message.

    Answered    the provider handled the message
    Blocked     the provider is closed and refused the request (429): it does not have the message
    Failed      the provider answered, but without a reply to the message
    Unsent      no byte of the request left: the message may be sent again, to this or another provider
    Unknown     a part of the request left and no answer came: the provider may or may not have the message

Only an unsent request is repeated. The names of these classes, in lower case, are a label of the metrics.
"""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import Any
from urllib.parse import urlsplit

import httpx2

from quart_app.messages.settings import LONGEST_PAUSE_MS, MessageSettings

#: The longest HTTP answer of a provider that is accepted. A longer one counts as no answer (`Unknown`), so that a
#: broken provider cannot fill the memory.
MAX_ANSWER_BYTES = 1 << 20
#: Bounds of the wait that a Retry-After can ask for: any other wait becomes the nearer bound. So "0" does not make
#: replicas ask without a pause, and a faulty header closes the provider for a day at most.
SHORTEST_BLOCK_MS, LONGEST_BLOCK_MS = 1_000, 86_400_000
#: How long an idle connection is kept. A server keeps an idle connection for longer, so it seldom closes one on which a
#: request is being sent. With a longer time, more requests would meet a closed connection; with a shorter one, more
#: messages would need a new connection.
KEEP_IDLE_S = 1.0


@dataclass(frozen=True, slots=True)
class Answered:
    """The provider handled the message; `response` is its reply."""

    response: str


@dataclass(frozen=True, slots=True)
class Blocked:
    """The provider refused the request. `retry_after_ms`: for how long it is closed; None if it did not say."""

    retry_after_ms: int | None


@dataclass(frozen=True, slots=True)
class Failed:
    """The provider answered, but without a reply to the message."""

    cause: str


@dataclass(frozen=True, slots=True)
class Unsent:
    """No byte of the request left."""

    cause: str


@dataclass(frozen=True, slots=True)
class Unknown:
    """Whether the message arrived is unknown: a part of the request left, and no answer came."""

    cause: str


#: What `ProviderClient.send` returns.
ProviderOutcome = Answered | Blocked | Failed | Unsent | Unknown


class _TooLate(Exception):
    """The reservation ended before the first byte left."""


#: The `cause` of an `Unsent` that was stopped by `_TooLate`.
TOO_LATE = "the right to send had ended"


@dataclass(slots=True)
class _SendingWatch:
    """Watches the sending of one request: stops it if it is too late, and notes whether it has begun.

    `may_send` and `pass_turn_on` are the parameters of `ProviderClient.send`.
    """

    may_send: Callable[[], bool]
    pass_turn_on: Callable[[], None]
    has_begun: bool = False

    async def on_event(self, event_name: str, _: dict[str, Any]) -> None:
        """Handle a step of the request; the HTTP client calls this. Raises _TooLate if the first byte may not leave."""
        # The name of an event begins with the protocol, such as "http11.".
        if event_name.endswith("send_request_headers.started"):
            if not self.may_send():
                raise _TooLate
            self.has_begun = True
        elif event_name.endswith("send_request_body.complete"):
            self.pass_turn_on()


class ProviderClient:
    """Sends messages to the URL of one provider."""

    def __init__(self, url: str, settings: MessageSettings) -> None:
        self._url = url
        self._most_tries = settings.connect_tries
        self._timeout_s = settings.provider_timeout_ms / 1000
        connect_timeout_s = settings.connect_timeout_ms / 1000
        self._client = httpx2.AsyncClient(
            timeout=httpx2.Timeout(self._timeout_s, connect=connect_timeout_s, pool=connect_timeout_s),
            # A message beyond 256 connections waits for a free one, for at most the time to connect. More connections
            # would send a larger burst at once, but cost more sockets. Up to 64 idle ones are kept: more would save
            # time after a burst of messages, but cost more sockets meanwhile.
            limits=httpx2.Limits(max_connections=256, max_keepalive_connections=64, keepalive_expiry=KEEP_IDLE_S),
            follow_redirects=False,
            # No proxy from the environment: messages go straight to the configured URL.
            trust_env=False,
            # Certificates take 17 ms to load. Without redirects, a URL of plain HTTP never needs them.
            verify=urlsplit(url).scheme != "http",
        )

    async def close(self) -> None:
        """Close all connections."""
        await self._client.aclose()

    async def send(
        self,
        message_id: str,
        text: str,
        may_send: Callable[[], bool] = lambda: True,
        pass_turn_on: Callable[[], None] = lambda: None,
    ) -> ProviderOutcome:
        """Send one message. If the request could not leave, try again a few times while `may_send` returns true.

        `pass_turn_on` lets the next message reserve a slot. It is called when the whole request is sent. It is also
        called when the first try has failed, so that other messages do not wait for further tries. It may be called
        several times.
        """
        outcome = await self._send_once(message_id, text, may_send, pass_turn_on)
        pass_turn_on()
        for attempt in range(1, self._most_tries):
            if not isinstance(outcome, Unsent) or not may_send():
                break
            # Backoff: up to 100 ms before the second try, and twice as long before each further one, up to a bound. It
            # is random, so that messages whose tries failed together do not try again together.
            await asyncio.sleep(random.uniform(0.5, 1) * min(50 * 2**attempt, LONGEST_PAUSE_MS) / 1000)
            outcome = await self._send_once(message_id, text, may_send, pass_turn_on)
        return outcome

    async def _send_once(
        self, message_id: str, text: str, may_send: Callable[[], bool], pass_turn_on: Callable[[], None]
    ) -> ProviderOutcome:
        """Send a message once. The outcome is Unsent if the provider cannot have it, and Unknown if it may have it."""
        watch = _SendingWatch(may_send, pass_turn_on)
        request = self._client.build_request(
            "POST",
            self._url,
            json={"message": text},
            headers={"Idempotency-Key": message_id},
            extensions={"trace": watch.on_event},
        )
        try:
            # The client's own time-outs hold for each read and write. This one holds for the whole request.
            async with asyncio.timeout(self._timeout_s):
                http_answer = await self._client.send(request, stream=True)
                try:
                    return _outcome_of(http_answer, await _read_content(http_answer))
                finally:
                    await http_answer.aclose()
        except (httpx2.HTTPError, httpx2.InvalidURL, OSError, TimeoutError, _TooLate) as error:
            cause = TOO_LATE if isinstance(error, _TooLate) else type(error).__name__
            return Unknown(cause) if watch.has_begun else Unsent(cause)


async def _read_content(http_answer: httpx2.Response) -> bytes:
    """Read the content of an HTTP answer. Raises DecodingError if it is longer than MAX_ANSWER_BYTES."""
    content = bytearray()
    async for chunk in http_answer.aiter_bytes():
        content += chunk
        if len(content) > MAX_ANSWER_BYTES:
            raise httpx2.DecodingError(f"the answer is longer than {MAX_ANSWER_BYTES} bytes")
    return bytes(content)


def _outcome_of(http_answer: httpx2.Response, content: bytes) -> ProviderOutcome:
    """Return the outcome that an HTTP answer of the provider stands for. Only a 200 can have the reply to a message."""
    if http_answer.status_code == 429:
        return Blocked(read_retry_after_ms(http_answer.headers))
    if http_answer.status_code != 200:
        return Failed(f"status {http_answer.status_code}")
    try:
        body = json.loads(content)
    except (ValueError, RecursionError):
        return Failed("the answer is not JSON")
    reply = body.get("response") if isinstance(body, dict) else None
    return Answered(reply) if isinstance(reply, str) else Failed("the answer holds no response")


def read_retry_after_ms(headers: httpx2.Headers) -> int | None:
    """Return for how many ms a Retry-After asks to wait, or None if the header is absent or invalid.

    The header has a number of seconds or a date. The wait until a date is counted from the Date of the same answer, so
    that our clock and the provider's need not agree. If the answer has no Date, our clock is used.
    """
    wait_text = headers.get("Retry-After", "").strip()
    try:
        seconds = float(wait_text) if wait_text.isdecimal() else _seconds_until(wait_text, headers.get("Date"))
    except (ValueError, OverflowError):
        return None
    return round(min(max(seconds * 1000, SHORTEST_BLOCK_MS), LONGEST_BLOCK_MS))


def _seconds_until(date: str, date_of_answer: str | None) -> float:
    now_s = parsedate_to_datetime(date_of_answer).timestamp() if date_of_answer else time.time()
    return parsedate_to_datetime(date).timestamp() - now_s
