"""How the mesh that runs here is found."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest
from pydantic import SecretStr

from mesh import Connections, RedisSettings
from quart_app.local import discovery
from quart_app.local.data_folder import data_folder
from quart_app.local.discovery import Announcement

HERE = Announcement("redis://:word@127.0.0.1:7777/0", 9000, 1)


@pytest.fixture(autouse=True)
def elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("REDIS_URL", raising=False)
    monkeypatch.setenv("REDIS_HOST", "elsewhere")


def address(redis_url: str | None, folder: Path) -> str:
    """Return which Redis is meant."""
    settings = discovery.redis_settings(redis_url, folder)
    return settings.host if settings.url is None else settings.url.get_secret_value()


def test_without_an_address_the_mesh_that_runs_here_is_meant(tmp_path: Path) -> None:
    """A given address wins, then the mesh that runs here, then what the environment says."""
    assert address(None, tmp_path) == "elsewhere"
    with data_folder(tmp_path), discovery.announcing(tmp_path, HERE):
        assert discovery.find_running(tmp_path) == HERE
        assert address(None, tmp_path) == HERE.redis_url
        assert address("redis://there:1/0", tmp_path) == "redis://there:1/0"
    assert address(None, tmp_path) == "elsewhere"
    assert not (tmp_path / "mesh.json").exists()


@pytest.mark.parametrize(
    ("settings", "url"),
    [
        ({"host": "there", "port": 7, "db": 3}, "redis://there:7/3"),
        ({"host": "::1", "username": "me", "password": "a b/c@d:e"}, "redis://me:a%20b%2Fc%40d%3Ae@[::1]:6379/0"),
        ({"url": "rediss://:word@there/1?ssl_ca_certs=/ca"}, "rediss://:word@there/1?ssl_ca_certs=/ca"),
        ({"sentinels": "one:1"}, ""),
    ],
)
def test_a_server_named_by_its_parts_is_announced_as_an_address(settings: dict[str, object], url: str) -> None:
    """Another shell has only the file; where sentinels know the server, it needs the same environment."""
    named = RedisSettings(**settings)  # type: ignore[arg-type]
    assert discovery.url_of(named) == url
    if url and named.url is None:
        options = Connections(RedisSettings(url=SecretStr(url)))._server_options()
        assert options["host"] == named.host and options.get("password") == (settings.get("password"))


def test_only_our_user_can_read_the_password_even_where_a_file_was_left(tmp_path: Path) -> None:
    """A file of an earlier run keeps its mode unless it is replaced."""
    for name in ("mesh.json", "mesh.new"):
        (tmp_path / name).touch()
        (tmp_path / name).chmod(0o644)
    with discovery.announcing(tmp_path, HERE):
        assert stat.S_IMODE((tmp_path / "mesh.json").stat().st_mode) == 0o600


def test_a_file_that_a_killed_mesh_left_is_no_mesh(tmp_path: Path) -> None:
    """Nobody holds the lock."""
    with data_folder(tmp_path), discovery.announcing(tmp_path, HERE):
        text = (tmp_path / "mesh.json").read_text()
    (tmp_path / "mesh.json").write_text(text)
    assert discovery.find_running(tmp_path) is None
    assert address(None, tmp_path) == "elsewhere"


@pytest.mark.parametrize("content", ["", "not JSON", "{}", "[]", "7", '{"redis_url": "redis://x"}'])
def test_a_file_that_cannot_be_read_is_no_mesh(tmp_path: Path, content: str) -> None:
    """A file with any other content is ignored, even while a mesh has the folder."""
    with data_folder(tmp_path):
        (tmp_path / "mesh.json").write_text(content)
        assert address(None, tmp_path) == "elsewhere"
