"""Free ports of the loopback address."""

from __future__ import annotations

import contextlib
import random
import socket
from collections import deque

from quart_app.local.errors import LocalError

#: Ports outside the range that Linux, macOS and Windows use for outgoing connections by default.
PORT_RANGE = (12_000, 32_000)
#: Numbers that no seed determines. With the generator of the module `random`, a program that seeds it would choose the
#: same ports in each of its processes.
_SYSTEM_RANDOM = random.SystemRandom()
#: The last 1000 ports that `free_ports` returned. Programs that use these ports may not have bound them yet, so
#: `free_ports` returns other ports. With a smaller number it might return them again too early; with a larger one,
#: fewer ports are left.
_returned_lately: deque[int] = deque(maxlen=1000)


def free_port(wanted: int = 0) -> int:
    """Return the wanted port if it is free on the loopback address, else any free one; 0 wants none."""
    if wanted and is_free(wanted):
        return wanted
    return free_ports(1)[0]


def is_free(port: int) -> bool:
    """Return whether nothing listens on this port of the loopback address."""
    with contextlib.suppress(OSError), socket.create_server(("127.0.0.1", port)):
        return True
    return False


def free_ports(count: int) -> list[int]:
    """Return different free ports that were not returned recently. Raises LocalError if there are too few."""
    # Each port stays bound until all are found.
    with contextlib.ExitStack() as stack:
        ports: list[int] = []
        for port in _SYSTEM_RANDOM.sample(range(*PORT_RANGE), 20 * count):  # more than needed, as some may be taken
            if port in _returned_lately:
                continue
            with contextlib.suppress(OSError):  # the port is taken
                stack.enter_context(socket.create_server(("127.0.0.1", port)))
                ports.append(port)
            if len(ports) == count:
                _returned_lately.extend(ports)
                return ports
    raise LocalError(f"there are not {count} free ports on 127.0.0.1")
