"""The pytest plugin: what it costs where nobody uses it, and its fixture and option where somebody does."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tests.support.server import Server

UNUSED = """
import sys

def test_nothing_is_imported():
    assert not {"mesh", "fakeredis", "redis", "pydantic"} & sys.modules.keys()
"""
USED = """
from mesh import Class
from mesh.raw import Worker

worker = Worker()

@worker.handles("count.add")
async def add(request, store, transaction):
    transaction.incrby("count:n", 1)
    return {}

async def test_it_counts(mesh_kit):
    async with mesh_kit(worker, replicas=2) as kit:
        await kit[0].replica.call(Class("B"), "count.add", {})
        assert await kit.read("count:n", database=2) == "1"
        print("replicas of", kit[0].settings.isolation)
"""


def run(folder: Path, text: str, *options: str) -> subprocess.CompletedProcess[str]:
    (folder / "test_it.py").write_text(text)
    plugins = ("-p", "pytest_asyncio.plugin", "-p", "pytest_mesh", "-o", "asyncio_mode=auto")
    command = (sys.executable, "-m", "pytest", "-q", "-s", "-c", os.devnull, *plugins, *options, "test_it.py")
    root = Path(__file__).parents[1]
    env = {**os.environ, "PYTHONPATH": str(root), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    return subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, timeout=100, check=False)


def test_it_imports_nothing_until_its_fixture_is_asked_for(tmp_path: Path) -> None:
    """pytest loads the plugin in every project where the library is installed."""
    done = run(tmp_path, UNUSED)
    assert done.returncode == 0, done.stdout + done.stderr


def test_its_fixture_makes_a_mesh_over_fakeredis(tmp_path: Path) -> None:
    """The fixture needs no server, unless an option asks for one."""
    done = run(tmp_path, USED)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "replicas of prefix" in done.stdout


def test_its_option_names_a_real_server(server: Server, tmp_path: Path) -> None:
    """The same test runs there."""
    done = run(tmp_path, USED, f"--mesh-redis={server.url}")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "replicas of acl" in done.stdout


def test_the_mesh_itself_does_not_need_fakeredis() -> None:
    """Only tests need fakeredis."""
    code = "import sys, mesh; print('fakeredis' in sys.modules, 'mesh.testing' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "False False"


def test_without_fakeredis_the_kit_says_what_to_install() -> None:
    """The kit itself can be imported, because a real server is enough for it."""
    code = (
        "import sys; sys.modules['fakeredis'] = None\n"
        "from mesh.testing import MeshKit\nfrom mesh import MeshError\n"
        "try: MeshKit()\nexcept MeshError as error: print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert "pip install 'quart-mesh[testing]'" in done.stdout
