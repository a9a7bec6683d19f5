"""Environments of the peers."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from bench.environments import PEERS, sources, version
from bench.request_reply import CONTENDERS


@pytest.mark.parametrize("pins", sorted(PEERS.glob("*.txt")), ids=lambda path: path.stem)
def test_every_requirement_is_pinned(pins: object) -> None:
    """A peer's figures are those of a version."""
    lines = [line for line in pins.read_text().splitlines() if line and not line.startswith("#")]  # type: ignore[attr-defined]
    assert lines
    assert all("==" in line for line in lines)


@pytest.mark.parametrize("contender", CONTENDERS, ids=lambda one: one.name)
def test_every_contender_has_its_program_and_version(contender: object) -> None:
    """The table of contenders names what is there."""
    assert (PEERS / contender.program).is_file()  # type: ignore[attr-defined]
    if contender.distribution:  # type: ignore[attr-defined]
        assert version(contender.environment, contender.distribution)  # type: ignore[attr-defined]


def test_an_earlier_release_comes_from_the_history(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It has the packages and programs of a commit, and a version. A history without the commit has no such release."""
    for name in ("mesh/__init__.py", "quart_app/app.py", "bench/peers/with_mesh.py", "README.md"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("1")
    for words in (["init", "-q"], ["add", "."], ["-c", "user.name=a", "-c", "user.email=a@b", "commit", "-qm", "one"]):
        subprocess.run(["git", *words], cwd=tmp_path, check=True)
    monkeypatch.setattr("bench.environments.ROOT", tmp_path)
    folder = sources("earlier", "HEAD")
    found = sorted(path.name for path in folder.rglob("*") if path.is_file())
    assert found == ["METADATA", "__init__.py", "app.py", "with_mesh.py"]
    ask = "import importlib.metadata; print(importlib.metadata.version('quart-mesh'))"
    said = subprocess.run([sys.executable, "-S", "-c", ask], cwd=folder, capture_output=True, text=True, check=True)
    assert said.stdout == "0+head\n"
    with pytest.raises(LookupError, match="the history has no commit 0123abc"):
        sources("earlier", "0123abc")
