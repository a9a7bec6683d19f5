"""Idempotency keys: a message that is sent again with its key gets the same answer and is not delivered again.

    (none) ──claim──> claimed ──begin_sending──> sending ──finish──> done
                         │  └── its replica dies: the next request claims the key
                         └───── give_back (no provider has the message) ──> (none)

If a replica dies while it sends, nobody can know whether the message arrived. The claim then stays "sending" until it
expires. Until then each request with the key gets an error, because an error is better than a second payment.

`give_back` (the name of a script, too) frees the key.

    shared:messages:claim:{user}:{hash of the key}    hash that expires after MESSAGES_KEEP_ANSWERS_S
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
from quart_app.messages.users import translated_redis_errors

log = structlog.get_logger(__name__)

#: The moves of a claim on an idempotency key, by the names of their files.
SCRIPTS = {name: Script.beside(__file__, f"{name}.lua") for name in ("claim", "begin_sending", "finish", "give_back")}
#: The largest number of tries to keep an answer in Redis. If all fail, the answer is not kept. More tries outlast a
#: longer failure of Redis, and delay the answer.
MOST_TRIES_TO_KEEP = 3
#: What `KeyClaim` records if the message reached no provider: its key is free again.
UNUSED: Final = "unused"


@dataclass(frozen=True, slots=True)
class OtherBody:
    """The key was used for another message: the hash of its body differs."""


@dataclass(frozen=True, slots=True)
class Finished:
    """The message with this key was delivered, or failed for good. `answer` is what its client got."""

    message_id: str
    #: `status`, and either `provider` and `response` (status 200) or `detail`
    answer: dict[str, Any]


@dataclass(frozen=True, slots=True)
class InProgress:
    """Another request delivers the message with this key."""


@dataclass(frozen=True, slots=True)
class SenderLost:
    """The replica that sent the message died; nobody knows whether it arrived."""

    message_id: str


class IdempotencyKeys:
    """All idempotency keys. Every method raises Unavailable when Redis fails.

    The owner of a claim may take `work_ms` for the delivery, plus the `max_wait_ms` of its message. Claims and answers
    are kept for `keep_ms`.
    """

    def __init__(self, redis: Redis, *, work_ms: int, keep_ms: int) -> None:
        self._work_ms = work_ms
        self._keep_ms = keep_ms
        self._redis = redis

    async def claim(
        self, user_id: str, key: str, body: bytes, message_id: str, max_wait_ms: int
    ) -> KeyClaim | OtherBody | Finished | InProgress | SenderLost:
        """Claim the key, or return what became of an earlier request with the key. Does not wait for that request."""
        redis_key = f"shared:messages:claim:{user_id}:{_digest(key.encode())}"
        owner_may_take_ms = self._work_ms + max_wait_ms
        state, *details = await self.run_script(
            "claim", redis_key, _digest(body), message_id, owner_may_take_ms, self._keep_ms
        )
        match state:
            # The names of the states are those that claim.lua returns.
            case "mine":
                return KeyClaim(self, redis_key, message_id)
            case "other-body":
                return OtherBody()
            case "done":
                return Finished(details[0], json.loads(details[1]))
            case "lost":
                return SenderLost(details[0])
        # Only the state "busy" is left: the other request still has time to finish.
        return InProgress()

    async def finish(self, redis_key: str, message_id: str, answer: dict[str, Any]) -> None:
        """Keep the answer for later requests with the key."""
        await self.run_script("finish", redis_key, message_id, json.dumps(answer), self._keep_ms)

    async def run_script(self, script_name: str, redis_key: str, *arguments: str | int) -> Any:
        """Run one of the scripts on a claim. `KeyClaim` calls this, too."""
        async with translated_redis_errors():
            return await SCRIPTS[script_name].run(self._redis, [redis_key], *arguments)


@dataclass(slots=True)
class KeyClaim:
    """The right to deliver one message. At the end of `async with claim:` it records what the block has set.

    If the block set nothing (it was cancelled, ran out of time or had an unexpected error), the claim stays as it is.
    If the message was being sent, no request may send it again. Otherwise the next request with the key may take the
    claim over after the time that the owner had.
    """

    idempotency_keys: IdempotencyKeys
    #: the key of the claim in Redis, with a hash of the client's idempotency key
    redis_key: str
    #: the owner of the claim in the scripts, which change the claim only for its owner
    message_id: str
    #: What the end of the block records: an answer is kept, UNUSED frees the key, and None changes nothing.
    #: `MessageIntake` sets it in the block.
    to_record: dict[str, Any] | str | None = field(default=None, init=False)

    async def __aenter__(self) -> KeyClaim:
        return self

    async def __aexit__(
        self, error_type: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if isinstance(self.to_record, dict):
            await self._keep_answer(self.to_record)
        elif self.to_record == UNUSED:
            await self._free_key()

    async def begin_sending(self) -> bool:
        """Record that a provider may have the message from now on.

        Return False if the claim is over; the caller must then send nothing.
        """
        return bool(await self.idempotency_keys.run_script("begin_sending", self.redis_key, self.message_id))

    async def _keep_answer(self, answer: dict[str, Any]) -> None:
        """Keep the answer. If Redis fails, the claim stays "sending".

        Then no request sends the message again, and later requests with the key do not learn the answer.
        """
        for try_number in range(1, MOST_TRIES_TO_KEEP + 1):
            try:
                return await self.idempotency_keys.finish(self.redis_key, self.message_id, answer)
            except MeshError as error:
                log.warning("answer not kept for its idempotency key", error=str(error), tries=try_number)
            if try_number < MOST_TRIES_TO_KEEP:
                # Redis may answer again after a pause. The pause grows with each try: 0.1, 0.2 s.
                await asyncio.sleep(0.1 * try_number)

    async def _free_key(self) -> None:
        """Free the key. If Redis fails, the claim stays as it is, as after the death of this replica."""
        try:
            await self.idempotency_keys.run_script("give_back", self.redis_key, self.message_id)
        except MeshError as error:
            log.warning("unused idempotency key not freed", error=str(error))


class ClaimWithoutKey(KeyClaim):
    """The claim of a message without an idempotency key. It records nothing: each request is a message of its own.

    `MessageIntake` makes it, so that a delivery need not ask whether its message has a key.
    """

    def __init__(self) -> None:
        # The other fields stay unset, because no method of this class reads them.
        self.to_record = None

    async def __aexit__(self, *_: object) -> None:
        return None

    async def begin_sending(self) -> bool:
        return True


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
