"""The newest answers and timelines."""

from __future__ import annotations

from typing import Any

from mesh.control.journeys import JourneyStep
from quart_app.dashboard.activity import newest_answers, target, timeline


def step(key: str, op: str = "values.put", status: str = "ok", **facts: Any) -> JourneyStep:
    known = {"stream": "", "id": "1000-0", "sender": "r1", "worker": "r2", "database": "5", "accepted_ms": 1000}
    return JourneyStep(key=key, op=op, status=status, **{**known, **facts})


def test_a_gather_is_one_row_with_its_slowest_part() -> None:
    """Rows can be limited by operation, worker or database, and status."""
    gather = [step(f"r1-1.db{n}", "values.find", database=str(n), answered_ms=1000 + 10 * n) for n in range(1, 4)]
    steps = [*gather, step("r1-2", answered_ms=1001), step("r1-3", status="busy", worker="r9")]
    assert [(row.step.key, row.parts) for row in newest_answers(steps, {}, 10)] == [
        ("r1-1.db3", 3),
        ("r1-2", 1),
        ("r1-3", 1),
    ]
    assert len(newest_answers(steps, {}, 2)) == 2
    for wanted, keys in (
        ({"op": "values.f"}, ["r1-1.db3"]),
        ({"status": "busy"}, ["r1-3"]),
        ({"to": "r9"}, ["r1-3"]),
        ({"to": "db2"}, ["r1-1.db2"]),
        ({"op": "x"}, []),
    ):
        assert [row.step.key for row in newest_answers(steps, wanted, 10)] == keys, wanted


def test_lanes_share_one_scale() -> None:
    """The scale goes from the first acceptance to the last answer, or until now if one is not answered."""
    first, second = timeline(
        [
            step("r1-1.db1", accepted_ms=1000, answered_ms=1100, took_us=50_000),
            step("r1-1.db2", "x", "in hand", accepted_ms=1000),
        ],
        now_ms=1200,
    )
    assert (first.wait_from, first.work_from, first.end) == (0, 25, 50)
    assert (second.wait_from, second.end) == (0, 100)
    (unknown,) = timeline([step("r1-1", accepted_ms=0, answered_ms=5)], 10)
    assert (unknown.wait_from, unknown.end) == (0, 0)


def test_where_a_request_went() -> None:
    """The stream says where a request went, or else the database of the replica that answered."""
    assert target(step("r", stream="mesh:requests:A")) == "A"
    assert target(step("r")) == "database 5"
    assert target(step("r", database="")) == ""
