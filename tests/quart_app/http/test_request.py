"""Requests as Quart sees them: headers, and bodies that are asked for when they are read."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from prometheus_client import CollectorRegistry
from quart import Response, jsonify, request
from werkzeug.exceptions import BadRequest, RequestEntityTooLarge

from quart_app.http.application import Application
from quart_app.http.body import read_json
from quart_app.http.clients import Occupancy
from quart_app.http.metrics import RequestMetrics
from quart_app.http.problems import Problem
from quart_app.http.request import BODY_HAS_ARRIVED, RequestBody, headers_of
from tests.support.serving import raw, served, settings


def part(data: bytes, *, more: bool = True) -> dict[str, Any]:
    return {"type": "http.request", "body": data, "more_body": more}


def body_of(*messages: dict[str, Any], most: int = 100, occupied: Occupancy | None = None) -> RequestBody:
    """A body whose parts come as these messages."""
    coming = iter(messages)

    async def receive() -> Any:
        return next(coming)

    body = RequestBody(None, most)
    body.start_counting(receive, {"extensions": {}}, occupied or Occupancy(1000, 1000), "ada")  # type: ignore[arg-type, typeddict-item]
    return body


async def test_a_body_is_read_whole_or_in_parts() -> None:
    """A body is asked for only as far as it is read."""
    messages = part(b"one "), part(b""), part(b"two", more=False)
    assert await body_of(*messages) == b"one two"
    assert [data async for data in body_of(*messages)] == [b"one ", b"two"]
    assert await anext(aiter(body_of(part(b"one ")))) == b"one "


@pytest.mark.parametrize(
    ("messages", "error"),
    [
        ([part(b"a" * 60), part(b"a" * 60)], RequestEntityTooLarge),
        ([part(b"a" * 20), part(b"a" * 20), part(b"a" * 20)], Problem),
        ([part(b"a"), {"type": "http.disconnect"}], BadRequest),
    ],
)
async def test_a_body_that_is_refused_raises_wherever_it_is_read(
    messages: list[dict[str, Any]], error: type[Exception]
) -> None:
    """A body is refused if it is too long, if too many bytes are in progress, or if its client has gone."""
    for whole in (True, False):
        occupied = Occupancy(1000, 50 if error is Problem else 1000)
        body = body_of(*messages, occupied=occupied)
        with pytest.raises(error):
            _ = await body if whole else [data async for data in body]
        body.stop_counting()
        assert occupied.total == 0


def test_headers_are_found_by_any_case() -> None:
    """The client's address is beside them, before a header of that name that the client sends."""
    headers = [(b"x-one", b"1"), (b"x-two", b"\xe9"), (b"remote-addr", b"forged")]
    found = headers_of({"client": ("192.0.2.1", 1), "headers": headers})  # type: ignore[typeddict-item]
    assert (found.get("X-ONE"), found["x-two"], found.get("Remote-Addr")) == ("1", "é", "192.0.2.1")
    assert headers_of({"headers": []}).get("remote-addr") == "<local>"  # type: ignore[typeddict-item]


async def test_a_body_that_has_arrived_is_read_without_a_timer(monkeypatch: pytest.MonkeyPatch) -> None:
    """Most bodies arrive with their heads; others have a time limit."""
    app = Application("test", settings(), RequestMetrics(CollectorRegistry()), is_leaving=lambda: False)
    told: list[bool] = []

    class Anything:
        def validate_python(self, value: Any, *, strict: bool) -> Any:
            return value

    @app.post("/")
    async def echo() -> Response:
        told.append(request.scope["extensions"][BODY_HAS_ARRIVED]())  # type: ignore[typeddict-item]
        monkeypatch.setattr(asyncio, "timeout", None if told[-1] else timeout)
        try:
            return jsonify(await read_json(Anything()))
        finally:
            monkeypatch.setattr(asyncio, "timeout", timeout)

    timeout = asyncio.timeout
    ask = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 3\r\n"
    async with served(app) as address:
        assert (await raw(address, ask + b"Connection: close\r\n\r\n[1]")).endswith(b"\r\n\r\n[1]\n")
        assert (await raw(address, ask + b"Connection: close\r\n\r\n", b"[1]", pause_s=0.1)).endswith(b"\r\n\r\n[1]\n")
    assert told == [True, False]
