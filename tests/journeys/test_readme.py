"""The commands and the example of the README do what it says."""

from __future__ import annotations

import asyncio
import os
import re
import subprocess
import sys
from pathlib import Path

from tests.support.replicas import Replicas
from tests.support.server import Server

README = (Path(__file__).parents[2] / "README.md").read_text()


def commands() -> list[tuple[str, str]]:
    """Return each `$` command of the README, with the output that follows it."""
    lines = re.findall(r"^    (.*)$|^$", README, flags=re.MULTILINE)
    text = "\n".join(lines)
    return [
        (command.replace("\\\n", ""), output)
        for command, output in re.findall(r"^\$ ((?:.*\\\n)*.*)\n(.+)$", text, flags=re.MULTILINE)
    ]


async def test_the_commands_print_what_the_readme_says(replicas: Replicas) -> None:
    """Each command, sent to a mesh of four replicas, prints the output below it."""
    one, *_ = await replicas(4)
    assert len(commands()) == 3
    for command, output in commands():
        here = command.replace("http://127.0.0.1:8000", one.public)
        bash = await asyncio.create_subprocess_exec("bash", "-c", here, stdout=asyncio.subprocess.PIPE)
        printed, _ = await asyncio.wait_for(bash.communicate(), 30)
        assert printed.decode().strip() == output.strip()


def test_the_example_runs(server: Server, tmp_path: Path) -> None:
    """The example of the library is a whole program."""
    (example,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    script = tmp_path / "example.py"
    script.write_text(example)
    env = {**os.environ, "REDIS_URL": server.url, "MESH_LEASE_TTL_MS": "1000"}
    done = subprocess.run([sys.executable, script], env=env, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert "hello world\n" in done.stdout
