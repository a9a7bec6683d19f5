"""Replaces lines of a script in this process, so that a test shows what those lines prevent."""

from __future__ import annotations

import pytest

from mesh.later import waking
from mesh.requests import scripts
from mesh.wire.script import Script


def instead(monkeypatch: pytest.MonkeyPatch, name: str, lines: str, others: str) -> None:
    """Replace lines of a script in this process."""
    script = getattr(waking, name)
    assert script.source.count(lines) == 1
    mutated = Script(script.source.replace(lines, others))
    monkeypatch.setattr(waking, name, mutated)
    monkeypatch.setattr(scripts, "OF_LINK", tuple(mutated if each is script else each for each in scripts.OF_LINK))
