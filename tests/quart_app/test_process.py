"""The process of one replica, before it serves."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

#: What `python -m quart_app` does before it serves.
START = """
import gc
gc.disable()
from quart_app.process import Process
from quart_app.settings import AppSettings
from mesh import MeshSettings
Process(AppSettings(), MeshSettings())
young, often, _ = gc.get_threshold()
# An object takes 80 ns of a pass; a pass of 20 ms would hold the event loop for too long.
print(gc.isenabled(), gc.get_freeze_count() > 10_000, young * often <= 100_000)
"""


def test_garbage_is_looked_for_once_everything_is_made(tmp_path: Path) -> None:
    """The start makes none, and a process that never looked for it would grow."""
    argv = [sys.executable, "-c", START]
    done = subprocess.run(argv, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.splitlines()[-1] == "True True True"
