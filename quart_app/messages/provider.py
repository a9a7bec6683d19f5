"""One provider, spoken to over HTTP. What became of a request is told apart by what is certain.

    Answered    the provider handled the message
    Blocked     it refused because it is closed (429): the message is not there
    Failed      it answered, but with no reply to the message
    Unsent      not a byte of the request left: it may be sent again, here or elsewhere
    Unknown     something left, and no answer came: the message may be there or not

Only Unsent is repeated.
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

import httpx

from quart_app.messages.settings import MessageSettings

#: The longest answer that is read.
MAX_ANSWER_BYTES = 1 << 20
#: A refusal counts for at least and at most this long, whatever it says.
SHORTEST_BLOCK_MS, LONGEST_BLOCK_MS = 1_000, 86_400_000
#: Shorter than servers usually keep idle connections, so that one is seldom closed under a request.
IDLE_S = 1.0


@dataclass(frozen=True, slots=True)
class Answered:
    response: str


@dataclass(frozen=True, slots=True)
class Blocked:
    #: None: the provider did not say for how long
    retry_after_ms: int | None


@dataclass(frozen=True, slots=True)
class Failed:
    detail: str


@dataclass(frozen=True, slots=True)
class Unsent:
    detail: str


@dataclass(frozen=True, slots=True)
class Unknown:
    detail: str


Outcome = Answered | Blocked | Failed | Unsent | Unknown


class _TooLate(Exception):
    """The right to send ended before the first byte left."""


#: What an Unsent of that cause says.
TOO_LATE = "the right to send had ended"


@dataclass(slots=True)
class _Departure:
    """Watches one request: whether it has begun to leave, and that it leaves in time or not at all."""

    may_leave: Callable[[], bool]
    has_left: Callable[[], None]
    left: bool = False

    async def trace(self, event: str, _: dict[str, Any]) -> None:
        if event.endswith("send_request_headers.started"):
            if not self.may_leave():
                raise _TooLate
            self.left = True
        elif event.endswith("send_request_body.complete"):
            self.has_left()


class Gateway:
    """A provider's address and the one client that speaks to it."""

    def __init__(self, url: str, settings: MessageSettings) -> None:
        self._url = url
        self._tries = settings.connect_tries
        self._timeout_s = settings.provider_timeout_ms / 1000
        connect_s = settings.connect_timeout_ms / 1000
        self._client = httpx.AsyncClient(
            timeout=httpx.Timeout(self._timeout_s, connect=connect_s, pool=connect_s),
            limits=httpx.Limits(max_connections=256, max_keepalive_connections=64, keepalive_expiry=IDLE_S),
            follow_redirects=False,
            trust_env=False,
        )

    async def close(self) -> None:
        await self._client.aclose()

    async def send(
        self,
        message_id: str,
        message: str,
        may_leave: Callable[[], bool] = lambda: True,
        has_left: Callable[[], None] = lambda: None,
    ) -> Outcome:
        """Send one message; what could not leave is tried a few times more, while `may_leave` says so.

        `has_left` is called when the whole request is on its way, whoever dies then, or when it could not leave at
        the first try: others need not wait for the next ones.
        """
        outcome = await self._send_once(message_id, message, may_leave, has_left)
        has_left()
        for tries in range(1, self._tries):
            if not isinstance(outcome, Unsent) or not may_leave():
                break
            await asyncio.sleep(random.uniform(0.5, 1) * 0.05 * 2**tries)
            outcome = await self._send_once(message_id, message, may_leave, has_left)
        return outcome

    async def _send_once(
        self, message_id: str, message: str, may_leave: Callable[[], bool], has_left: Callable[[], None]
    ) -> Outcome:
        departure = _Departure(may_leave, has_left)
        request = self._client.build_request(
            "POST",
            self._url,
            json={"message": message},
            headers={"Idempotency-Key": message_id},
            extensions={"trace": departure.trace},
        )
        try:
            async with asyncio.timeout(self._timeout_s):
                response = await self._client.send(request, stream=True)
                try:
                    return _read(response, await _content(response))
                finally:
                    await response.aclose()
        except (httpx.HTTPError, httpx.InvalidURL, OSError, TimeoutError, _TooLate) as error:
            what = TOO_LATE if isinstance(error, _TooLate) else type(error).__name__
            return Unknown(what) if departure.left else Unsent(what)


async def _content(response: httpx.Response) -> bytes:
    content = bytearray()
    async for chunk in response.aiter_bytes():
        content += chunk
        if len(content) > MAX_ANSWER_BYTES:
            raise httpx.DecodingError("the answer is too long")
    return bytes(content)


def _read(response: httpx.Response, content: bytes) -> Outcome:
    if response.status_code == 429:
        return Blocked(retry_after_ms(response.headers))
    if response.status_code != 200:
        return Failed(f"status {response.status_code}")
    try:
        found = json.loads(content)
    except (ValueError, RecursionError):
        return Failed("the answer is not JSON")
    reply = found.get("response") if isinstance(found, dict) else None
    return Answered(reply) if isinstance(reply, str) else Failed("the answer holds no response")


def retry_after_ms(headers: httpx.Headers) -> int | None:
    """How long a Retry-After asks to wait, in either of its two forms; None where there is none to understand.

    A date is measured from the answer's own Date, so that the two clocks need not agree.
    """
    said = headers.get("Retry-After", "").strip()
    try:
        seconds = float(said) if said.isdecimal() else _until(said, headers.get("Date"))
    except (ValueError, OverflowError):
        return None
    return round(min(max(seconds * 1000, SHORTEST_BLOCK_MS), LONGEST_BLOCK_MS))


def _until(date: str, now: str | None) -> float:
    since = parsedate_to_datetime(now).timestamp() if now else time.time()
    return parsedate_to_datetime(date).timestamp() - since
