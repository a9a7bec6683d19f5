"""The scripts that start, check and operate the deployed Redis, with a real server."""

from __future__ import annotations

import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest
import redis

from mesh import RedisSettings
from quart_app.local.ports import free_port
from quart_app.local.redis_program import wheel_server

DEPLOY = Path(__file__).parents[2] / "deploy"
SCRIPTS = DEPLOY / "redis"
#: How a file may hold a password, and what the password is.
FILES = {
    "plain": (b"word", "word"),
    "line end": (b"word\n", "word"),
    "CRLF": (b"word\r\n", "word"),
    "space around": (b"  word\t\n\n", "word"),
    "space within": (b"two words\n", "two words"),
    "quotes": (b"a\"b'c`d\n", "a\"b'c`d"),
    "shell": (b"$(id) ${HOME} \\ # ; *\n", "$(id) ${HOME} \\ # ; *"),
    "letters": ("pässwörd-密码\n".encode(), "pässwörd-密码"),
}


def script(name: str, folder: Path, *arguments: str, **environ: str) -> subprocess.CompletedProcess[str]:
    env = {"PATH": f"{folder}:/usr/bin:/bin", "SECRETS_DIR": str(folder), **environ}
    return subprocess.run(
        [SCRIPTS / name, *arguments], env=env, capture_output=True, text=True, timeout=20, check=False
    )


@contextmanager
def running(folder: Path) -> Iterator[tuple[int, subprocess.Popen[bytes]]]:
    """A server as `start` starts it, once it accepts connections."""
    port = free_port()
    env = {"PATH": "/usr/bin:/bin", "SECRETS_DIR": str(folder), "REDIS_SERVER": wheel_server().path}
    # As it is mounted in the container, but for the place of the data.
    mounted = shutil.copytree(SCRIPTS, folder / "etc")
    conf = (SCRIPTS / "redis.conf").read_text()
    (mounted / "redis.conf").write_text(conf.replace("dir /data", f"dir {folder}"))
    with (folder / "log").open("wb") as log:
        command = [mounted / "start", "--port", str(port), "--maxmemory", "20mb"]
        process = subprocess.Popen(command, env=env, stdout=log, stderr=log)
    try:
        until = time.monotonic() + 20
        while b"Ready to accept connections" not in (folder / "log").read_bytes():
            assert process.poll() is None and time.monotonic() < until, (folder / "log").read_text()
            time.sleep(0.02)
        yield port, process
    finally:
        process.kill()
        process.wait()


@pytest.mark.parametrize("kind", FILES)
def test_server_health_check_and_replica_read_the_same_password(tmp_path: Path, kind: str) -> None:
    """All readers see one password, also from a file whose lines end with CRLF."""
    content, password = FILES[kind]
    (tmp_path / "redis_password").write_bytes(content)
    with running(tmp_path) as (port, process):
        assert script("healthy", tmp_path, str(port)).returncode == 0
        client = redis.Redis(port=port, password=password)
        assert client.ping() and client.config_get("maxmemory-policy")
        with pytest.raises(redis.AuthenticationError):
            redis.Redis(port=port).ping()
        assert password not in " ".join(psutil.Process(process.pid).cmdline())
        read = RedisSettings(_secrets_dir=tmp_path).password  # type: ignore[call-arg]
        assert read is not None and read.get_secret_value() == password


def test_a_wrong_password_is_not_healthy(tmp_path: Path) -> None:
    """The check can fail."""
    (tmp_path / "redis_password").write_text("word")
    with running(tmp_path) as (port, _):
        (tmp_path / "redis_password").write_text("another")
        assert script("healthy", tmp_path, str(port)).returncode != 0
    assert script("healthy", tmp_path, str(port)).returncode != 0, "nobody listens"


@pytest.mark.parametrize("content", [b"", b"\n", b" \r\n"])
def test_a_server_without_a_password_does_not_start(tmp_path: Path, content: bytes) -> None:
    """An empty file is a mistake; it must not mean that everybody may come in."""
    (tmp_path / "redis_password").write_bytes(content)
    refused = script("start", tmp_path, REDIS_SERVER="/bin/true")
    assert refused.returncode == 78 and "is empty: write a password into it" in refused.stderr
    (tmp_path / "redis_password").unlink()
    assert script("start", tmp_path, REDIS_SERVER="/bin/true").returncode != 0


def test_the_client_gets_the_password_where_ps_does_not_look(tmp_path: Path) -> None:
    """The client gets the password in its environment, not as an argument."""
    (tmp_path / "redis_password").write_text("two words\r\n")
    fake = tmp_path / "valkey-cli"
    fake.write_text('#!/bin/sh\necho "$REDISCLI_AUTH: $*"\n')
    fake.chmod(0o755)
    assert script("cli", tmp_path, "XLEN", "mesh:dead").stdout == "two words: XLEN mesh:dead\n"


def test_secrets_are_generated_once_and_differ(tmp_path: Path) -> None:
    """A file that is there already stays; an empty one does not count."""
    folder = tmp_path / "secrets"
    folder.mkdir()
    (folder / "grades_password").write_text("my own")
    (folder / "redis_password").touch()
    for _ in range(2):
        subprocess.run([DEPLOY / "generate-secrets", folder], check=True, timeout=20, capture_output=True)
    made = (folder / "redis_password").read_text()
    assert len(made) == 48 and (folder / "grades_password").read_text() == "my own"
    subprocess.run([DEPLOY / "generate-secrets", tmp_path / "new"], check=True, timeout=20, capture_output=True)
    names = ("redis_password", "grades_password")
    assert len({made, *((tmp_path / "new" / name).read_text() for name in names)}) == 3
