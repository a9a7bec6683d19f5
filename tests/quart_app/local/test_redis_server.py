"""The Redis of a local mesh: embedded or given, and whether it answers."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import psutil
import pytest
import redis
from pydantic import SecretStr

from mesh import RedisSettings
from quart_app.local import redis_server
from quart_app.local.data_folder import data_folder
from quart_app.local.errors import LocalError
from quart_app.local.ports import free_port
from quart_app.local.processes import Supervisor
from quart_app.local.redis_program import find_server, writer_of
from tests.support.server import Server
from tests.support.waiting import eventually


@asynccontextmanager
async def embedded(path: Path, said: list[str] | None = None) -> AsyncIterator[str]:
    supervisor = Supervisor((said if said is not None else []).append)
    with data_folder(path) as folder:
        async with redis_server.embedded(folder / "redis", folder / "logs", supervisor) as url:
            yield url


def client(url: str, database: int = 0) -> redis.Redis:
    return redis.Redis.from_url(f"{url.removesuffix('/0')}/{database}", decode_responses=True)


def server_on(folder: Path) -> psutil.Process:
    """Return the server that this process started on a folder; other tests may have left processes of their own."""
    children = psutil.Process().children(recursive=True)
    (server,) = [child for child in children if Path(child.cwd()).is_relative_to(folder)]
    return server


async def test_the_embedded_server_keeps_its_data(tmp_path: Path) -> None:
    """What was acknowledged before a stop is there after it, in every database."""
    async with embedded(tmp_path) as url:
        for number in (0, 15):
            client(url, number).set("kept", number)
    with pytest.raises(redis.ConnectionError):
        client(url).ping()
    assert writer_of(tmp_path / "redis") == find_server().kind
    async with embedded(tmp_path) as url:
        assert [client(url, number).get("kept") for number in (0, 15)] == ["0", "15"]


async def test_the_embedded_server_asks_for_a_password_that_ps_does_not_show(tmp_path: Path) -> None:
    """A new one for each run; it is nowhere in the folder either, but for what `mesh status` reads."""
    async with embedded(tmp_path) as url:
        password = RedisSettings(url=SecretStr(url)).url
        assert password is not None
        secret = url.partition(":")[2].partition(":")[2].partition("@")[0]
        assert len(secret) >= 32
        with pytest.raises(redis.AuthenticationError):
            client(url.replace(f":{secret}@", "")).ping()
        assert secret not in " ".join(server_on(tmp_path).cmdline())
        assert _files_with(tmp_path, secret) == []


def _files_with(folder: Path, secret: str) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file() and secret.encode() in path.read_bytes()]


async def test_a_killed_server_is_started_again_at_its_address_with_its_data(tmp_path: Path) -> None:
    """The replicas know one address and one password."""
    said: list[str] = []
    async with embedded(tmp_path, said) as url:
        client(url).set("kept", "1")
        server_on(tmp_path).kill()

        async def back() -> bool:
            try:
                return bool(client(url).get("kept") == "1")
            except redis.ConnectionError:
                return False

        await eventually(back)
    assert said[0].startswith("Redis ended (killed by SIGKILL); starting it again")


async def test_a_server_that_cannot_start_is_a_sentence_with_its_own_words(tmp_path: Path) -> None:
    """The message comes at once."""
    with data_folder(tmp_path):
        pass
    log = tmp_path / "redis" / "appendonlydir"
    log.mkdir()
    (log / "appendonly.aof.manifest").write_text("this is no manifest\n")
    started = time.monotonic()
    with pytest.raises(LocalError, match=r"Redis ended at its start: .+"):
        async with embedded(tmp_path):
            pass
    assert time.monotonic() - started < redis_server.START_S / 2


@pytest.mark.parametrize(
    ("environ", "redis_url", "address"),
    [
        ({}, None, None),
        ({"REDIS_PORT": "7", "REDIS_PASSWORD": "word"}, None, None),
        ({"REDIS_HOST": "there", "REDIS_PORT": "7"}, None, "there:7"),
        ({"REDIS_SENTINELS": "one:1"}, None, "the master of one:1"),
        ({"REDIS_HOST": "there"}, "redis://here:8/0", "here:8"),
    ],
)
def test_a_server_that_the_environment_names_is_used(
    environ: dict[str, str], redis_url: str | None, address: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The environment gives an address or a host, as in the task texts; otherwise a mesh runs its own server."""
    for name in ("REDIS_URL", "REDIS_HOST", "REDIS_PORT", "REDIS_SENTINELS"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    found = redis_server.named_server(redis_url)
    assert (None if found is None else redis_server.address_of(found)) == address


def nobody() -> RedisSettings:
    return RedisSettings(host="127.0.0.1", port=free_port())


async def test_a_given_server_that_is_dead_is_said_within_three_seconds() -> None:
    """The message has the address once, and the reason of the system."""
    settings = nobody()
    started = time.monotonic()
    with pytest.raises(
        LocalError, match=rf"Redis at 127\.0\.0\.1:{settings.port} does not answer: connection refused; start"
    ):
        await redis_server.require_answer(settings)
    assert time.monotonic() - started < 3


async def test_a_given_server_that_accepts_and_says_nothing_is_said_too() -> None:
    """A stopped process and a firewall look like this."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        settings = RedisSettings(host="127.0.0.1", port=silent.getsockname()[1])
        started = time.monotonic()
        with pytest.raises(LocalError, match=r"does not answer: .+"):
            await redis_server.require_answer(settings)
        assert time.monotonic() - started < 3


async def test_a_server_that_refuses_our_password_is_said_without_it(server: Server) -> None:
    """Waiting would not help."""
    with server.redis() as admin:
        admin.config_set("requirepass", "secret")
    url = SecretStr(f"redis://:wrong-word@127.0.0.1:{server.port}/0")
    with pytest.raises(LocalError, match="refuses the user or the password") as refused:
        await redis_server.require_answer(RedisSettings(url=url))
    assert "wrong-word" not in str(refused.value)


async def test_a_server_that_stops_answering_is_said_within_three_seconds_and_so_is_its_return(
    make_server: Callable[..., Server],
) -> None:
    """Each of the two is said once."""
    server, said = make_server(), list[str]()
    assert server.process is not None
    watching = asyncio.create_task(redis_server.report_silence(server.settings, said.append))

    async def lines(count: int) -> bool:
        return len(said) >= count

    await asyncio.sleep(0.2)
    os.kill(server.process.pid, signal.SIGSTOP)
    await eventually(lambda: lines(1), 3)
    os.kill(server.process.pid, signal.SIGCONT)
    await eventually(lambda: lines(2), 3)
    watching.cancel()
    assert said[0].startswith(f"Redis at 127.0.0.1:{server.port} does not answer: ")
    assert said[1].startswith("Redis answers again, after ")


@pytest.mark.parametrize(
    ("settings", "address"),
    [
        ({"host": "there", "port": 7}, "there:7"),
        ({"url": "redis://user:pass%20word@there:7/3"}, "there:7"),
        ({"url": "rediss://:pass@there"}, "there:6379"),
        ({"url": "redis://[::1]:7/0"}, "[::1]:7"),
        ({"sentinels": "one:1,two:2"}, "the master of one:1,two:2"),
    ],
)
def test_an_address_is_told_without_user_and_password(settings: dict[str, object], address: str) -> None:
    """Messages and logs show neither."""
    assert redis_server.address_of(RedisSettings(**settings)) == address  # type: ignore[arg-type]
