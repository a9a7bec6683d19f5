"""A backup taken while the mesh works, and a server that is made from it."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.replicas import Replicas
from tests.support.server import Server

RESTORE = Path(__file__).parents[2] / "deploy/redis/restore"


def restore(backup: Path, folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([RESTORE, backup, folder], capture_output=True, text=True, check=False)


async def test_a_mesh_comes_back_from_its_backup(
    replicas: Replicas, make_server: Callable[..., Server], tmp_path: Path
) -> None:
    """Everything acknowledged before the backup is back, and epochs go on rising."""
    first, _ = await replicas(2)
    items = [{"value": 2 * 3 * 5 * 7, "ttl": 3600, "cls": cls} for cls in ("A", "B")]
    await replicas.client.post(first.public + "/values", json=items)
    before = {member.database: (member.cls, member.epoch) for member in await replicas.roster()}
    with replicas.server.redis() as client:
        client.save()
    backup = tmp_path / "backup.rdb"
    shutil.copy(replicas.server.folder / "dump.rdb", backup)
    for process in replicas.processes:
        process.kill()

    restored = make_server()
    restored.kill()
    shutil.rmtree(restored.folder / "appendonlydir")
    assert restore(backup, restored.folder).returncode == 0
    restored.start()
    replicas.server = restored
    third, _ = await replicas(2)
    found = (await replicas.client.get(third.public + "/values/7")).json()
    after = {member.database: (member.cls, member.epoch) for member in await replicas.roster()}
    assert found == [{"value": 210, "prime_factors": [2, 3, 5, 7]}]
    assert {database: cls for database, (cls, _) in after.items()} == {n: cls for n, (cls, _) in before.items()}
    assert min(epoch for _, epoch in after.values()) > max(epoch for _, epoch in before.values())


def test_restoring_overwrites_nothing(tmp_path: Path) -> None:
    """A wrong folder costs nothing."""
    backup = tmp_path / "backup.rdb"
    backup.write_bytes(b"REDIS0011")
    (tmp_path / "data/appendonlydir").mkdir(parents=True)
    refused = restore(backup, tmp_path / "data")
    assert refused.returncode == 1
    assert "exists" in refused.stderr
    assert list((tmp_path / "data/appendonlydir").iterdir()) == []


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"REDI"])
def test_what_is_not_a_backup_is_refused(tmp_path: Path, content: bytes) -> None:
    """It is refused before it replaces the data."""
    backup = tmp_path / "backup.rdb"
    backup.write_bytes(content)
    assert restore(backup, tmp_path).returncode == 1
    assert not (tmp_path / "appendonlydir").exists()
