"""The mutants that earlier runs have killed. They are not tried again while their file and the test are the same."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from tests.support.mutants.mutant import Mutant


class Killed:
    """The tests that have noticed mutants, kept in a file."""

    def __init__(self, root: Path, kept: Path) -> None:
        self._root = root
        self._kept = kept
        #: Digest of the changed file -> the test, and the digest of its file.
        self._noticed: dict[str, tuple[str, str | None]] = json.loads(kept.read_text("utf-8")) if kept.exists() else {}

    def find(self, mutant: Mutant) -> str | None:
        """Return the test that noticed a mutant, or None if none did or it has changed."""
        test, digest = self._noticed.get(_digest(mutant.path, mutant.after), ("", None))
        return test if digest and digest == self._digest_of(test) else None

    def add(self, mutant: Mutant, test: str) -> None:
        """Note the test that noticed a mutant."""
        self._noticed[_digest(mutant.path, mutant.after)] = (test, self._digest_of(test))
        self._kept.parent.mkdir(exist_ok=True)
        self._kept.write_text(json.dumps(self._noticed), "utf-8")

    def _digest_of(self, test: str) -> str | None:
        file = self._root / test.partition("::")[0]
        return _digest(file.read_text("utf-8")) if file.is_file() else None


def _digest(*texts: str) -> str:
    return hashlib.sha256("\0".join(texts).encode()).hexdigest()
