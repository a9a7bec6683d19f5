"""The model of many meshes gives back what was measured, and tells which part is the limit."""

from __future__ import annotations

import pytest

from bench.two_meshes import KINDS, check_stored, model, outlook, predicted
from examples.several_meshes.meshes import owner


def _measured(count: int) -> dict[str, float]:
    """Return costs in ms: a POST goes to one mesh, a GET to all."""
    own = {"POST of one": 1 / count, "value of a batch": 0.01 / count, "GET by prime": 1.0}
    return {f"{kind}|{part}": own[kind] if part == "redis" else own[kind] * 2 for kind in KINDS for part in PARTS}


PARTS = ("front", "replicas", "redis")


def test_a_post_grows_with_the_meshes_and_a_get_does_not() -> None:
    """With a POST of 1 ms in one mesh, 32 meshes take 32,000 a second; each GET costs all meshes 1 ms."""
    fitted = model({count: _measured(count) for count in (1, 2, 4, 8)})
    assert predicted(fitted, "POST of one|redis", 32) == pytest.approx(1 / 32)
    assert predicted(fitted, "GET by prime|redis", 32) == pytest.approx(1)
    row = outlook(fitted, 32)
    assert row[1].startswith("32,000 (Redis")
    assert row[3].startswith("1,000 (Redis")


def test_a_value_in_the_wrong_mesh_ends_the_run() -> None:
    """The long run checks each value, and refuses one that is astray, missing or twice there."""
    right = {name: {v for v in range(1, 101) if owner(str(v), ("a", "b")) == name} for name in ("a", "b")}
    check_stored(right, 100)
    for wrong in (
        {"a": right["b"], "b": right["a"]},
        {"a": right["a"], "b": set()},
        {"a": right["a"] | {101}, "b": {0}},
    ):
        with pytest.raises(RuntimeError):
            check_stored(wrong, 101)
