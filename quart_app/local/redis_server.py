"""The Redis of a local mesh: an embedded server, or one that is running already.

`report_silence` reports when the server stops answering. Nothing works then, and no other part reports it as early.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import time
from collections.abc import AsyncIterator
from pathlib import Path
from urllib.parse import urlsplit

from pydantic import SecretStr
from redis import exceptions as redis_errors
from redis.asyncio import Redis

from mesh import Connections, RedisSettings, failures
from quart_app.local.errors import LocalError
from quart_app.local.ports import free_port
from quart_app.local.processes import Child, Program, Say, Supervisor, last_line
from quart_app.local.redis_program import ServerProgram, find_server, record_writer, writer_of
from quart_app.settings import host_and_port

#: The usual port of Redis. An embedded server uses it if it is free.
DEFAULT_PORT = 6379
#: How long an embedded server may take to answer after its start. A longer time suits a slow machine, but a server that
#: cannot start is reported later. While the server loads its data, this bound does not count.
START_S = 30.0
#: How long a server that should be running already may take to answer. A longer time delays the message that it does
#: not answer; a shorter one would call a busy server silent.
ANSWER_WAIT_S = 2.0
#: Pause between two tries to reach a server that starts. A longer pause delays the start; a shorter one costs more
#: tries.
POLL_S = 0.05
#: Pause between two looks of `report_silence` at a running server. A longer pause reports a silence later; a shorter
#: one costs more commands.
WATCH_PAUSE_S = 1.0


@contextlib.asynccontextmanager
async def embedded(folder: Path, log_folder: Path, supervisor: Supervisor) -> AsyncIterator[str]:
    """Run a server with its data in `folder`, and yield its address. Raises LocalError.

    The password is made for this run. The server gets it through standard input, and the replicas get it through their
    environment. So `ps` does not show it. The server appends every write to a log before it answers, so every write
    that was acknowledged survives the end of the server.
    """
    server_program, writer = find_server(folder), writer_of(folder)
    if writer is not None and writer != server_program.kind:
        supervisor.say(f"the data were written by {writer}; {server_program.kind} takes them over")
    port, password = free_port(DEFAULT_PORT), secrets.token_urlsafe(24)
    url = f"redis://:{password}@127.0.0.1:{port}/0"  # the bus is in database 0
    program = _as_program(server_program, folder, log_folder, _configuration(port, folder, password))
    async with supervisor.running(program) as server:
        await _wait_until_started(server, RedisSettings(url=SecretStr(url)), supervisor.say)
        record_writer(folder, server_program.kind)
        # From now on the server is started again if it ends. Before, `_wait_until_started` raised its error.
        async with supervisor.keeping(server):
            yield url


def named_server(redis_url: str | None) -> RedisSettings | None:
    """Return how to reach the server that an address or the environment names; None if they name none."""
    if redis_url:
        return RedisSettings(url=SecretStr(redis_url))
    names_server = any(os.environ.get(name) for name in ("REDIS_URL", "REDIS_HOST", "REDIS_SENTINELS"))
    return RedisSettings() if names_server else None


def _as_program(server_program: ServerProgram, folder: Path, log_folder: Path, configuration: str) -> Program:
    """Return what the supervisor needs to know to run this server."""
    return Program(
        name="Redis",
        command=[server_program.path, "-"],  # "-": the configuration comes from standard input
        log=log_folder / "redis.log",
        env={**os.environ, **server_program.environ},
        stdin=configuration.encode(),
        stopping_phrase="it writes its data to disk",
    )


def _configuration(port: int, folder: Path, password: str) -> str:
    quoted_folder = str(folder.resolve()).replace("\\", "\\\\").replace('"', '\\"')
    return "\n".join(
        (
            f"port {port}",
            "bind 127.0.0.1",
            f'dir "{quoted_folder}"',
            f"requirepass {password}",
            "databases 16",
            "appendonly yes",
            "appendfsync everysec",  # a crash of the machine, unlike one of the server, loses the last second
            'save ""',  # no snapshots: the append-only log has every write
            "maxmemory-policy noeviction",
            "",
        )
    )


async def _wait_until_started(server: Child, settings: RedisSettings, say: Say) -> None:
    """Wait until an embedded server serves. Raises LocalError if it ends, or is silent for too long."""
    client = Connections(settings).client("mesh-up")
    give_up_at_s = time.monotonic() + START_S
    is_loading = False  # whether Redis has answered that it loads its data; this wait has no bound
    try:
        while time.monotonic() < give_up_at_s or is_loading:
            if server.has_ended():
                raise LocalError(f"Redis ended at its start: {last_line(server.program.log)}")
            # These errors come while the server does not listen yet. Then another try follows.
            with contextlib.suppress(redis_errors.ConnectionError, redis_errors.TimeoutError, OSError):
                try:
                    await client.ping()
                    return
                except redis_errors.BusyLoadingError:  # for redis-py also a ConnectionError, so it is caught first
                    if not is_loading:
                        say("Redis loads its data")
                    is_loading = True
            await asyncio.sleep(POLL_S)
        raise LocalError(f"Redis did not answer within {START_S:.0f} s; see {server.program.log}")
    finally:
        await client.aclose()


def address_of(settings: RedisSettings) -> str:
    """Return the host and port of a server, without its user and password."""
    if settings.sentinels:
        return f"the master of {settings.sentinels}"
    if settings.url is None:
        return host_and_port(settings.host, settings.port)
    parts = urlsplit(settings.url.get_secret_value())
    return host_and_port(parts.hostname or "localhost", parts.port or DEFAULT_PORT)


async def problem_of(client: Redis) -> str:
    """Return why the server does not answer; "" if it does. Raises LocalError if it refuses user or password."""
    try:
        await client.ping()
    # An error that the server sends is an answer, too. redis-py nevertheless makes BusyLoadingError a ConnectionError.
    except (redis_errors.BusyLoadingError, redis_errors.MasterDownError):
        pass
    except (redis_errors.RedisError, OSError) as error:
        if failures.is_fenced(error):  # true for a wrong user or password, too
            raise LocalError(f"Redis refuses the user or the password: {error}") from error
        if not isinstance(error, redis_errors.ResponseError):
            return cause_of(error)
    return ""


def cause_of(error: BaseException) -> str:
    """Return the operating system's reason for a failed connection, or else the text of the error."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError) and cause.errno:
            return os.strerror(cause.errno).lower()
        cause = cause.__cause__ or cause.__context__
    return str(error).rstrip(".") or type(error).__name__


async def require_answer(settings: RedisSettings) -> None:
    """Raise LocalError unless the server answers within ANSWER_WAIT_S."""
    client = Connections(settings).client("mesh-up")
    give_up_at_s = time.monotonic() + ANSWER_WAIT_S
    try:
        while problem := await _problem_within(client, give_up_at_s - time.monotonic()):
            if time.monotonic() >= give_up_at_s:
                raise LocalError(
                    f"Redis at {address_of(settings)} does not answer: {problem}; "
                    "start it, or name no server for an embedded one"
                )
            await asyncio.sleep(4 * POLL_S)  # about ten attempts in ANSWER_WAIT_S at a port that refuses connections
    finally:
        await client.aclose()


async def _problem_within(client: Redis, wait_s: float) -> str:
    """Do what `problem_of` does, for at most `wait_s` seconds. A slower server counts as one without an answer."""
    try:
        async with asyncio.timeout(max(wait_s, POLL_S)):  # the last try of `require_answer` needs some time, too
            return await problem_of(client)
    except TimeoutError:
        return "no answer in time"


async def report_silence(settings: RedisSettings, say: Say) -> None:
    """Say when the server stops answering, and when it answers again, until cancelled."""
    client = Connections(settings).client("mesh-up")
    silent_since_s = 0.0  # 0 while the server answers
    try:
        while True:
            asked_at_s = time.monotonic()
            problem = await _problem_or_refusal(client)
            if problem and not silent_since_s:
                silent_since_s = asked_at_s
                say(f"Redis at {address_of(settings)} does not answer: {problem}")
            elif silent_since_s and not problem:
                say(f"Redis answers again, after {time.monotonic() - silent_since_s:.1f} s")
                silent_since_s = 0.0
            await asyncio.sleep(WATCH_PAUSE_S)
    finally:
        await client.aclose()


async def _problem_or_refusal(client: Redis) -> str:
    """Return why the server does not answer in ANSWER_WAIT_S, or why it refuses the user; "" if it answers."""
    try:
        return await _problem_within(client, ANSWER_WAIT_S)
    except LocalError as error:
        return str(error)
