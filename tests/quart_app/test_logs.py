"""Logs: what is written, and what never is."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

SECRET = "wombat-4711"

#: Raises inside every route of every service, while local variables hold what the client sent.
RAISING = f"""
import asyncio, sys
from quart import request
from quart_app import logs
from quart_app.settings import AppSettings
from tests.support.nodes import applications

async def broken(**path):
    body, headers = await request.get_data(), dict(request.headers)
    raise RuntimeError("broken")

async def main():
    logs.configure(AppSettings(log_format=sys.argv[1]))
    app = applications(services="values,addresses,messages,grades,movements")
    for quart in (app.public, app.private):
        for rule in list(quart.url_map.iter_rules()):
            quart.view_functions[rule.endpoint] = broken
            path = quart.url_map.bind("x").build(rule.endpoint, dict.fromkeys(rule.arguments, "6"))
            method = next(iter(rule.methods - {{"HEAD", "OPTIONS"}}))
            headers = {{"Authorization": "Bearer {SECRET}", "Cookie": "session={SECRET}"}}
            answer = await quart.test_client().open(path, method=method, headers=headers, data=b"{SECRET}")
            print(method, path, answer.status_code)

asyncio.run(main())
"""


@pytest.mark.parametrize("log_format", ["json", "console"])
def test_an_unexpected_error_in_any_route_logs_no_secret(log_format: str) -> None:
    """The traceback has files, lines and names, and no local variables: they hold passwords, tokens and bodies."""
    done = subprocess.run(
        [sys.executable, "-c", RAISING, log_format], capture_output=True, text=True, timeout=60, check=True
    )
    answers = done.stdout.splitlines()
    assert len(answers) > 25
    assert all(answer.endswith(" 500") for answer in answers)
    assert done.stderr.count("RuntimeError") >= len(answers), "each has a traceback"
    assert "in broken" in done.stderr or '"name": "broken"' in done.stderr
    assert SECRET not in done.stderr
    if log_format == "json":
        assert all(isinstance(json.loads(line), dict) for line in done.stderr.splitlines())
