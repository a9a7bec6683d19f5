"""The folder of a local mesh, for one mesh and one user: its data, its logs, and a file that says how to reach it."""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from collections.abc import Iterator
from pathlib import Path

from quart_app.local.errors import LocalError

#: The names of what a mesh puts into the folder, beside the files of the movements. If a folder without a lock file has
#: any other file, it is refused: it may belong to another program.
OUR_NAMES = ("redis", "logs", "lock", "mesh.json", "grades")
#: The database of the movements. SQLite adds files whose names begin with this name.
MOVEMENTS_FILE = "movements.db"
#: How long a starting mesh waits for the lock. Another `mesh` command may hold it for a moment, to see whether a mesh
#: runs (`in_use`). A longer wait only delays the error that a mesh is already running.
LOCK_WAIT_S = 0.5


@contextlib.contextmanager
def data_folder(path: Path) -> Iterator[Path]:
    """Create the folder, and lock it while the block lasts. Raises LocalError if it cannot be used.

    Only our user can read the files that this process and its children make meanwhile.
    """
    former_umask = os.umask(0o077)
    try:
        with _open_lock(path) as lock_fd:
            _lock_folder(lock_fd, path)
            yield path
    finally:
        os.umask(former_umask)


@contextlib.contextmanager
def _open_lock(path: Path) -> Iterator[int]:
    """Make the folder ready, and yield the descriptor of its file `lock`, not locked yet. Raises LocalError."""
    try:
        _refuse_foreign(path)
        for folder in (path, path / "redis", path / "logs"):
            folder.mkdir(parents=True, exist_ok=True)
            folder.chmod(0o700)
        _close_to_others(path)
        lock_fd = os.open(path / "lock", os.O_RDWR | os.O_CREAT, 0o600)
    except OSError as error:
        raise LocalError(
            f"the data folder {path} cannot be used: {error.strerror or error}; name another with --data"
        ) from error
    try:
        yield lock_fd
    finally:
        os.close(lock_fd)


def _refuse_foreign(path: Path) -> None:
    """Raise LocalError if the folder has files that are not ours, and no mesh has ever locked it."""
    if not path.is_dir():
        return
    foreign_names = sorted(item.name for item in path.iterdir() if not _is_ours(item.name))
    if foreign_names and not (path / "lock").exists():
        raise LocalError(
            f"{path} is not the data folder of a mesh: it has {foreign_names[0]}; name another with --data"
        )


def _is_ours(name: str) -> bool:
    return name in OUR_NAMES or name.startswith(MOVEMENTS_FILE)


def _close_to_others(path: Path) -> None:
    """Take away other users' rights to our files: earlier releases made them with the user's own umask."""
    for item in path.iterdir():
        if _is_ours(item.name) and not item.is_symlink():
            for file in (item, *(item.rglob("*") if item.is_dir() else ())):
                if not file.is_symlink():
                    file.chmod(0o700 if file.is_dir() else 0o600)


def _lock_folder(lock_fd: int, path: Path) -> None:
    """Lock the folder for this process. Raises LocalError if another process holds the lock for too long."""
    give_up_at_s = time.monotonic() + LOCK_WAIT_S
    while True:
        try:
            fcntl.flock(lock_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except OSError as error:
            if time.monotonic() >= give_up_at_s:
                raise LocalError(f"a mesh is already running on {path}; `mesh status` shows it") from error
            # After a longer pause, the start of the mesh is later; a shorter one costs more attempts.
            time.sleep(0.02)


def in_use(path: Path) -> bool:
    """Return whether a mesh runs on this folder now. The answer is right even if the last mesh was killed.

    The system frees the lock of a process that has ended.
    """
    try:
        lock_fd = os.open(path / "lock", os.O_RDONLY)
    except OSError:  # no mesh has ever run here
        return False
    try:
        # A shared lock, so that two calls of `in_use` at once do not take each other for a mesh.
        fcntl.flock(lock_fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
        return False
    except OSError:  # a mesh has the lock
        return True
    finally:
        os.close(lock_fd)
