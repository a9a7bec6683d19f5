"""Closing a listening socket without losing a connection.

Whoever has connected but was not accepted yet is reset when the socket is closed; a balancer then cannot know
whether its POST was begun. So the door is shut in a moment when nobody stands before it, and who is inside may
still speak:

    open -> nobody waits to be accepted -> refusing: the kernel says so at once, and a balancer goes elsewhere
         -> whoever had connected has said what for -> closed
"""

from __future__ import annotations

import asyncio
import contextlib
import select
import socket
import time


async def last_call(listening: socket.socket, settle_s: float) -> None:
    """Refuse newcomers, and return when whoever had connected has been heard: now the socket may be closed.

    `settle_s` is the longest time from a connection to its request; where it is 0 nothing happens. The refusal holds
    for the socket in whatever process: it must not be one that others accept from.
    """
    if settle_s <= 0:
        return
    until = time.monotonic() + settle_s
    while _somebody_waits(listening) and time.monotonic() < until:
        await asyncio.sleep(0)  # the event loop accepts them
    # Nothing is awaited between the look and the act.
    with contextlib.suppress(OSError):  # never listened
        listening.shutdown(socket.SHUT_RDWR)
    await asyncio.sleep(settle_s)


def _somebody_waits(listening: socket.socket) -> bool:
    poll = select.poll()
    poll.register(listening, select.POLLIN)
    return any(event & select.POLLIN for _, event in poll.poll(0))
