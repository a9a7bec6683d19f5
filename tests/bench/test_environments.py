"""Environments of the peers."""

from __future__ import annotations

import pytest

from bench.environments import PEERS, version
from bench.request_reply import CONTENDERS


@pytest.mark.parametrize("pins", sorted(PEERS.glob("*.txt")), ids=lambda path: path.stem)
def test_every_requirement_is_pinned(pins: object) -> None:
    """A peer's figures are those of a version."""
    lines = [line for line in pins.read_text().splitlines() if line and not line.startswith("#")]  # type: ignore[attr-defined]
    assert lines
    assert all("==" in line for line in lines)


@pytest.mark.parametrize("contender", CONTENDERS, ids=lambda one: one.name)
def test_every_contender_has_its_program_and_version(contender: object) -> None:
    """The table of contenders names what is there."""
    assert (PEERS / contender.program).is_file()  # type: ignore[attr-defined]
    if contender.environment:  # type: ignore[attr-defined]
        assert version(contender.environment, contender.distribution)  # type: ignore[attr-defined]
