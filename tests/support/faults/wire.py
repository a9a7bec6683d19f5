"""A TCP proxy between one replica and Redis that loses and delays data, and resets connections, on demand.

pass        all data pass (the state at the start)
cut         every connection is reset, each new one too, until `restore`
black hole  no data pass and no connection is closed; `restore` lets the held data pass, late
swallow     replies are lost after the command took effect, and the connection is reset
lose        one reply is lost in this way: the first that contains a given word, or that answers a command with it
trickle     every read is delayed, and its data pass byte by byte
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import socket
import struct
from dataclasses import dataclass, field

#: SO_LINGER on with a time of zero: closing the socket sends a reset.
_RESET = struct.pack("ii", 1, 0)
CHUNK = 65536


@dataclass(eq=False)
class _Connection:
    down: asyncio.StreamWriter
    up: asyncio.StreamWriter
    pumps: list[asyncio.Task[None]] = field(default_factory=list)
    #: the word for which the next reply will be lost; empty if it will not
    doomed: bytes = b""
    #: the word of the watched command that the next reply answers; empty if it answers none
    watched: bytes = b""

    def reset(self) -> None:
        for writer in (self.down, self.up):
            sock = writer.get_extra_info("socket")
            if sock is not None and sock.fileno() >= 0:
                with contextlib.suppress(OSError):
                    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
            writer.transport.abort()


class Wire:
    """The proxy of one replica. The replica connects to `port`."""

    def __init__(self, upstream: int, chance: random.Random) -> None:
        self._upstream = upstream
        self._chance = chance
        self._connections: set[_Connection] = set()
        self._flowing = asyncio.Event()
        self._flowing.set()
        self._refusing = False
        self._delay_s = 0.0
        self._swallow = 0.0
        self._word = b""
        self._lost_word = b""
        self._watched_word = b""
        #: set when the reply to the command that is watched has passed
        self.answered = asyncio.Event()
        self._server: asyncio.Server | None = None
        self.port = 0
        #: number of replies lost so far
        self.swallowed = 0

    async def open(self) -> None:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]

    async def close(self) -> None:
        if self._server is not None:
            self._server.close()
        self._flowing.set()
        self._reset_all()

    # Faults

    def cut(self) -> None:
        """Reset every connection, each new one too, until `restore`."""
        self._refusing = True
        self._reset_all()

    def black_hole(self) -> None:
        """Hold all data, without closing a connection, until `restore`."""
        self._flowing.clear()

    def black_hole_at(self, word: bytes) -> None:
        """Become a black hole at the first command that contains `word`, and hold that command too."""
        self._word = word

    def swallow(self, share: float) -> None:
        """Lose this share of the replies, and reset the connection each time, until `restore`."""
        self._swallow = share

    def lose(self, word: bytes) -> None:
        """Lose the one reply that contains `word` or answers a command with it, and reset its connection."""
        self._lost_word = word

    def watch(self, word: bytes) -> None:
        """Set `answered` when the reply to the next command that contains `word` has passed."""
        self._watched_word = word
        self.answered.clear()

    @property
    def holds(self) -> bool:
        """Whether data are held."""
        return not self._flowing.is_set()

    def trickle(self, delay_s: float) -> None:
        """Delay data by up to `delay_s` in each direction and pass them byte by byte, until `restore`."""
        self._delay_s = delay_s

    def restore(self) -> None:
        """End every fault; held data pass."""
        self._refusing = False
        self._delay_s = 0.0
        self._swallow = 0.0
        self._word = self._lost_word = self._watched_word = b""
        self._flowing.set()

    def _reset_all(self) -> None:
        for connection in list(self._connections):
            connection.reset()

    # Passing data

    async def _serve(self, reader: asyncio.StreamReader, down: asyncio.StreamWriter) -> None:
        try:
            up_reader, up = await asyncio.open_connection("127.0.0.1", self._upstream)
        except OSError:
            down.transport.abort()
            return
        connection = _Connection(down, up)
        self._connections.add(connection)
        for writer in (down, up):
            writer.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if self._refusing:
            connection.reset()
        connection.pumps = [
            asyncio.create_task(self._pump(reader, up, connection, replies=False)),
            asyncio.create_task(self._pump(up_reader, down, connection, replies=True)),
        ]
        try:
            # When one side ends, end both; the last bytes of the side that closed pass first.
            await asyncio.wait(connection.pumps, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for pump in connection.pumps:
                pump.cancel()
            self._connections.discard(connection)
            for writer in (down, up):
                writer.close()

    async def _pump(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, connection: _Connection, *, replies: bool
    ) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(CHUNK):
                if self._word and self._word in data and not replies:
                    self._flowing.clear()
                await self._flowing.wait()
                if replies and b"-NOSCRIPT" in data:
                    self._look_again(connection)
                self._look_for_lost_word(data, connection)
                if replies and (connection.doomed or self._chance.random() < self._swallow):
                    self.swallowed += 1
                    connection.reset()
                    return
                if not replies and self._watched_word and self._watched_word in data:
                    self._watched_word, connection.watched = b"", self._watched_word
                await self._pass_on(data, writer)
                if replies and connection.watched:
                    connection.watched = b""
                    self.answered.set()

    def _look_for_lost_word(self, data: bytes, connection: _Connection) -> None:
        if self._lost_word and self._lost_word in data:
            self._lost_word, connection.doomed = b"", self._lost_word

    def _look_again(self, connection: _Connection) -> None:
        """Look for the words again: the server did not know the script, and gets the command once more."""
        if connection.doomed:
            self._lost_word, connection.doomed = connection.doomed, b""
        if connection.watched:
            self._watched_word, connection.watched = connection.watched, b""

    async def _pass_on(self, data: bytes, writer: asyncio.StreamWriter) -> None:
        if not self._delay_s:
            writer.write(data)
            await writer.drain()
            return
        await asyncio.sleep(self._chance.uniform(0, self._delay_s))
        for at in range(len(data)):
            writer.write(data[at : at + 1])
            if at % 256 == 255:
                await asyncio.sleep(0)
        await writer.drain()
