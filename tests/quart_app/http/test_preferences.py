"""The examples of RFC 7240, and what real clients write."""

from __future__ import annotations

import pytest

from quart_app.http.preferences import preferences, preferred_wait_s

#: (headers, preferences)
EXAMPLES = [
    ([], {}),
    (["respond-async"], {"respond-async": ""}),
    (["Respond-Async"], {"respond-async": ""}),
    (['respond-async=""'], {"respond-async": ""}),
    (["respond-async="], {"respond-async": ""}),
    (["respond-async, wait=100"], {"respond-async": "", "wait": "100"}),
    (["respond-async", "wait=100"], {"respond-async": "", "wait": "100"}),
    (["wait=10", "wait=20"], {"wait": "10"}),
    (['WAIT = "2"'], {"wait": "2"}),
    (["foo; bar"], {"foo": ""}),
    (['foo; bar=""'], {"foo": ""}),
    (["foo=; bar"], {"foo": ""}),
    (['respond-async;foo="x, wait=9"; , wait=3;y'], {"respond-async": "", "wait": "3"}),
    (['foo="respond-async, wait=9"'], {"foo": "respond-async, wait=9"}),
    (['return=minimal; foo="some parameter"'], {"return": "minimal"}),
    (["handling=lenient, wait=100, respond-async"], {"handling": "lenient", "wait": "100", "respond-async": ""}),
    (["a," * 15_000 + "wait=3", "respond-async"], {"respond-async": ""}),
    (["x-respond-async, respond-asynchronously"], {"x-respond-async": "", "respond-asynchronously": ""}),
]


@pytest.mark.parametrize(("headers", "expected"), EXAMPLES)
def test_preferences_are_read_as_the_rfc_says(headers: list[str], expected: dict[str, str]) -> None:
    """Any case, quotes, parameters, several headers; the first of one name counts."""
    assert {name: value for name, value in preferences(headers).items() if name} == expected


@pytest.mark.parametrize(
    ("header", "seconds"),
    [("wait=10", 10), ('wait="2"', 2), ("wait=0", 0), ("wait=0.5", None), ("wait=-1", None), ("wait=x", None),
     ("wait", None), ("wait=", None), ("wait=" + "9" * 400, None), ("wait=\u0663", None), ("await=3", None)],
)  # fmt: skip
def test_a_time_to_wait_is_a_number_of_seconds(header: str, seconds: int | None) -> None:
    """Anything else is ignored, as RFC 7240 says of a preference that is not understood."""
    assert preferred_wait_s(preferences([header])) == seconds
