"""Logs: what is written, and what never is."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time

import pytest

from mesh.requests.tracing import CALL, TRACEPARENT
from quart_app import logs

SECRET = "wombat-4711"

#: Raises inside every route of every service, while local variables hold what the client sent.
RAISING = f"""
import asyncio, sys
from quart import request
from mesh.requests.tracing import CALL, TRACEPARENT
from quart_app import logs
from quart_app.settings import AppSettings
from tests.support.nodes import applications

async def broken(**path):
    body, headers = await request.get_data(), dict(request.headers)
    raise RuntimeError("broken")

async def main():
    logs.configure(AppSettings(log_format=sys.argv[1]))
    app = applications(services="values,addresses,messages,grades,movements")
    for quart in (app.public, app.private):
        quart.before_request_funcs.clear()
        for rule in list(quart.url_map.iter_rules()):
            quart.view_functions[rule.endpoint] = broken
            path = quart.url_map.bind("x").build(rule.endpoint, dict.fromkeys(rule.arguments, "6"))
            method = next(iter(rule.methods - {{"HEAD", "OPTIONS"}}))
            headers = {{"Authorization": "Bearer {SECRET}", "Cookie": "session={SECRET}"}}
            answer = await quart.test_client().open(path, method=method, headers=headers, data=b"{SECRET}")
            print(method, path, answer.status_code)

asyncio.run(main())
"""


@pytest.mark.parametrize("log_format", ["json", "console"])
def test_an_unexpected_error_in_any_route_logs_no_secret(log_format: str) -> None:
    """The traceback has files, lines and names, and no local variables: they hold passwords, tokens and bodies."""
    done = subprocess.run(
        [sys.executable, "-c", RAISING, log_format], capture_output=True, text=True, timeout=60, check=True
    )
    answers = done.stdout.splitlines()
    assert len(answers) > 25
    assert not [answer for answer in answers if not answer.endswith(" 500")]
    assert done.stderr.count("RuntimeError") >= len(answers), "each has a traceback"
    assert "in broken" in done.stderr or '"name": "broken"' in done.stderr
    assert SECRET not in done.stderr
    if log_format == "json":
        assert all(isinstance(json.loads(line), dict) for line in done.stderr.splitlines())


def test_a_sink_writes_lines_in_their_order() -> None:
    """All of them, by the time that the process ends."""
    reading, writing = os.pipe()
    sink = logs.Sink(writing)
    for number in range(1000):
        sink.write(f"line {number} \ud800\n")
    sink.wait_until_written()
    assert os.read(reading, 1 << 16).decode().splitlines() == [f"line {number} \\ud800" for number in range(1000)]
    os.close(reading)
    os.close(writing)


def test_a_stuck_reader_delays_nobody_and_is_told_what_it_missed() -> None:
    """Lines beyond the bound are dropped and counted."""
    reading, writing = os.pipe()
    sink = logs.Sink(writing, most_bytes=1 << 18)
    began = time.monotonic()
    for _ in range(2000):
        sink.write("x" * 999 + "\n")
    sink.wait_until_written(0.1)
    assert time.monotonic() - began < 2
    os.set_blocking(reading, False)
    received = b""
    written = missed = 0
    while written + missed < 2000:
        with contextlib.suppress(BlockingIOError):
            received += os.read(reading, 1 << 16)
        lines = received.decode().splitlines(keepends=True)
        written = lines.count("x" * 999 + "\n")
        missed = sum(json.loads(line)["count"] for line in lines if line.startswith("{") and line.endswith("\n"))
        assert time.monotonic() - began < 20
    assert written < 1000 < missed
    os.close(reading)
    os.close(writing)


def test_a_stream_that_takes_nothing_for_long_takes_the_line_in_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each wait ends before the next one begins, so there may be any number of them."""
    reading, writing = os.pipe()
    waits_left, write = 2 * sys.getrecursionlimit(), os.write

    def refused(descriptor: int, data: bytes) -> int:
        nonlocal waits_left
        waits_left -= 1
        if waits_left > 0:
            raise BlockingIOError
        return write(descriptor, data)

    monkeypatch.setattr(logs.os, "write", refused)
    monkeypatch.setattr(logs.select, "select", lambda *_: ([], [], []))
    sink = logs.Sink(writing)
    sink.write("a line\n")
    sink.wait_until_written(5)
    assert os.read(reading, 100) == b"a line\n"
    os.close(reading)
    os.close(writing)


@pytest.mark.parametrize("kind", ["full", "closed", "none"])
def test_a_stream_that_takes_nothing_fails_nobody(kind: str) -> None:
    """The disk is full, the pipe is closed, or there is no stream."""
    if kind == "full":
        descriptor: int | None = os.open("/dev/full", os.O_WRONLY)
    elif kind == "closed":
        reading, descriptor = os.pipe()
        os.close(reading)
    else:
        descriptor = None
    sink = logs.Sink(descriptor)
    for _ in range(100):
        sink.write("line\n")
    sink.wait_until_written(5)
    assert sink.unreported_count == 100
    if descriptor is not None:
        os.close(descriptor)


def test_a_report_that_cannot_be_written_is_no_lost_line() -> None:
    """The next report says how many lines were lost, and no more."""
    reading, writing = os.pipe()

    def tell(count: int) -> bytes:
        os.close(reading)
        return b"report"

    sink = logs.Sink(writing, most_bytes=10, line_about_dropped=tell)
    sink.write("more than ten bytes")
    sink.write("line\n")
    sink.wait_until_written(5)
    assert sink.unreported_count == 1
    os.close(writing)


def test_a_long_text_from_outside_is_cut() -> None:
    """The name of an operation on a stream may have a megabyte, and is logged with each failure."""
    cut = logs.shorten(None, "", {"event": "handler failed", "op": "x" * 1_000_000, "exception": "y" * 30_000, "n": 1})
    assert cut["op"] == "x" * logs.MOST_TEXT + "… (1000000 characters)"
    assert cut["exception"].startswith("y" * logs.MOST_TRACEBACK) and len(cut["exception"]) < logs.MOST_TRACEBACK + 50
    assert (cut["event"], cut["n"]) == ("handler failed", 1)


def test_every_line_names_the_call_and_the_trace_that_it_belongs_to() -> None:
    """A worker sets both for each request, on whichever replica. Without them the line has neither."""
    assert logs.add_ids(None, "", {"event": "x"}) == {"event": "x"}
    trace = "0af7651916cd43dd8448eb211c80319c"
    call, parent = CALL.set("req-1"), TRACEPARENT.set(f"00-{trace}-b7ad6b7169203331-01")
    try:
        assert logs.add_ids(None, "", {"event": "x"}) == {"event": "x", "request_id": "req-1", "trace_id": trace}
    finally:
        CALL.reset(call)
        TRACEPARENT.reset(parent)
