"""Replaces lines of a script in this process, so that a test shows what those lines prevent."""

from __future__ import annotations

from types import ModuleType

import pytest

from mesh.later import waking
from mesh.requests import scripts
from mesh.wire.script import Script


def instead(monkeypatch: pytest.MonkeyPatch, name: str, lines: str, others: str, module: ModuleType = waking) -> None:
    """Replace lines of a script of this module in this process."""
    script = getattr(module, name)
    assert script.source.count(lines) == 1
    mutated = Script(script.source.replace(lines, others))
    monkeypatch.setattr(module, name, mutated)
    monkeypatch.setattr(scripts, "OF_LINK", tuple(mutated if each is script else each for each in scripts.OF_LINK))
