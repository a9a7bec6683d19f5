"""What `mesh up` prints, whoever reads it or does not."""

from __future__ import annotations

import io
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import pytest

from quart_app.local.teller import Teller, roster_table
from quart_app.logs import MOST_BYTES
from tests.support.dashboard import member


@pytest.fixture
def pipe() -> Iterator[tuple[int, IO[str]]]:
    """A pipe: the descriptor that reads, and a stream that leads to it."""
    reading, writing = os.pipe()
    with open(writing, "w") as stream:
        yield reading, stream
    os.close(reading)


def test_lines_come_in_their_order_with_the_time(pipe: tuple[int, IO[str]], monkeypatch: pytest.MonkeyPatch) -> None:
    """All of them, by the end; a table is drawn for a reader that is no terminal."""
    reading, stream = pipe
    monkeypatch.setattr(sys, "stdout", stream)
    teller = Teller()
    for number in range(3):
        teller.say(f"line {number} [bold]")
    teller.show(roster_table([member(1)], 200))
    teller.close()
    *lines, _ = os.read(reading, 1 << 16).decode().split("\n")
    assert [line[9:] for line in lines[:3]] == ["line 0 [bold]", "line 1 [bold]", "line 2 [bold]"]
    assert any("ready" in line for line in lines)


def test_a_reader_that_does_not_read_delays_nobody(pipe: tuple[int, IO[str]], monkeypatch: pytest.MonkeyPatch) -> None:
    """The test prints more than fits into the pipe and the waiting lines. The next read says how many were left out."""
    reading, stream = pipe
    monkeypatch.setattr(sys, "stdout", stream)
    teller = Teller()
    began = time.monotonic()
    for _ in range(MOST_BYTES // 50_000 + 10):
        teller.say("x" * 50_000)
    teller.close()
    assert time.monotonic() - began < 10
    found, until = b"", time.monotonic() + 20
    while b"lines left out: nobody read them)" not in found and time.monotonic() < until:
        found = found[-100:] + os.read(reading, 1 << 16)
    assert b"lines left out: nobody read them)" in found


def test_without_a_reader_nothing_is_raised(pipe: tuple[int, IO[str]], monkeypatch: pytest.MonkeyPatch) -> None:
    """The reading end is closed: as after `mesh up | head`."""
    reading, stream = pipe
    os.dup2(os.open(os.devnull, os.O_RDONLY), reading)
    monkeypatch.setattr(sys, "stdout", stream)
    teller = Teller()
    teller.say("nobody hears it")
    teller.close()


@pytest.mark.parametrize("stream", [None, io.StringIO()])
def test_without_a_stream_nothing_is_raised(stream: IO[str] | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """The stream was closed when the process began, or has no descriptor."""
    monkeypatch.setattr(sys, "stdout", stream)
    teller = Teller()
    teller.say("nobody hears it")
    teller.close()


def test_a_full_disk_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """The device /dev/full takes nothing."""
    with Path("/dev/full").open("w") as full:
        monkeypatch.setattr(sys, "stdout", full)
        teller = Teller()
        teller.say("no room")
        teller.close()
