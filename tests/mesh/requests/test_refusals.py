"""Each code of the submission script is the error that says what a caller can do."""

from __future__ import annotations

import pytest

from mesh import Busy, Incomplete, MeshError, NoReplica, Unavailable
from mesh.requests.refusals import refusal


@pytest.mark.parametrize(
    ("code", "about", "kind", "text", "retry_after"),
    [
        ("no-replica", "B", NoReplica, "no live replica has class B", None),
        ("no-replica", "db3", NoReplica, "no live replica has database 3", None),
        ("missing", "B", Unavailable, "class B has no replica at the moment, and its replica is expected back", 1),
        ("missing", "db3", Unavailable, "database 3 has no replica at the moment", 1),
        ("missing", "3 11", Incomplete, "databases that hold data have no replica at the moment: 3, 11; retry", 1),
        ("busy", "A", Busy, "the queue of class A is full; retry after 1 s", 1),
    ],
)
def test_a_refusal_names_what_is_lacking(
    code: str, about: str, kind: type[MeshError], text: str, retry_after: float | None
) -> None:
    """Only what cannot come back by itself is final."""
    error = refusal(code, about)
    assert type(error) is kind and text in error.detail and error.retry_after == retry_after
    assert error.facts.get("missing", []) == ([3, 11] if kind is Incomplete else [])
