"""A TLS proxy in front of servers without TLS: the server of the wheel is built without it."""

from __future__ import annotations

import asyncio
import shutil
import ssl
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

needed = pytest.mark.skipif(shutil.which("openssl") is None, reason="the program openssl is not installed")


@dataclass(frozen=True)
class Certificate:
    """A self-signed certificate for localhost."""

    path: Path
    key: Path


async def certificate(folder: Path) -> Certificate:
    """Make a certificate that is valid for two days."""
    made = Certificate(folder / "certificate.pem", folder / "key.pem")
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost"]
    names = ["-addext", "subjectAltName=IP:127.0.0.1"]
    await asyncio.to_thread(
        subprocess.run, [*command, *names, "-keyout", made.key, "-out", made.path], check=True, capture_output=True
    )
    return made


@asynccontextmanager
async def before(port: int, of: Certificate) -> AsyncIterator[int]:
    """Yield a port that reaches a port of this machine over TLS."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(of.path, of.key)

    async def pass_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
        writer.close()

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            there, here = await asyncio.open_connection("127.0.0.1", port)
        except OSError:  # the server is not up yet
            writer.close()
            return
        await asyncio.gather(pass_on(reader, here), pass_on(there, writer), return_exceptions=True)

    async with await asyncio.start_server(accept, "127.0.0.1", 0, ssl=context) as proxy:
        yield int(proxy.sockets[0].getsockname()[1])
