"""Closing a listening socket without losing a connection.

When a socket is closed, the kernel resets connections that were not accepted yet. A balancer then cannot know whether
its POST was begun. So the replica stops listening while its accept queue is empty, and still reads from open
connections:

    open -> the accept queue is empty -> refusing: the kernel refuses new connections, and a balancer goes elsewhere
         -> accepted connections had time to send their request -> closed
"""

from __future__ import annotations

import asyncio
import contextlib
import select
import socket
import time


async def stop_accepting(listening_socket: socket.socket, request_wait_s: float) -> None:
    """Refuse new connections, and return when accepted ones had time to send their request.

    The caller can then close the socket. `request_wait_s` is how long an accepted connection may take to send its
    request; with 0 this function does nothing. It also bounds the wait until all connections are accepted, so the whole
    can take twice as long. The refusal applies to the socket in every process, so no other process may accept from it.
    """
    if request_wait_s <= 0:
        return
    give_up_at_s = time.monotonic() + request_wait_s
    while _accept_queue_has_connection(listening_socket) and time.monotonic() < give_up_at_s:
        await asyncio.sleep(0)  # the event loop accepts them
    # Between the last check and the next line, no await is allowed: a client could connect meanwhile.
    refuse_connections(listening_socket)
    await asyncio.sleep(request_wait_s)


def refuse_connections(listening_socket: socket.socket) -> None:
    """Let the kernel refuse new connections, and reset those that were not accepted yet."""
    with contextlib.suppress(OSError):  # never listened, or refuses already
        listening_socket.shutdown(socket.SHUT_RDWR)


def _accept_queue_has_connection(listening_socket: socket.socket) -> bool:
    """Return whether a connection waits to be accepted: then a listening socket can be read from."""
    poll = select.poll()
    poll.register(listening_socket, select.POLLIN)
    return any(events & select.POLLIN for _, events in poll.poll(0))
