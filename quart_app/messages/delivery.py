"""Delivers one message: through the free provider while it accepts requests, or else through the paid one.

    reserve ─> decide ─┬─> send to free ─┬─> reply
       ^               │                 ├─> refused (429), or the slot expired before the sending ─> reserve again
       │               │                 └─> unreachable or failed ─> pay, with paid access
       ├── wait ───────┤
       └── look again ─┴─> pay ─> reply

Look again: just before a payment the allowance is read once more, and the message reserves again if the free provider
has opened. The time of every step is limited, and `MessageIntake` limits the time of the whole delivery. Not drawn: if
no provider takes the message, the delivery ends with `Undelivered`.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Literal

import structlog

from mesh import MeshError, Unavailable
from mesh.quota import Allowance, Closed, Granted, Probing, Quota, Reservation, Verdict
from quart_app.http.problems import Problem
from quart_app.messages.decision import Pay, Reason, Refuse, SendFree, WaitForFree, next_step
from quart_app.messages.idempotency import KeyClaim
from quart_app.messages.metrics import MessageMetrics
from quart_app.messages.provider import (
    TOO_LATE,
    Answered,
    Blocked,
    Failed,
    ProviderClient,
    ProviderOutcome,
    Unknown,
    Unsent,
)
from quart_app.messages.settings import MessageSettings
from quart_app.messages.users import Users

log = structlog.get_logger(__name__)

#: Pause between two attempts to reserve while the probe of another message is on its way. A shorter pause costs more
#: commands, and a longer pause delays the messages that wait for the end of the probe.
PROBE_POLL_S = 0.02
#: The Retry-After of an answer if the failure is short, or if it is not known how long the failure lasts. A shorter
#: time brings more requests that fail again, and with a longer one clients wait for longer than they need.
SHORT_RETRY_AFTER_MS = 1_000
#: The largest number of tries to record the outcome of a reservation in Redis. If all fail, the quota treats the
#: reservation as that of a sender that died. More tries outlast a longer failure of Redis, and delay the answer.
MOST_TRIES_TO_RECORD = 3
#: The largest number of times that one message reserves again because the free provider has opened just before the
#: payment. After that it is paid for, so that a message cannot go round forever. A larger number avoids more payments,
#: and delays some messages.
MOST_REOPENINGS = 3


@dataclass(frozen=True, slots=True)
class ProviderReply:
    """The result of a delivered message: which provider took it, and that provider's reply."""

    provider: Literal["free", "paid"]
    response: str


class Undelivered(Problem):
    """The message was not delivered; `metrics_label` is the reason under which it is counted."""

    def __init__(self, status: int, detail: str, *, metrics_label: str, retry_after_ms: int | None = None) -> None:
        super().__init__(status, detail, retry_after=None if retry_after_ms is None else retry_after_ms / 1000)
        self.metrics_label = metrics_label


@dataclass(slots=True)
class OutgoingMessage:
    """A message that is being delivered, and what has happened to it so far."""

    id: str
    user_id: str
    text: str
    #: until this `time.monotonic()` it may wait for the free provider instead of using the paid one; `MessageIntake`
    #: gets it from the client's `max_wait_ms`
    wait_until_s: float
    #: whether the free provider has refused it, although our count allowed it
    was_refused: bool = False
    #: whether a provider has or may have it; then no request with its idempotency key may send it again
    may_have_arrived: bool = False
    #: how often it may still reserve again because the free provider has just opened
    reopenings_left: int = MOST_REOPENINGS

    @property
    def wait_left_ms(self) -> float:
        return max(0.0, (self.wait_until_s - time.monotonic()) * 1000)


class Turn:
    """The right to reserve a slot. One message of a replica has it at a time, until its whole request is sent.

    So when a replica is killed, at most one slot is reserved and not used. There may be more while the free provider is
    unreachable: see `Delivery._free_is_reachable`. Only the message with the turn asks Redis again and again while a
    probe is on its way.

    Each reservation has a `Turn` object of its own, and all these objects share one lock.
    """

    def __init__(self, lock: asyncio.Lock) -> None:
        self._lock = lock
        self._is_taken = False

    async def take(self, give_up_at_s: float) -> bool:
        """Wait for the turn, but not beyond this time of the loop's clock. Return whether it came."""
        try:
            async with asyncio.timeout_at(give_up_at_s):
                self._is_taken = await self._lock.acquire()
        except TimeoutError:
            return False
        return True

    def pass_on(self) -> None:
        """Give the turn to the next message. A second call does nothing."""
        if self._is_taken:
            self._is_taken = False
            self._lock.release()


@dataclass(slots=True)
class Delivery:
    """Delivers the messages of one replica. `MessageIntake` calls it once for each message."""

    quota: Quota
    free_provider: ProviderClient
    paid_provider: ProviderClient
    users: Users
    metrics: MessageMetrics
    settings: MessageSettings
    #: `MessageIntake` sets it when the membership ends; then no message waits for the free provider any longer
    leaving: asyncio.Event = field(default_factory=asyncio.Event)
    #: the lock that all `Turn` objects share
    _turn_lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    #: Whether the last request reached the free provider. While the provider is unreachable, a message passes its turn
    #: on as soon as it has a slot. So the other messages do not wait for its time-out.
    _free_is_reachable: bool = True

    async def close(self) -> None:
        """Close the connections to both providers."""
        await self.free_provider.close()
        await self.paid_provider.close()

    async def deliver(self, message: OutgoingMessage, claim: KeyClaim) -> ProviderReply:
        """Deliver one message: reserve and decide, again and again, until it is sent. Raises Undelivered, MeshError."""
        while True:
            verdict, turn = await self._reserve()
            # A granted slot needs no paid access. So the account is not read then, and `next_step` ignores the False.
            may_pay = not isinstance(verdict, Granted) and await self._has_paid_access(message)
            match next_step(verdict, message.wait_left_ms, has_paid_access=may_pay, was_refused=message.was_refused):
                case SendFree(reservation):
                    try:
                        reply = await self._try_free(message, claim, reservation, turn.pass_on)
                    finally:
                        turn.pass_on()
                    if reply is not None:
                        return reply
                case WaitForFree(wait_ms):
                    await self._sleep_unless_leaving(wait_ms / 1000)
                case Pay(reason):
                    if not await self._should_reserve_again(message, verdict, reason):
                        return await self._pay(message, claim, reason)
                case Refuse(retry_after_ms):
                    detail = "the free provider is closed, and this account has no paid access"
                    raise Undelivered(403, detail, metrics_label="no-paid-access", retry_after_ms=retry_after_ms)

    async def _has_paid_access(self, message: OutgoingMessage) -> bool:
        """Read from Redis whether the account has paid access: it may have lost this right since the login."""
        user = await self.users.find(message.user_id)
        return user is not None and user.paid_access

    async def _reserve(self) -> tuple[Verdict, Turn]:
        """Reserve a slot; while the probe of another message is on its way, wait for its outcome.

        The caller has the turn if the slot is granted and the free provider is reachable, and must pass it on.
        """
        give_up_at_s, turn = (
            asyncio.get_running_loop().time() + self.settings.probe_wait_ms / 1000,
            Turn(self._turn_lock),
        )
        if not await turn.take(give_up_at_s):
            # The messages before this one took too long. `Probing` makes `next_step` decide as if a probe took too
            # long. This message has not tried to reserve, so the allowance is only read.
            return Probing(await self.quota.look()), turn
        # `verdict` stays None if `quota.reserve` raises an error; then the turn is passed on, too.
        verdict: Verdict | None = None
        try:
            verdict = await self.quota.reserve()
            while isinstance(verdict, Probing) and asyncio.get_running_loop().time() < give_up_at_s:
                await self._sleep_unless_leaving(PROBE_POLL_S)
                verdict = await self.quota.reserve()
            return verdict, turn
        finally:
            if not isinstance(verdict, Granted) or not self._free_is_reachable:
                turn.pass_on()

    async def _sleep_unless_leaving(self, seconds: float) -> None:
        """Sleep. Raises Undelivered if the replica leaves in the meantime."""
        try:
            async with asyncio.timeout(seconds):
                await self.leaving.wait()
        except TimeoutError:
            return
        raise Undelivered(
            503,
            "this replica is leaving; retry after 1 s",
            metrics_label="leaving",
            retry_after_ms=SHORT_RETRY_AFTER_MS,
        )

    async def _try_free(
        self, message: OutgoingMessage, claim: KeyClaim, reservation: Reservation, pass_turn_on: Callable[[], None]
    ) -> ProviderReply | None:
        """Send to the free provider, and pay if it does not work. Return None if the message needs a new slot.

        `pass_turn_on` is called when the request is sent, or when the first try could not send it.
        """
        try:
            await self._begin_sending(claim)
        except (MeshError, Undelivered):
            await self._record_outcome(self.quota.unsent, reservation)
            raise
        outcome = await self._send("free", self.free_provider, message, reservation.may_send, pass_turn_on)
        # TOO_LATE: this process was too slow, and the slot expired. That says nothing against the provider.
        self._free_is_reachable = not isinstance(outcome, Unsent) or outcome.cause == TOO_LATE
        match outcome:
            case Answered(response):
                await self._record_outcome(self.quota.used, reservation)
                # "open" is the reason of each delivery by the free provider; those of a payment are `Reason`.
                return self._count_and_build_reply("free", "open", response)
            case Blocked(retry_after_ms):
                # The provider itself says that it is closed. The next round reserves again, and waits, pays or refuses.
                log.warning("the free provider refused a counted request", retry_after_ms=retry_after_ms)
                message.was_refused = True
                if not await self._record_outcome(
                    lambda granted: self.quota.refused(granted, retry_after_ms), reservation
                ):
                    # The allowance still counts the provider as open, so another round might only be refused again.
                    raise Unavailable("the shared allowance cannot be used: Redis failed; try again")
                return None
            case Unsent(cause):
                await self._record_outcome(self.quota.unsent, reservation)
                # After TOO_LATE the message tries to get another slot.
                return None if cause == TOO_LATE else await self._pay_if_allowed(message, claim, "unreachable", cause)
            case Failed(cause):
                await self._record_outcome(self.quota.uncertain, reservation)
                return await self._pay_if_allowed(message, claim, "failed", cause)
            case Unknown(cause):
                await self._record_outcome(self.quota.uncertain, reservation)
                raise _unknown_arrival("free", cause)
        raise AssertionError("every outcome has its case")

    async def _pay_if_allowed(
        self, message: OutgoingMessage, claim: KeyClaim, reason: Reason, cause: str
    ) -> ProviderReply:
        """Pay for a message that the free provider did not get or could not handle, if the account has paid access."""
        if await self._has_paid_access(message):
            return await self._pay(message, claim, reason)
        raise Undelivered(502, f"the free provider cannot be used ({cause}); try again later", metrics_label=reason)

    async def _record_outcome(
        self, quota_method: Callable[[Reservation], Awaitable[Allowance]], reservation: Reservation
    ) -> bool:
        """Record the outcome of a reservation with a method of the quota. Return whether Redis took it.

        Only a refusal must be recorded before the next round. For every other outcome, the quota may treat the
        reservation as that of a sender that died.
        """
        for try_number in range(1, MOST_TRIES_TO_RECORD + 1):
            try:
                await quota_method(reservation)
                return True
            except MeshError as error:
                log.warning("outcome of a free request not recorded", error=str(error), tries=try_number)
            if try_number < MOST_TRIES_TO_RECORD:
                # Redis may answer again after a pause. The pause grows with each try: 0.1, 0.2 s.
                await asyncio.sleep(0.1 * try_number)
        return False

    async def _should_reserve_again(self, message: OutgoingMessage, verdict: Verdict, reason: Reason) -> bool:
        """Return whether to reserve again instead of paying, because the free provider has opened in the meantime.

        If the message is paid for, log why. A payment while the free provider may be open also counts as avoidable. In
        this case the log has `caution`: how many messages must go one by one until the count is certain.
        """
        allowance = await self.quota.look()
        # No request could be sent to the free provider now.
        if allowance.remaining == 0:
            # The log keeps the time (Redis's clock) at which the free provider was closed, as the proof that the
            # payment was needed.
            log.info("a message is paid for", message_id=message.id, reason=reason, looked_ms=allowance.now_ms)
            return False
        # After `Probing` the message does not reserve again: it has already waited for the probe as long as it may.
        if isinstance(verdict, Closed) and message.reopenings_left > 0:
            message.reopenings_left -= 1
            return True
        log.warning("paying although the free provider may be open", reason=reason, caution=allowance.caution)
        self.metrics.paid_avoidable.inc()
        return False

    async def _pay(self, message: OutgoingMessage, claim: KeyClaim, reason: Reason) -> ProviderReply:
        """Send to the paid provider. Raises Undelivered if it did not reply to the message."""
        # A try to send to the free provider may come before, and the time of the claim may have ended during that try.
        await self._begin_sending(claim)
        match await self._send("paid", self.paid_provider, message):
            case Answered(response):
                return self._count_and_build_reply("paid", reason, response)
            case Blocked(provider_retry_ms):
                retry_after_ms = provider_retry_ms or SHORT_RETRY_AFTER_MS
                detail = "the free and the paid provider are closed"
                raise Undelivered(503, detail, metrics_label="paid-blocked", retry_after_ms=retry_after_ms)
            case Unsent(cause):
                raise Undelivered(502, f"neither provider can be reached ({cause})", metrics_label="unreachable")
            case Failed(cause):
                raise Undelivered(502, f"the paid provider failed ({cause})", metrics_label="failed")
            case Unknown(cause):
                raise _unknown_arrival("paid", cause)
        raise AssertionError("every outcome has its case")

    async def _begin_sending(self, claim: KeyClaim) -> None:
        """Record in the claim that a provider may have the message from now on.

        Raises Undelivered if the claim is over, because another request may have taken it over.
        """
        if not await claim.begin_sending():
            detail = "another request delivers this message; retry with its Idempotency-Key after 1 s"
            raise Undelivered(503, detail, metrics_label="taken-over", retry_after_ms=SHORT_RETRY_AFTER_MS)

    async def _send(
        self,
        provider_name: str,
        client: ProviderClient,
        message: OutgoingMessage,
        may_send: Callable[[], bool] = lambda: True,
        pass_turn_on: Callable[[], None] = lambda: None,
    ) -> ProviderOutcome:
        # The default arguments are for the paid provider, which needs neither a reservation nor a turn.
        send_started_at_s = time.perf_counter()
        outcome = await client.send(message.id, message.text, may_send, pass_turn_on)
        self.metrics.count_outcome(provider_name, outcome, time.perf_counter() - send_started_at_s)
        # `Failed` counts, too: the provider has received the request.
        message.may_have_arrived = message.may_have_arrived or isinstance(outcome, Answered | Failed | Unknown)
        return outcome

    def _count_and_build_reply(
        self, provider_name: Literal["free", "paid"], reason: str, response: str
    ) -> ProviderReply:
        """Count a delivered message, and return its reply."""
        self.metrics.delivered.labels(provider_name, reason).inc()
        return ProviderReply(provider_name, response)


def _unknown_arrival(provider_name: str, cause: str) -> Undelivered:
    """Return the error for a message that the provider may have or may not have."""
    return Undelivered(
        502,
        f"the {provider_name} provider did not answer ({cause}); whether it has the message is not known",
        metrics_label="unknown",
    )
