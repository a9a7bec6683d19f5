"""The atomic actions, one Lua file each. A script runs by its content hash, so two releases can overlap.

Keys that belong to a script itself come in KEYS. A commit's writes bring their own, in two databases; the server's
access rules check every one of them as it is called.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

FOLDER = Path(__file__).parent


@dataclass(frozen=True)
class Script:
    """One Lua script, by its source."""

    source: str

    @cached_property
    def sha(self) -> str:
        return hashlib.sha1(self.source.encode(), usedforsecurity=False).hexdigest()

    @classmethod
    def read(cls, path: Path) -> Script:
        return cls(path.read_text("utf-8"))


SURVEY = Script.read(FOLDER / "survey.lua")
GRANT = Script.read(FOLDER / "grant.lua")
RENEW = Script.read(FOLDER / "renew.lua")
RELEASE = Script.read(FOLDER / "release.lua")
ROSTER = Script.read(FOLDER / "roster.lua")
SUBMIT = Script.read(FOLDER / "submit.lua")
COMMIT = Script.read(FOLDER / "commit.lua")
SETTLE = Script.read(FOLDER / "settle.lua")
KEEP_ALIVE = Script.read(FOLDER / "keep_alive.lua")
RECLAIM = Script.read(FOLDER / "reclaim.lua")
BURY = Script.read(FOLDER / "bury.lua")
SWEEP = Script.read(FOLDER / "sweep.lua")
OPEN = Script.read(FOLDER / "open.lua")
BOOKS = Script.read(FOLDER / "books.lua")
