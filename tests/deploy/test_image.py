"""The image: its Dockerfile, the locked dependencies, and what may enter the build."""

from __future__ import annotations

import asyncio
import configparser
import re
import subprocess
import sys
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from quart_app.local.ports import free_port
from tests.support.replicas import Process, Replicas
from tests.support.waiting import eventually

ROOT = Path(__file__).parents[2]
HADOLINT = Path(sys.executable).parent / "hadolint"


def lint(dockerfile: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([HADOLINT, "--no-color", dockerfile], capture_output=True, text=True, check=False)


def locked() -> dict[str, str]:
    pins = re.findall(r"^([a-z0-9-]+)==(\S+)", (ROOT / "deploy/requirements.txt").read_text(), re.MULTILINE)
    return dict(pins)


def wanted() -> list[Requirement]:
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    lines = (setup["options"]["install_requires"] + setup["options.extras_require"]["api"]).splitlines()
    return [Requirement(line) for line in lines if line and not line.startswith("#")]


def test_the_dockerfile_passes_hadolint() -> None:
    """hadolint finds nothing, at any level."""
    found = lint(ROOT / "Dockerfile")
    assert (found.returncode, found.stdout) == (0, "")


def test_a_careless_dockerfile_does_not_pass(tmp_path: Path) -> None:
    """The linter can fail."""
    careless = tmp_path / "Dockerfile"
    careless.write_text("FROM python:latest\nRUN cd /tmp && pip install quart\n")
    assert lint(careless).returncode == 1


@pytest.mark.parametrize("requirement", wanted(), ids=lambda requirement: requirement.name)
def test_every_dependency_is_locked_within_its_range(requirement: Requirement) -> None:
    """The image has every dependency of setup.cfg; `make lock` renews the list."""
    version = locked().get(canonicalize_name(requirement.name))
    assert version is not None, "not in deploy/requirements.txt: make lock"
    assert requirement.specifier.contains(version), "out of its range: make lock"


@pytest.mark.parametrize("package", ["mesh", "quart_app"])
def test_every_file_of_a_package_is_in_its_wheel(package: str) -> None:
    """A script that only the checkout has would be missing in the image, and the replica could not start."""
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    patterns = setup["options.package_data"][package].split()
    shipped = {path for pattern in patterns for path in (ROOT / package).glob(pattern)}
    files = {path for path in (ROOT / package).rglob("*") if path.is_file() and path.suffix not in {".py", ".pyc"}}
    assert files - shipped == set()


def test_every_locked_version_carries_hashes() -> None:
    """pip refuses a file whose hash does not match, so the image has the files that were tested."""
    text = (ROOT / "deploy/requirements.txt").read_text()
    pins = re.findall(r"^[a-z0-9-]+==.*?(?=^\S|\Z)", text, re.MULTILINE | re.DOTALL)
    assert len(pins) == len(locked())
    assert [pin.split()[0] for pin in pins if "--hash=sha256:" not in pin] == []


def test_the_lock_names_no_registry() -> None:
    """The builder decides where packages come from."""
    text = (ROOT / "deploy/requirements.txt").read_text()
    assert not re.search(r"https?://|--(extra-)?index-url|--find-links", text)


def test_only_what_the_image_is_made_of_enters_the_build() -> None:
    """.dockerignore excludes everything and then lists exactly the files that the Dockerfile copies."""
    lines = (ROOT / ".dockerignore").read_text().splitlines()
    rules = [line for line in lines if line and not line.startswith("#")]
    copies = re.findall(r"^COPY (?!.*--from)(.*)$", (ROOT / "Dockerfile").read_text(), re.MULTILINE)
    sources = {source for line in copies for source in line.split()[:-1] if not source.startswith("--")}
    assert rules[0] == "*"
    assert {rule.removeprefix("!") for rule in rules if rule.startswith("!")} == sources


HEALTHY = ROOT / "deploy/healthy"


async def healthy(process: Process, *arguments: str) -> bool:
    """Whether the health check of the image takes this replica for healthy."""
    port = process.private.rpartition(":")[2]
    done = await asyncio.create_subprocess_exec(HEALTHY, port, "/readyz", *arguments, stderr=subprocess.DEVNULL)
    return await done.wait() == 0


async def test_a_spare_replica_is_healthy_and_one_without_redis_is_not(replicas: Replicas) -> None:
    """An unhealthy spare replica would keep `docker compose up` waiting for ever."""
    (holder,) = await replicas(1, {"MESH_DATABASES": "1"})
    spare = replicas.spawn({"MESH_DATABASES": "1"})
    astray = replicas.spawn({"REDIS_URL": f"redis://127.0.0.1:{free_port()}"})
    assert await healthy(holder) and await healthy(holder, "spare")
    await eventually(lambda: healthy(spare, "spare"), 20)
    assert not await healthy(spare)
    await eventually(lambda: lives(replicas, astray), 20)
    assert not await healthy(astray, "spare")
    assert '["healthy", "8001", "/readyz", "spare"]' in (ROOT / "Dockerfile").read_text()


async def lives(replicas: Replicas, process: Process) -> bool:
    return await replicas.status(process, "/health") == 200
