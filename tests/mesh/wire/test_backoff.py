"""Pauses between attempts."""

from __future__ import annotations

import itertools

from mesh.wire.backoff import pauses


def test_pauses_grow_to_a_bound() -> None:
    """Each pause is up to twice as long as the one before, with jitter, and none is longer than the bound."""
    found = list(itertools.islice(pauses(0.1, 5.0), 20))
    assert 0.05 <= found[0] <= 0.1
    assert all(2.5 <= pause <= 5.0 for pause in found[10:])
    assert len(set(found[10:])) > 1
