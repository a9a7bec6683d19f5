"""The data folder: for one mesh, and for one user."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from quart_app.local.data_folder import data_folder, in_use
from quart_app.local.errors import LocalError


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_it_belongs_to_one_mesh_at_a_time(tmp_path: Path) -> None:
    """A folder is free again when its mesh has ended."""
    path = tmp_path / "data"
    assert not in_use(path)
    with data_folder(path):
        assert in_use(path)
        with pytest.raises(LocalError, match="already running"), data_folder(path):
            pass
    assert not in_use(path)
    with data_folder(path) as folder:
        assert (folder / "redis").is_dir() and (folder / "logs").is_dir()


def test_only_our_user_can_read_what_is_in_it(tmp_path: Path) -> None:
    """The modes of the files do not depend on the umask; files of earlier releases are closed, too."""
    before = os.umask(0)
    try:
        old = tmp_path / "data" / "redis"
        old.mkdir(parents=True)
        (old / "dump.rdb").touch()
        (tmp_path / "data" / "movements.db").touch()
        with data_folder(tmp_path / "data") as folder:
            (folder / "logs" / "new.log").touch()
            (folder / "grades").mkdir()
        assert os.umask(0) == 0, "the umask is put back"
    finally:
        os.umask(before)
    found = {path.relative_to(tmp_path): mode(path) for path in (tmp_path / "data").rglob("*")}
    assert found and {mode(tmp_path / "data"), *found.values()} == {0o600, 0o700}
    assert all(bits == (0o700 if (tmp_path / path).is_dir() else 0o600) for path, bits in found.items())


def test_a_folder_with_something_else_in_it_is_refused(tmp_path: Path) -> None:
    """Nobody's home or photographs get our files and our rights."""
    (tmp_path / "photo.jpg").touch(mode=0o644)
    with pytest.raises(LocalError, match=r"is not the data folder of a mesh: it has photo\.jpg"):
        with data_folder(tmp_path):
            pass
    assert [path.name for path in tmp_path.iterdir()] == ["photo.jpg"]


def file_in_the_way(path: Path) -> None:
    path.touch()


def link_to_nowhere(path: Path) -> None:
    path.symlink_to(path.parent / "missing" / "deeper")


def folder_of_the_kernel(path: Path) -> None:
    path.symlink_to("/proc/self")


@pytest.mark.parametrize("made", [file_in_the_way, link_to_nowhere, folder_of_the_kernel])
def test_a_path_that_cannot_be_a_folder_is_a_sentence(tmp_path: Path, made: object) -> None:
    """The message has the path, the reason and the option."""
    path = tmp_path / "data"
    made(path)  # type: ignore[operator]
    with pytest.raises(LocalError, match=r"(cannot be used|is not the data folder).*--data"):
        with data_folder(path):
            pass
