"""Closing a listening socket without losing a connection.

Whoever connects a moment before `close()` is accepted by the kernel and reset unread; a balancer then cannot know
whether its POST was begun. So the door is closed first, with the people inside still served:

    open -> (SYN packets are dropped: nobody new) -> whoever had connected is accepted -> closed: refused

A client whose SYN was dropped sends it again after a second, is refused, and goes elsewhere with nothing lost.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import socket
import struct
import sys
from collections.abc import Iterable

SO_ATTACH_FILTER = 26
#: Byte 13 of a TCP header holds the flags; SYN is 2. Drop what has it, keep the rest (four classic BPF instructions).
_LOAD_FLAGS = (0x30, 0, 0, 13)
_IS_SYN = (0x45, 0, 1, 0x02)
_DROP = (0x06, 0, 0, 0)
_KEEP = (0x06, 0, 0, 0xFFFFFFFF)
_PROGRAM = b"".join(struct.pack("HBBI", *step) for step in (_LOAD_FLAGS, _IS_SYN, _DROP, _KEEP))


def refuse_new(listening: socket.socket) -> bool:
    """Let nobody new connect; True where the kernel can do that (Linux).

    It holds for the socket, in whatever process: never for one that other processes accept from, too.
    """
    if sys.platform != "linux" or listening.family not in {socket.AF_INET, socket.AF_INET6}:
        return False
    program = ctypes.create_string_buffer(_PROGRAM)
    argument = struct.pack("HL", len(_PROGRAM) // 8, ctypes.addressof(program))
    with contextlib.suppress(OSError):
        listening.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, argument)
        return True
    return False


async def last_call(listening: Iterable[socket.socket], settle_s: float) -> None:
    """Refuse newcomers, and return when whoever had connected has been heard: now the sockets may be closed.

    `settle_s` is the longest time from a connection to its request. Nothing happens where it is 0.
    """
    if settle_s > 0 and [each for each in listening if refuse_new(each)]:
        await asyncio.sleep(settle_s)
