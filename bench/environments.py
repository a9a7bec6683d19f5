"""The Python environments of the peers: one for each, with pinned versions, made at its first use."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PEERS = ROOT / "bench" / "peers"


def environment(peer: str) -> Path:
    """Return the Python of a peer's environment, and make the environment when its pins changed."""
    pins = PEERS / f"{peer}.txt"
    folder = ROOT / f".venv-bench-{peer}"
    python = folder / "bin" / "python"
    mark = folder / ".pins"
    digest = hashlib.sha256(pins.read_bytes()).hexdigest()
    if not mark.exists() or mark.read_text() != digest:
        print(f"setting up {folder.name} (once)", file=sys.stderr)
        subprocess.run([sys.executable, "-m", "venv", "--clear", folder], check=True)
        options = ["--quiet", "--disable-pip-version-check", "--requirement", pins]
        subprocess.run([python, "-m", "pip", "install", *options], check=True, stderr=subprocess.DEVNULL)
        mark.write_text(digest)
    return python


def version(peer: str, distribution: str) -> str:
    """Return the pinned version of a distribution in a peer's environment. Raises LookupError."""
    for line in (PEERS / f"{peer}.txt").read_text().splitlines():
        name, _, number = line.partition("==")
        if name.lower() == distribution.lower():
            return number
    raise LookupError(f"{distribution} is not pinned in {peer}.txt")
