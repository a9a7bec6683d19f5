"""How the mesh that runs here is found."""

from __future__ import annotations

from pathlib import Path

import pytest

from quart_app.local import discovery


def address(redis_url: str | None, folder: Path) -> str:
    """Which Redis is meant."""
    settings = discovery.redis_settings(redis_url, folder)
    return settings.host if settings.url is None else settings.url.get_secret_value()


def test_without_an_address_the_mesh_that_runs_here_is_meant(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """While it runs; else what the environment says. An address that is given wins."""
    monkeypatch.delenv("REDIS_URL", raising=False)
    monkeypatch.setenv("REDIS_HOST", "elsewhere")
    assert address(None, tmp_path) == "elsewhere"
    with discovery.announced(tmp_path, redis_url="redis://127.0.0.1:7777/0", port=9000):
        assert address(None, tmp_path) == "redis://127.0.0.1:7777/0"
        assert address("redis://there:1/0", tmp_path) == "redis://there:1/0"
    assert address(None, tmp_path) == "elsewhere"


@pytest.mark.parametrize("content", ["", "not JSON", "{}", "[]", "7"])
def test_a_file_that_says_nothing_is_no_mesh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: str) -> None:
    """Whatever was left there."""
    monkeypatch.delenv("REDIS_URL", raising=False)
    monkeypatch.setenv("REDIS_HOST", "elsewhere")
    (tmp_path / "mesh.json").write_text(content)
    assert address(None, tmp_path) == "elsewhere"
