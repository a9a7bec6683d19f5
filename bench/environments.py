"""The Python environments of the peers: one for each, with pinned versions, made at its first use.

The mesh's own earlier release is one of them. Its sources come from the history of this repository.
"""

from __future__ import annotations

import hashlib
import io
import subprocess
import sys
import tarfile
from dataclasses import dataclass
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


def sources(peer: str, commit: str) -> Path:
    """Return the folder with the packages and `bench/peers` as they were at a commit, in the environment of a peer.

    Raises LookupError where the history lacks that commit, as in a shallow clone.
    """
    folder = ROOT / f".venv-bench-{peer}" / commit
    if not folder.exists():
        command = ["git", "archive", commit, "mesh", "quart_app", "bench/peers"]
        archive = subprocess.run(command, cwd=ROOT, capture_output=True, check=False)
        if archive.returncode:
            raise LookupError(f"the history has no commit {commit}: {archive.stderr.decode().strip()}")
        with tarfile.open(fileobj=io.BytesIO(archive.stdout)) as packed:
            packed.extractall(folder, filter="data")
        # The application asks for its version.
        metadata = folder / "quart_mesh-0.dist-info" / "METADATA"
        metadata.parent.mkdir()
        metadata.write_text(f"Metadata-Version: 2.1\nName: quart-mesh\nVersion: 0+{commit.lower()}\n")
    return folder


@dataclass(frozen=True, slots=True)
class Release:
    """A release of this repository: the Python of its environment, and the folder of its sources."""

    python: Path
    folder: Path


THIS = Release(Path(sys.executable), ROOT)


def release(peer: str, commit: str) -> Release:
    """Return an earlier release, which has the environment of a peer. Raises LookupError as `sources` does."""
    # Python first: it makes the environment, in which the sources are then unpacked.
    python = environment(peer)
    return Release(python, sources(peer, commit))


def version(peer: str, distribution: str) -> str:
    """Return the pinned version of a distribution in a peer's environment. Raises LookupError."""
    for line in (PEERS / f"{peer}.txt").read_text().splitlines():
        name, _, number = line.partition("==")
        if name.lower() == distribution.lower():
            return number
    raise LookupError(f"{distribution} is not pinned in {peer}.txt")
