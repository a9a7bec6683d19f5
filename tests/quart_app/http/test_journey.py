"""Which replicas an answer names."""

from __future__ import annotations

import pytest

from quart_app.http.journey import MOST_PLACES, Trail, headers_for


def reply(to: str, replica: str, **fields: str) -> tuple[str, dict[str, str]]:
    return to, {"from": replica, "db": "5", "took_us": "400", **fields}


@pytest.mark.parametrize(
    ("trail", "headers"),
    [
        ([], {}),
        (
            [reply("A", "replica-1")],
            {"Mesh-Place": "replica-1;db=5;class=A", "Server-Timing": "total;dur=3.1, work;dur=0.4"},
        ),
        (
            [reply("db5", "r1"), reply("db2", "r2", db="2", took_us="1500"), reply("db5", "r1")],
            {"Mesh-Place": "r1;db=5, r2;db=2", "Server-Timing": "total;dur=3.1, work;dur=1.5"},
        ),
        ([("A", {"from": "r1"})], {}),
        ([reply("A", "r\r\nX-Evil: 1"), reply("A", "r1", db="x"), reply("A", "é")], {}),
        ([reply("A", "r1", took_us="-", db="")], {}),
    ],
)  # fmt: skip
def test_places_and_times(trail: Trail, headers: dict[str, str]) -> None:
    """Each replica once; what a stranger wrote into a reply adds no header."""
    assert headers_for(trail, 0.0031) == headers


def test_a_header_has_a_bound() -> None:
    """The header names at most 16 places, because there are no more databases."""
    found = headers_for([reply("A", f"r{n}") for n in range(100)], 1)
    assert found["Mesh-Place"].count("db=") == MOST_PLACES
