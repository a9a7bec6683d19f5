"""Idempotency-Key: a message that is sent again with its key is answered again, never handled again.

    (none) ──claim──> claimed ──begin_sending──> sending ──finish──> done
                         │  └── owner dead: the next one claims        │
                         └────────────── give_back (no provider has it) ──> (none)

An owner that dies while sending leaves a claim of which nobody can say whether the message arrived. It stays so
until it is forgotten: telling the user is better than paying twice.

    shared:messages:claim:{user}:{hash of the key}    hash, PX
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from redis.asyncio import Redis

from quart_app.messages.users import redis_at_work

_SCRIPTS = Path(__file__).parent


@dataclass(frozen=True, slots=True)
class Claim:
    """The right to handle one message, with what is needed to say how it went."""

    key: str
    owner: str


@dataclass(frozen=True, slots=True)
class Mine:
    """Handle it."""

    claim: Claim


@dataclass(frozen=True, slots=True)
class OtherBody:
    """The key was used for something else."""


@dataclass(frozen=True, slots=True)
class Done:
    """It was handled; this was the answer."""

    message_id: str
    answer: dict[str, Any]


@dataclass(frozen=True, slots=True)
class InFlight:
    """Somebody is at it."""


@dataclass(frozen=True, slots=True)
class Lost:
    """Whoever sent it died; nobody knows whether it arrived."""

    message_id: str


class Claims:
    """All claims. Every method raises Unavailable when Redis does not do its part."""

    def __init__(self, redis: Redis, *, work_ms: int, keep_ms: int) -> None:
        self._work_ms = work_ms
        self._keep_ms = keep_ms
        self._scripts = {
            name: redis.register_script((_SCRIPTS / f"{name}.lua").read_text())
            for name in ("claim", "begin_sending", "finish", "give_back")
        }

    async def claim(
        self, user_id: str, key: str, body: bytes, message_id: str, max_wait_ms: int
    ) -> Mine | OtherBody | Done | InFlight | Lost:
        """Ask for the right to handle the message with this key."""
        claim = Claim(f"shared:messages:claim:{user_id}:{_digest(key.encode())}", message_id)
        work_ms = self._work_ms + max_wait_ms
        word, *rest = await self._run("claim", claim.key, _digest(body), message_id, work_ms, self._keep_ms)
        match word:
            case "mine":
                return Mine(claim)
            case "other-body":
                return OtherBody()
            case "done":
                return Done(rest[0], json.loads(rest[1]))
            case "lost":
                return Lost(rest[0])
        return InFlight()

    async def begin_sending(self, claim: Claim) -> bool:
        """To be said before anything leaves. False: the claim is over, and nothing may leave."""
        return bool(await self._run("begin_sending", claim.key, claim.owner))

    async def finish(self, claim: Claim, answer: dict[str, Any]) -> None:
        """The answer for everybody who asks again."""
        await self._run("finish", claim.key, claim.owner, json.dumps(answer), self._keep_ms)

    async def give_back(self, claim: Claim) -> None:
        """No provider has the message; the key is as if it had never been used."""
        await self._run("give_back", claim.key, claim.owner)

    async def _run(self, name: str, key: str, *arguments: str | int) -> Any:
        async with redis_at_work():
            return await self._scripts[name]([key], list(arguments))


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
