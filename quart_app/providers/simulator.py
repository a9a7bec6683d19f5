"""The two message providers of the task, as real HTTP servers.

POST /       {"message": "..."}   200 {"provider": "free", "response": "..."}
                                  429 with Retry-After while the free provider blocks
GET  /calls                       the requests so far, the latest last, for people and tests
GET  /health                      204
"""

from __future__ import annotations

import asyncio
import math
import time
from collections import deque
from dataclasses import asdict, dataclass, field
from email.utils import formatdate
from typing import Annotated, Literal

from pydantic import BaseModel, StringConstraints, TypeAdapter
from quart import Quart, Response, jsonify, request

from quart_app.http import problems
from quart_app.http.body import read_json
from quart_app.http.problems import Problem
from quart_app.providers.window import Window

#: The most calls that are listed, so that the memory stays bounded. Older ones are dropped, but still counted.
MOST_CALLS_KEPT = 10_000


class Message(BaseModel):
    """The body of a request to a provider. It may be longer than any message that the message service accepts."""

    message: Annotated[str, StringConstraints(min_length=1, max_length=100_000)]


@dataclass(frozen=True, slots=True)
class Call:
    """One request that the provider received, whether it accepted the request or not."""

    #: epoch seconds
    at: float
    message: str
    outcome: Literal["taken", "refused"]
    #: the Idempotency-Key of the request; "" without one
    id: str = ""


@dataclass(slots=True)
class Provider:
    """One provider. The free one has a window; the paid one accepts every request."""

    kind: Literal["free", "paid"]
    window: Window | None = None
    #: how long an accepted request takes
    latency_s: float = 0.05
    #: the form of Retry-After (RFC 9110); both forms round up to whole seconds
    retry_after_form: Literal["seconds", "date"] = "seconds"
    #: how many requests were accepted (`taken`) and refused since the start
    taken: int = 0
    refused: int = 0
    calls: deque[Call] = field(default_factory=lambda: deque(maxlen=MOST_CALLS_KEPT))

    def receive(self, message: str, id: str = "") -> float | None:
        """Accept or refuse a request, and count it. Return the seconds until the block ends, or None if it is accepted.

        `id` is its Idempotency-Key.
        """
        wait_s = self.window.take(time.monotonic()) if self.window else None
        self.calls.append(Call(time.time(), message, "taken" if wait_s is None else "refused", id))
        if wait_s is None:
            self.taken += 1
        else:
            self.refused += 1
        return wait_s

    def refusal(self, wait_s: float) -> Problem:
        """Return the 429 for a caller that is blocked."""
        seconds = max(1, math.ceil(wait_s))
        retry_after_text = (
            str(seconds) if self.retry_after_form == "seconds" else formatdate(time.time() + seconds, usegmt=True)
        )
        return Problem(
            429,
            "the free requests are used up; retry after the time in Retry-After",
            headers={"Retry-After": retry_after_text},
        )


def create_app(provider: Provider) -> Quart:
    """Return the HTTP application of one provider."""
    app = Quart(__name__)
    problems.install(app)

    @app.post("/")
    async def take() -> Response:
        message = (await read_json(TypeAdapter(Message))).message
        wait_s = provider.receive(message, request.headers.get("Idempotency-Key", ""))
        if wait_s is not None:
            raise provider.refusal(wait_s)
        await asyncio.sleep(provider.latency_s)
        return jsonify({"provider": provider.kind, "response": f"handled by the {provider.kind} provider: {message}"})

    @app.get("/calls")
    async def calls() -> Response:
        shown_calls = [asdict(call) for call in provider.calls]
        return jsonify({"taken": provider.taken, "refused": provider.refused, "calls": shown_calls})

    @app.get("/health")
    async def health() -> tuple[str, int]:
        return "", 204

    return app
