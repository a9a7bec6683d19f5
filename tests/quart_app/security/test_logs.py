"""No secret is in a log, whatever fails while it is at hand."""

from __future__ import annotations

import json
import subprocess
import sys
from base64 import b64encode

import pytest

from tests.support.raising import BASIC_PASSWORD, EMAIL, NEW_PASSWORD, PASSWORD


@pytest.mark.parametrize("log_format", ["json", "console"])
def test_an_unexpected_error_logs_no_secret(log_format: str) -> None:
    """Every route that takes a password, a session or Basic authentication fails at several depths."""
    command = [sys.executable, "-m", "tests.support.raising", log_format]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=100, check=True)
    token, _, failed = ended.stdout.partition("\n")
    assert set(json.loads(failed)) == {
        "POST /auth/register", "POST /auth/login", "POST /auth/logout", "GET /users/me", "PATCH /users/me",
        "PATCH /users/nobody", "POST /messages", "GET /quota", "GET /backup",
    }  # fmt: skip
    assert ended.stderr.count("unexpected") >= 20
    basic = b64encode(f"grades:{BASIC_PASSWORD}".encode()).decode()
    for secret in (PASSWORD, NEW_PASSWORD, BASIC_PASSWORD, basic, token, EMAIL):
        assert secret and secret not in ended.stderr
