"""Idempotency keys: a message that is sent again with its key gets the same answer and is not delivered again.

    (none) ──claim──> claimed ──begin_sending──> sending ──finish──> done
                         │  └── its replica dies: the next request claims the key
                         └───── give_back (no provider has the message) ──> (none)

If a replica dies while it sends, nobody can know whether the message arrived. The claim then stays "sending" until it
expires: an error is better than a second payment.

    shared:messages:claim:{user}:{hash of the key}    hash, PX
"""

from __future__ import annotations

import asyncio
import hashlib
import json
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Final

import structlog
from redis.asyncio import Redis

from mesh import MeshError, Script
from quart_app.messages.users import redis_at_work

log = structlog.get_logger(__name__)

SCRIPTS = {name: Script.beside(__file__, f"{name}.lua") for name in ("claim", "begin_sending", "finish", "give_back")}
FINISH_TRIES = 3
#: The outcome of a message that reached no provider: its key is free again.
UNUSED: Final = "unused"


@dataclass(frozen=True, slots=True)
class OtherBody:
    """The key was used for another message."""


@dataclass(frozen=True, slots=True)
class Finished:
    """The message with this key was delivered, or failed for good; this was the answer."""

    message_id: str
    answer: dict[str, Any]


@dataclass(frozen=True, slots=True)
class InProgress:
    """Another request delivers the message with this key."""


@dataclass(frozen=True, slots=True)
class SenderLost:
    """The replica that sent the message died; nobody knows whether it arrived."""

    message_id: str


class IdempotencyKeys:
    """All keys. Every method raises Unavailable when Redis fails."""

    def __init__(self, redis: Redis, *, work_ms: int, keep_ms: int) -> None:
        self._work_ms = work_ms
        self._keep_ms = keep_ms
        self._redis = redis

    async def claim(
        self, user_id: str, key: str, body: bytes, message_id: str, max_wait_ms: int
    ) -> KeyClaim | OtherBody | Finished | InProgress | SenderLost:
        """Ask for the right to deliver the message with this key; do not wait for it."""
        name = f"shared:messages:claim:{user_id}:{_digest(key.encode())}"
        work_ms = self._work_ms + max_wait_ms
        word, *rest = await self.run("claim", name, _digest(body), message_id, work_ms, self._keep_ms)
        match word:
            case "mine":
                return KeyClaim(self, name, message_id)
            case "other-body":
                return OtherBody()
            case "done":
                return Finished(rest[0], json.loads(rest[1]))
            case "lost":
                return SenderLost(rest[0])
        return InProgress()

    async def finish(self, name: str, owner: str, answer: dict[str, Any]) -> None:
        """Keep the answer for later requests with the key."""
        await self.run("finish", name, owner, json.dumps(answer), self._keep_ms)

    async def run(self, script: str, name: str, *arguments: str | int) -> Any:
        """Run one of the scripts on the key of this name."""
        async with redis_at_work():
            return await SCRIPTS[script].run(self._redis, [name], *arguments)


@dataclass(slots=True)
class KeyClaim:
    """The right to deliver one message. Leaving its block records the outcome that was set inside.

    Without an outcome (cancelled, out of time, an unexpected error) the claim stays as it is. If the message was being
    sent, no request may send it again. If not, the next request takes the claim over as soon as it is too old.
    """

    keys: IdempotencyKeys
    name: str
    #: the id of the message, by which the scripts know whose claim it is
    owner: str
    outcome: dict[str, Any] | str | None = field(default=None, init=False)

    async def __aenter__(self) -> KeyClaim:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if isinstance(self.outcome, dict):
            await self._finish(self.outcome)
        elif self.outcome == UNUSED:
            await self._give_back()

    async def begin_sending(self) -> bool:
        """Record that the message may be at a provider from now on; False if the claim is over: then send nothing."""
        return bool(await self.keys.run("begin_sending", self.name, self.owner))

    async def _finish(self, answer: dict[str, Any]) -> None:
        """Keep the answer. If this fails, the key stays "sending": nobody sends again, and nobody learns the answer."""
        for tries in range(1, FINISH_TRIES + 1):
            try:
                return await self.keys.finish(self.name, self.owner, answer)
            except MeshError as error:
                log.warning("answer not kept for its idempotency key", error=str(error), tries=tries)
                await asyncio.sleep(0.1 * tries)

    async def _give_back(self) -> None:
        """Free the key. If this fails, the key is free once the claim is too old."""
        try:
            await self.keys.run("give_back", self.name, self.owner)
        except MeshError as error:
            log.warning("unused idempotency key not freed", error=str(error))


class NoKey(KeyClaim):
    """The claim of a message without an idempotency key: every attempt is its own message."""

    def __init__(self) -> None:
        self.outcome = None

    async def __aexit__(self, *_: object) -> None:
        return None

    async def begin_sending(self) -> bool:
        return True


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
