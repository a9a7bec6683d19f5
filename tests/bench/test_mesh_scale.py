"""The model of a request's cost."""

from __future__ import annotations

import pytest

from bench.mesh_scale import line, model, on_machines
from bench.spread import Spread


def test_the_line_goes_through_points_that_lie_on_one() -> None:
    """Exact where the model is exact; one point alone is a constant."""
    assert line([1, 2, 4], [5, 7, 11]) == pytest.approx((3, 2))
    assert line([4], [2.5]) == (2.5, 0)


def test_the_model_has_a_line_for_each_load_and_part() -> None:
    """POST and GET, replicas and Redis each have a line."""
    counts = (1, 2)
    measured = {
        f"{count}|{verb}_{part}": Spread.of([float(count)])
        for count in counts
        for verb in ("post", "get")
        for part in ("replicas", "redis")
    }
    assert set(model(counts, measured)) == {"post_replicas", "post_redis", "get_replicas", "get_redis"}


def test_the_limit_is_whoever_is_busy_first() -> None:
    """Sixteen machines share the replicas' work; Redis is one."""
    cheap_redis = {"get_replicas": (1.6, 0.0), "get_redis": (0.01, 0.0)}
    assert on_machines(cheap_redis, "get", 16) == (pytest.approx(10_000), "replicas")
    dear_redis = {"get_replicas": (1.6, 0.0), "get_redis": (0.04, 0.01)}
    assert on_machines(dear_redis, "get", 16) == (pytest.approx(5_000), "Redis")
