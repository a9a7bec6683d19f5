"""Which requests a browser sends on behalf of another site."""

from __future__ import annotations

import pytest
from werkzeug.datastructures import Headers

from quart_app.security.csrf import is_foreign


@pytest.mark.parametrize(
    ("method", "headers", "foreign"),
    [
        ("POST", {"Host": "api.example"}, False),
        ("POST", {"Host": "api.example", "Origin": "https://api.example"}, False),
        ("POST", {"Host": "api.example", "Origin": "http://api.example"}, False),
        ("POST", {"Host": "API.example:8000", "Origin": "https://api.example:8000"}, False),
        ("POST", {"Host": "api.example", "Origin": "https://shop.example"}, False),
        ("POST", {"Host": "api.example", "Origin": "https://evil.example"}, True),
        ("POST", {"Host": "api.example", "Origin": "https://api.example.evil"}, True),
        ("POST", {"Host": "api.example", "Origin": "https://api.example:444"}, True),
        ("PATCH", {"Host": "api.example", "Origin": "null"}, True),
        ("DELETE", {"Host": "api.example", "Origin": ""}, True),
        ("POST", {"Origin": "null"}, True),
        ("POST", {"Host": "api.example", "Origin": "http://["}, True),
        ("POST", {"Host": "api.example", "Sec-Fetch-Site": "cross-site"}, True),
        ("POST", {"Host": "api.example", "Sec-Fetch-Site": "same-origin"}, False),
        ("GET", {"Host": "api.example", "Origin": "https://evil.example"}, False),
    ],
)
def test_foreign_origins_are_found(method: str, headers: dict[str, str], foreign: bool) -> None:
    """Unsafe methods are allowed from our own host and from configured origins."""
    assert is_foreign(method, Headers(headers), frozenset({"https://shop.example"})) is foreign
