"""Takes in messages: claims the idempotency key of each message, and delivers the message in a task of its own.

If the client hangs up, the task goes on, because it must still record the outcome of the reservation and of the key.
Every task has a time limit, so a leaving replica can wait for all tasks.
"""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from mesh import MeshError, Unavailable
from quart_app.http.problems import Problem, from_mesh
from quart_app.messages.delivery import Delivery, OutgoingMessage, ProviderReply, Undelivered
from quart_app.messages.idempotency import (
    UNUSED,
    ClaimWithoutKey,
    Finished,
    IdempotencyKeys,
    InProgress,
    KeyClaim,
    OtherBody,
    SenderLost,
)
from quart_app.messages.models import NewMessage

#: The first and the longest pause between two tries to claim a key that another request holds. Pauses grow by half: the
#: first answers soon after a quick delivery, the longest limits what a slow delivery costs Redis.
FIRST_AND_LONGEST_PAUSE_S = (0.02, 0.5)


@dataclass(frozen=True, slots=True)
class Receipt:
    """What the client of a delivered message learns. A repeated request gets the receipt of the first one."""

    id: str
    provider: str
    response: str


class NotAdmitted(Problem):
    """The replica refused the message before it did anything for it."""


class MessageIntake:
    """Takes in the messages of one replica."""

    def __init__(self, idempotency_keys: IdempotencyKeys, delivery: Delivery) -> None:
        self.delivery = delivery
        self._idempotency_keys = idempotency_keys
        self._settings = delivery.settings
        self._metrics = delivery.metrics
        self._tasks: asyncio.TaskGroup | None = None
        #: how many deliveries are in progress
        self._delivery_count = 0

    @asynccontextmanager
    async def open(self) -> AsyncIterator[None]:
        """Accept messages while the block lasts, and wait at its end for the deliveries in progress.

        At its end `leaving` is set. From then on no delivery waits for the free provider, so each one ends within
        `MessageSettings.work_ms`.
        """
        try:
            async with asyncio.TaskGroup() as self._tasks:
                try:
                    yield
                finally:
                    self.delivery.leaving.set()
        finally:
            self._tasks = None
            await self.delivery.close()

    async def handle(self, user_id: str, new_message: NewMessage, idempotency_key: str | None) -> Receipt:
        """Deliver a message. If an earlier request had the same idempotency key, return or raise its outcome instead.

        Raises Problem, MeshError.
        """
        message = OutgoingMessage(
            uuid.uuid4().hex, user_id, new_message.message, time.monotonic() + new_message.max_wait_ms / 1000
        )
        match await self._claim_key(user_id, new_message, idempotency_key, message.id):
            case KeyClaim() as claim:
                reply = await self._start_and_wait(message, claim, new_message.max_wait_ms)
                return Receipt(message.id, reply.provider, reply.response)
            case Finished(message_id, answer):
                return _receipt_of_earlier_request(message_id, answer)
            case OtherBody():
                raise Problem(409, "this Idempotency-Key was used for another message; use a new key")
            case SenderLost():
                detail = "the replica that sent this message died; whether a provider has the message is not known"
                raise Problem(502, detail)
        # The case that is left is InProgress: `_claim_key` has waited as long as it may.
        raise Problem(503, "this message is still being delivered; retry with its key after 1 s", retry_after=1)

    async def _claim_key(
        self, user_id: str, new_message: NewMessage, idempotency_key: str | None, message_id: str
    ) -> KeyClaim | OtherBody | Finished | InProgress | SenderLost:
        """Claim the key. While another request holds the claim, wait for the outcome of that request."""
        if idempotency_key is None:
            # Each request without a key is a message of its own: its claim is always granted, and records nothing.
            return ClaimWithoutKey()
        # The request that holds the claim may take about as long as this delivery may.
        give_up_at_s = time.monotonic() + self._longest_delivery_s(new_message.max_wait_ms)
        body = new_message.model_dump_json().encode()
        pause_s, longest_pause_s = FIRST_AND_LONGEST_PAUSE_S
        while True:
            claim_result = await self._idempotency_keys.claim(
                user_id, idempotency_key, body, message_id, new_message.max_wait_ms
            )
            if (
                not isinstance(claim_result, InProgress)
                or time.monotonic() > give_up_at_s
                or self.delivery.leaving.is_set()
            ):
                return claim_result
            await asyncio.sleep(pause_s)
            # The pauses grow, so that a long wait costs few reads of the claim.
            pause_s = min(longest_pause_s, pause_s * 1.5)

    async def _start_and_wait(self, message: OutgoingMessage, claim: KeyClaim, max_wait_ms: int) -> ProviderReply:
        """Start the delivery and wait for its result. The delivery is a task that goes on if the client hangs up."""
        refusal = self._why_refused()
        # The check of `_tasks` is for the type only. `_tasks` is None before `open`, when no route has this object, and
        # after `open`, when `refusal` is not None.
        if refusal is not None or self._tasks is None:
            async with claim:
                # The end of the block then frees the key.
                claim.to_record = UNUSED
            raise NotAdmitted(503, refusal or "this replica is leaving; retry after 1 s", retry_after=1)
        reply_future: asyncio.Future[ProviderReply] = asyncio.get_running_loop().create_future()
        self._delivery_count += 1
        self._tasks.create_task(self._run_delivery(message, claim, self._longest_delivery_s(max_wait_ms), reply_future))
        return await reply_future

    def _why_refused(self) -> str | None:
        """Return why this replica takes in no message now, or None if it does."""
        if self.delivery.leaving.is_set():
            return "this replica is leaving; retry after 1 s"
        if self._delivery_count >= self._settings.max_in_flight:
            return f"too many messages in progress ({self._delivery_count}); retry after 1 s"
        return None

    async def _run_delivery(
        self,
        message: OutgoingMessage,
        claim: KeyClaim,
        time_limit_s: float,
        reply_future: asyncio.Future[ProviderReply],
    ) -> None:
        """Deliver within `time_limit_s` seconds, and set the reply or the error in the future that the client awaits.

        Raises no error, because an error in one task would cancel the other deliveries of the task group.
        """
        self._metrics.in_flight.inc()
        try:
            async with asyncio.timeout(time_limit_s):
                reply = await self._deliver_for_claim(message, claim)
            # A client that has hung up has cancelled the future.
            if not reply_future.done():
                reply_future.set_result(reply)
        except TimeoutError:
            self._fail_unless_done(
                reply_future, Undelivered(504, f"not delivered within {time_limit_s:.0f} s", metrics_label="deadline")
            )
        except Exception as error:
            self._fail_unless_done(reply_future, error)
        finally:
            # If the future is not done yet, the task was cancelled, because the replica has lost its lease.
            self._fail_unless_done(reply_future, Unavailable("this replica has lost its lease; try again"))
            self._delivery_count -= 1
            self._metrics.in_flight.dec()

    async def _deliver_for_claim(self, message: OutgoingMessage, claim: KeyClaim) -> ProviderReply:
        """Deliver, and set what the claim records: the answer, or that no provider has the message.

        After a cancellation, a time-out or an unexpected error nothing is set, and the claim stays as it is: see
        `KeyClaim`.
        """
        async with claim:
            try:
                reply = await self.delivery.deliver(message, claim)
            except (Undelivered, MeshError) as error:
                # `Delivery` sets `may_have_arrived` when a provider has or may have the message.
                claim.to_record = _failure_answer(error) if message.may_have_arrived else UNUSED
                raise
            claim.to_record = {"status": 200, "provider": reply.provider, "response": reply.response}
            return reply

    def _fail_unless_done(self, reply_future: asyncio.Future[ProviderReply], error: Exception) -> None:
        """Set the error, and count it, unless the reply or another error was set or the client has hung up."""
        if reply_future.done():
            return
        if isinstance(error, Undelivered):
            self._metrics.undelivered.labels(error.metrics_label).inc()
        reply_future.set_exception(error)

    def _longest_delivery_s(self, max_wait_ms: int) -> float:
        return (self._settings.work_ms + max_wait_ms) / 1000


def _failure_answer(error: Undelivered | MeshError) -> dict[str, Any]:
    problem = error if isinstance(error, Undelivered) else from_mesh(error)
    return {"status": problem.status, "detail": problem.detail}


def _receipt_of_earlier_request(message_id: str, answer: dict[str, Any]) -> Receipt:
    """Return the receipt of an earlier request with the key. Raises Problem if that request failed."""
    if answer["status"] != 200:
        raise Problem(answer["status"], answer["detail"])
    return Receipt(message_id, answer["provider"], answer["response"])
