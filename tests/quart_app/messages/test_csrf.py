"""Other sites cannot act with our visitors' cookies; programs can, having none of others."""

from __future__ import annotations

import pytest
from werkzeug.datastructures import Headers

from quart_app.messages.csrf import is_foreign


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
def test_who_may_send_what(method: str, headers: dict[str, str], foreign: bool) -> None:
    """Unsafe methods only from our own host, or from origins the operator named."""
    assert is_foreign(method, Headers(headers), frozenset({"https://shop.example"})) is foreign
