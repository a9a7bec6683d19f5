"""The sockets that a replica listens on, and the address that others reach it at."""

from __future__ import annotations

import contextlib
import socket
from dataclasses import dataclass

from quart_app.settings import AppSettings

#: Connections that the kernel keeps for us until we accept them.
BACKLOG = 1024


@dataclass(slots=True)
class Sockets:
    """A replica's listening sockets."""

    public: socket.socket
    private: socket.socket
    #: a socket that several replicas of this machine accept from
    common: socket.socket | None
    host: str

    def address(self, listening: socket.socket) -> str:
        """Return the `host:port` that other processes reach this socket at."""
        return f"{self.host}:{listening.getsockname()[1]}"

    def close(self) -> None:
        for listening in (self.public, self.private, self.common):
            if listening is not None:
                listening.close()


def listen(settings: AppSettings) -> Sockets:
    """Open the ports. Raises OSError, with the address in its text, if a port is taken."""
    public = _open(settings.host, settings.port, listening=not settings.listen_when_ready)
    try:
        private = _open(settings.host, settings.private_port)
    except OSError:
        public.close()
        raise
    common = socket.socket(fileno=settings.listen_fd) if settings.listen_fd >= 0 else None
    return Sockets(public, private, common, settings.advertise_host or _reachable_at(settings.host))


def _open(host: str, port: int, *, listening: bool = True) -> socket.socket:
    """Bind a socket to this address. If it does not listen yet, the kernel refuses connections to it."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        if listening:
            return socket.create_server((host, port), family=family, backlog=BACKLOG)
        return _bind(family, host, port)
    except OSError as error:
        raise OSError(error.errno, f"cannot listen on {host}:{port}: {error.strerror}") from error


def _bind(family: socket.AddressFamily, host: str, port: int) -> socket.socket:
    bound = socket.socket(family)
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind((host, port))
    except OSError:
        bound.close()
        raise
    return bound


def _reachable_at(host: str) -> str:
    if host not in {"0.0.0.0", "::"}:
        return host
    with contextlib.suppress(OSError):
        return socket.gethostbyname(socket.gethostname())
    return "127.0.0.1"
