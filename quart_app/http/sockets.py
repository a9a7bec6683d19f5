"""The sockets that a replica listens on, and the host and ports at which others reach it."""

from __future__ import annotations

import contextlib
import socket
from dataclasses import dataclass

from quart_app.settings import AppSettings, host_and_port

#: Connections that the kernel keeps for us until we accept them. Many clients may connect at the same moment. With
#: fewer places, the kernel would drop the attempts of some, and TCP would repeat these attempts a second later.
BACKLOG = 1024


@dataclass(slots=True)
class Sockets:
    """A replica's listening sockets."""

    #: the socket of this replica's own public port, which its roster row names. A balancer in front of the replicas
    #: connects to it.
    public: socket.socket
    private: socket.socket
    #: The public socket that several replicas of this machine accept from (LISTEN_FD), if there is one. Where no
    #: balancer runs, clients connect to this one, and any of the replicas serves them.
    common: socket.socket | None
    #: the host at which other processes reach this replica
    host: str

    def address(self, sock: socket.socket) -> str:
        """Return the `host:port` that other processes reach this socket at."""
        return host_and_port(self.host, sock.getsockname()[1])

    def close(self) -> None:
        for sock in (self.public, self.private, self.common):
            if sock is not None:
                sock.close()


def listen(settings: AppSettings) -> Sockets:
    """Open the ports. Raises OSError, with the address in its text, if a port is taken."""
    # With `listen_when_ready`, `process` lets the public socket listen once this replica is ready.
    public = _open(settings.host, settings.port, should_listen=not settings.listen_when_ready)
    try:
        private = _open(settings.host, settings.private_port)
    except OSError:
        public.close()
        raise
    common = socket.socket(fileno=settings.listen_fd) if settings.listen_fd >= 0 else None
    host = settings.advertise_host.strip("[]") or _find_reachable_host(settings.host)
    return Sockets(public, private, common, host)


def _open(host: str, port: int, *, should_listen: bool = True) -> socket.socket:
    """Return a socket that is bound to this address. Unless it listens, the kernel refuses connections to it."""
    try:
        sock = _bind(host, port)
        if should_listen:
            sock.listen(BACKLOG)
        return sock
    except OSError as error:
        raise OSError(error.errno, f"cannot listen on {host_and_port(host, port)}: {error.strerror}") from error


def _bind(host: str, port: int) -> socket.socket:
    """Return a socket that is bound to this address, and does not listen yet. Raises OSError."""
    sock = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if ":" in host:
            # "::" must stand for the addresses of IPv4, too, because health checks ask 127.0.0.1.
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0 if host == "::" else 1)
        sock.bind((host, port))
    except OSError:
        sock.close()
        raise
    return sock


#: By host that stands for all addresses of this machine: destinations outside of it. For each of these destinations the
#: kernel chooses one of our addresses as the source. They are reserved for documentation, and nothing is sent to them.
EXAMPLE_DESTINATIONS = {
    "0.0.0.0": [(socket.AF_INET, "192.0.2.1")],
    "::": [(socket.AF_INET6, "2001:db8::1"), (socket.AF_INET, "192.0.2.1")],
}


def _find_reachable_host(host: str) -> str:
    """Return an address at which others reach this machine, or the host itself if it is one address."""
    for family, destination in EXAMPLE_DESTINATIONS.get(host, ()):
        # Connecting a UDP socket sends nothing. It makes the kernel choose our own address for this destination.
        with contextlib.suppress(OSError), socket.socket(family, socket.SOCK_DGRAM) as udp_socket:
            udp_socket.connect((destination, 9))  # any port would do; 9 is the port of the discard protocol
            return str(udp_socket.getsockname()[0])
    if host in EXAMPLE_DESTINATIONS:
        # This machine has no network, so only its own processes reach it.
        return "::1" if host == "::" else "127.0.0.1"
    return host
