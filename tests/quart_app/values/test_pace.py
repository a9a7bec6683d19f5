"""Sharing the event loop: how long it is held, and in which order pieces of work get their turn."""

from __future__ import annotations

import asyncio
import time

import pytest

from quart_app.values.pace import MOST_TURN_S, MOST_WOKEN_PIECES, Pace
from tests.support.beats import Beats


def compute(seconds: float) -> None:
    end = time.thread_time() + seconds
    while time.thread_time() < end:
        pass


async def test_pieces_that_are_ready_together_run_in_several_turns() -> None:
    """A hundred pieces of a millisecond hold the loop for a few of them at a time, not for all."""
    pace, beats = Pace(), Beats()

    async def work() -> None:
        await pace()
        compute(0.001)

    beating = asyncio.create_task(beats.run())
    await asyncio.gather(*(work() for _ in range(100)))
    beating.cancel()
    assert 0.001 < beats.longest_s < MOST_TURN_S + 0.005


async def test_pieces_get_their_turn_in_the_order_in_which_they_came() -> None:
    """Nobody waits while others pass by again and again."""
    pace = Pace(most_s=0.0005)
    done: list[int] = []

    async def work(number: int) -> None:
        await pace()
        compute(0.001)
        done.append(number)

    await asyncio.gather(*(work(number) for number in range(100)))
    assert done == sorted(done)


async def test_a_piece_that_is_cancelled_while_it_waits_holds_nobody_up() -> None:
    """The place of a cancelled piece is given to the next one."""
    pace = Pace(most_s=0.0)

    async def work() -> bool:
        await pace()
        return True

    first, *others = [asyncio.create_task(work()) for _ in range(5)]
    waiting = others[1]
    await asyncio.sleep(0)
    waiting.cancel()
    done = await asyncio.wait_for(asyncio.gather(first, *others, return_exceptions=True), 1)
    assert [one for one in done if one is True] == [True] * 4
    assert waiting.cancelled()


async def test_pieces_that_are_cancelled_when_they_are_woken_hold_nobody_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """All pieces that one turn wakes are cancelled before they run; the others get the next turn."""
    pace, begin_turn = Pace(), Pace._begin_turn
    pieces: list[asyncio.Future[None]] = []

    def begin_turn_and_cancel(self: Pace) -> None:
        begin_turn(self)
        for piece in pieces[:MOST_WOKEN_PIECES]:
            piece.cancel()

    monkeypatch.setattr(Pace, "_begin_turn", begin_turn_and_cancel)
    pace._full_at_s = -1  # this turn is full
    pieces += [asyncio.ensure_future(pace()) for _ in range(MOST_WOKEN_PIECES + 3)]
    await asyncio.wait_for(asyncio.gather(*pieces[MOST_WOKEN_PIECES:]), 1)
    assert all(piece.cancelled() for piece in pieces[:MOST_WOKEN_PIECES])
