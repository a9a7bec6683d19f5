"""A backup taken while the mesh works, and a server that is made from it."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support.replicas import Replicas
from tests.support.server import Server

DEPLOY = Path(__file__).parents[2] / "deploy"
RESTORE = DEPLOY / "redis/restore"


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
    """A file that is no backup is refused before it replaces the data."""
    backup = tmp_path / "backup.rdb"
    backup.write_bytes(content)
    assert restore(backup, tmp_path).returncode == 1
    assert not (tmp_path / "appendonlydir").exists()


def command_of(name: str, places: dict[str, str]) -> list[str]:
    """The command of a Job or CronJob of the Kubernetes component, with paths of this machine."""
    text = (DEPLOY / "kubernetes/components/backup" / name).read_text()
    found: list[dict[str, Any]] = list(yaml.safe_load_all(text))
    (manifest,) = [each for each in found if each["kind"] in {"Job", "CronJob"}]
    spec = manifest["spec"].get("jobTemplate", manifest)["spec"]["template"]["spec"]
    command: list[str] = spec["containers"][0]["command"]
    for old, new in places.items():
        command = [new + word.removeprefix(old) if (word + "/").startswith(old + "/") else word for word in command]
    return command


@pytest.mark.skipif(shutil.which("redis-cli") is None, reason="no redis-cli here")
async def test_the_cronjob_and_the_restore_job_bring_a_mesh_back(
    replicas: Replicas, make_server: Callable[..., Server], tmp_path: Path
) -> None:
    """The rehearsal: their own commands, while the mesh works, and a mesh on the server that is made from the copy."""
    (first,) = await replicas(1)
    cls = (await replicas.roster())[0].cls
    await replicas.client.post(first.public + "/values", json=[{"value": 210, "ttl": 3600, "cls": cls}])
    environ = prepare(tmp_path, replicas.server)
    (tmp_path / "backup").mkdir()
    places = {"/etc/mesh": str(DEPLOY / "redis"), "/backup": str(tmp_path / "backup")}
    backup = command_of("cronjob.yaml", places)
    backup = [*backup[:-2], "-p", str(replicas.server.port)]
    await asyncio.to_thread(subprocess.run, backup, env=environ, check=True, capture_output=True, timeout=30)
    first.kill()

    restored = make_server()
    restored.kill()
    shutil.rmtree(restored.folder / "appendonlydir")
    (made,) = (tmp_path / "backup").glob("*.rdb")
    script, _, folder = command_of("restore.yaml", {**places, "/data": str(restored.folder)})
    await asyncio.to_thread(subprocess.run, [script, made, folder], check=True, timeout=30)
    restored.start()
    replicas.server = restored
    (second,) = await replicas(1)
    found = (await replicas.client.get(second.public + "/values/7")).json()
    assert found == [{"value": 210, "prime_factors": [2, 3, 5, 7]}]


def prepare(folder: Path, server: Server) -> dict[str, str]:
    """Give the server a password, and return the environment in which the scripts find it and the client."""
    with server.redis() as client:
        client.execute_command("ACL", "SETUSER", "default", "resetpass", ">word")
    (folder / "redis_password").write_text("word\n")
    (folder / "valkey-cli").symlink_to(shutil.which("redis-cli") or "")
    return {"PATH": f"{folder}:{os.environ['PATH']}", "SECRETS_DIR": str(folder)}


def test_only_the_newest_backups_are_kept_and_a_broken_one_never(tmp_path: Path) -> None:
    """A copy has its name once it is whole; a server that sends something else costs no older copy."""
    folder = tmp_path / "backup"
    folder.mkdir()
    for day in range(1, 9):
        (folder / f"redis-2025010{day}T000000Z.rdb").write_bytes(b"REDIS0011")
    (tmp_path / "redis_password").write_text("word")
    client = tmp_path / "valkey-cli"
    environ = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "SECRETS_DIR": str(tmp_path)}
    command = [DEPLOY / "redis/backup", str(folder), "7"]
    for sent, status, kept in (("nonsense", 1, 8), ("VALKEY080", 0, 7)):
        client.write_text(f'#!/bin/sh\nprintf {sent} > "$2"\n')
        client.chmod(0o755)
        done = subprocess.run(command, env=environ, capture_output=True, check=False, timeout=20)
        assert done.returncode == status, done.stderr
        assert len(list(folder.iterdir())) == kept
    assert sorted(path.name for path in folder.iterdir())[0] == "redis-20250103T000000Z.rdb"
