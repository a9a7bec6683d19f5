"""Where messages come in: a key that was used gets its answer again, everything else is dispatched."""

from __future__ import annotations

import asyncio
import time
import uuid
from dataclasses import dataclass
from typing import Any

import structlog

from mesh.errors import MeshError
from quart_app.http.problems import Problem, from_mesh
from quart_app.messages.delivery import Delivery, Dispatcher, NotAdmitted, Order, Undelivered
from quart_app.messages.idempotency import Claim, Claims, Done, InFlight, Lost, Mine, OtherBody
from quart_app.messages.models import NewMessage
from quart_app.messages.users import Users

log = structlog.get_logger(__name__)

#: Between two looks at a message that somebody else handles: from, to, in seconds.
LOOK_AGAIN_S = (0.02, 0.5)
FINISH_TRIES = 3


@dataclass(frozen=True, slots=True)
class Receipt:
    """What became of a message."""

    id: str
    provider: str
    response: str


@dataclass(frozen=True, slots=True)
class Desk:
    """Takes messages of users."""

    users: Users
    claims: Claims
    dispatcher: Dispatcher

    async def handle(self, user_id: str, new: NewMessage, key: str | None) -> Receipt:
        """Handle a message, or say again what became of it. Raises Problem, MeshError."""
        message_id = uuid.uuid4().hex
        if key is None:
            return await self._dispatch(user_id, new, message_id, None)
        match await self._claim(user_id, new, key, message_id):
            case Mine(claim):
                return await self._dispatch(user_id, new, message_id, claim)
            case Done(done_id, answer):
                return _again(done_id, answer)
            case OtherBody():
                raise Problem(409, "this Idempotency-Key was used for another message")
            case Lost():
                raise Problem(502, "whether a provider has this message is not known: the replica that sent it died")
        raise Problem(503, "this message is still being handled; ask again with its key", retry_after=1)

    async def _claim(
        self, user_id: str, new: NewMessage, key: str, message_id: str
    ) -> Mine | OtherBody | Done | InFlight | Lost:
        """The claim; while somebody else has it, wait for what comes of it."""
        until = time.monotonic() + (self.dispatcher.settings.work_ms + new.max_wait_ms) / 1000
        body = new.model_dump_json().encode()
        pause_s, longest_s = LOOK_AGAIN_S
        while True:
            found = await self.claims.claim(user_id, key, body, message_id, new.max_wait_ms)
            if not isinstance(found, InFlight) or time.monotonic() > until or self.dispatcher.closing:
                return found
            await asyncio.sleep(pause_s)
            pause_s = min(longest_s, pause_s * 1.5)

    async def _dispatch(self, user_id: str, new: NewMessage, message_id: str, claim: Claim | None) -> Receipt:
        async def has_paid_access() -> bool:
            user = await self.users.find(user_id)
            return user is not None and user.paid_access

        async def begin_sending() -> bool:
            return claim is None or await self.claims.begin_sending(claim)

        order = Order(message_id, new.message, new.max_wait_ms, has_paid_access, begin_sending)
        try:
            delivery = await self.dispatcher.run(lambda: self._deliver(order, claim), new.max_wait_ms)
        except NotAdmitted:
            if claim is not None:
                await self._give_back(claim)
            raise
        return Receipt(message_id, delivery.provider, delivery.response)

    async def _deliver(self, order: Order, claim: Claim | None) -> Delivery:
        """Deliver, and note for the key what became of it; in the dispatcher's task, whoever waits or does not."""
        try:
            delivery = await self.dispatcher.deliver(order)
        except (Undelivered, MeshError) as error:
            if claim is not None and order.arrived:
                await self._finish(claim, _as_answer(error))
            elif claim is not None:
                await self._give_back(claim)
            raise
        if claim is not None:
            await self._finish(claim, {"status": 200, "provider": delivery.provider, "response": delivery.response})
        return delivery

    async def _finish(self, claim: Claim, answer: dict[str, Any]) -> None:
        """Should this fail, the key stays "sending": nobody sends the message again, nobody learns the answer."""
        for tries in range(1, FINISH_TRIES + 1):
            try:
                return await self.claims.finish(claim, answer)
            except MeshError as error:
                log.warning("an answer could not be kept for its key", error=str(error), tries=tries)
                await asyncio.sleep(0.1 * tries)

    async def _give_back(self, claim: Claim) -> None:
        """Should this fail, the key is free again once its claim is too old."""
        try:
            await self.claims.give_back(claim)
        except MeshError as error:
            log.warning("an unused key could not be given back", error=str(error))


def _as_answer(error: Undelivered | MeshError) -> dict[str, Any]:
    problem = error if isinstance(error, Undelivered) else from_mesh(error)
    return {"status": problem.status, "detail": problem.detail}


def _again(message_id: str, answer: dict[str, Any]) -> Receipt:
    if answer["status"] != 200:
        raise Problem(answer["status"], answer["detail"])
    return Receipt(message_id, answer["provider"], answer["response"])
