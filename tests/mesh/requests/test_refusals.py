"""Each code of the submission script is the error that says what a caller can do."""

from __future__ import annotations

import pytest

from mesh import Busy, Incomplete, KeyReused, Limited, MeshError, NoReplica, SetupError, Unavailable
from mesh.requests.refusals import not_applied, refusal


@pytest.mark.parametrize(
    ("code", "about", "kind", "text", "retry_after"),
    [
        ("no-replica", "B", NoReplica, "no live replica has class B", None),
        ("no-replica", "db3", NoReplica, "no live replica has database 3", None),
        ("missing", "B", Unavailable, "class B has no replica at the moment, and its replica is expected back", 1),
        ("missing", "db3", Unavailable, "database 3 has no replica at the moment", 1),
        ("missing", "3 11", Incomplete, "databases that hold data have no replica at the moment: 3, 11; retry", 1),
        ("busy", "A", Busy, "the queue of class A is full; retry after 1 s", 1),
        ("busy", "db3", Busy, "the queue of database 3 is full; retry after 1 s", 1),
        ("full", "", Busy, "Redis is full", 5),
        ("forbidden", "NOPERM no", SetupError, "this Redis user may not send requests for later: NOPERM no", None),
        ("key-reused", "k", KeyReused, "the idempotency key k was used with another body", None),
        ("limited", "1500 a.do:ann", Limited, "too many requests of a.do for 'ann'; retry after 1.5 s", 1.5),
        ("limited", "20 a.do:", Limited, "too many requests of a.do; retry after 0.02 s", 0.02),
        ("too-many", "", Busy, "too many requests wait for their time; retry after 1 s", 1),
        ("wrong-type", "mesh:lane:x", MeshError, "mesh:lane:x is a key of the wrong type", None),
    ],
)
def test_a_refusal_names_what_is_lacking(
    code: str, about: str, kind: type[MeshError], text: str, retry_after: float | None
) -> None:
    """Only what cannot come back by itself is final."""
    error = refusal(code, about)
    assert type(error) is kind and text in error.detail and error.retry_after == retry_after
    assert error.facts.get("missing", []) == ([3, 11] if kind is Incomplete else [])


@pytest.mark.parametrize(
    ("word", "kind", "text", "retry_after"),
    [
        ("full", Busy, "Redis is full", 5),
        ("too-many mesh:later", Busy, "too many requests wait for their time; retry after 1 s", 1),
        ("key-reused k", KeyReused, "the idempotency key k was used with another body", None),
        ("limited 1500 a.do:ann", Limited, "too many requests of a.do for 'ann'; retry after 1.5 s", 1.5),
        ("x holds a hash", MeshError, "the transaction was not applied: x holds a hash", None),
    ],
)
def test_a_commit_that_is_refused_says_the_same(
    word: str, kind: type[MeshError], text: str, retry_after: float | None
) -> None:
    """A handler's sends are refused in the commit, for the reasons for which a caller's are."""
    error = not_applied(word)
    assert type(error) is kind and text in error.detail and error.retry_after == retry_after
