"""Two routes that answer the same request stop the process at its start."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from quart import Blueprint, Quart

from mesh import SetupError
from quart_app.http import collisions
from tests.support.nodes import applications


async def view() -> str:
    return ""


def app_with(*routes: tuple[str, str, str]) -> Quart:
    """Return an application with these routes: blueprint, method, path."""
    app = Quart(__name__, static_folder=None)
    blueprints: dict[str, Blueprint] = {}
    for name, method, path in routes:
        blueprint = blueprints.setdefault(name, Blueprint(name, __name__))
        blueprint.add_url_rule(path, f"{method}{len(blueprint.deferred_functions)}", view, methods=[method])
    for blueprint in blueprints.values():
        app.register_blueprint(blueprint)
    return app


@pytest.mark.parametrize(
    ("one", "two"),
    [
        (("GET", "/values"), ("GET", "/values")),
        (("GET", "/values/<prime>"), ("GET", "/values/7")),
        (("GET", "/jobs/<id>"), ("GET", "/jobs/<path:phone>")),
        (("GET", "/docs/assets/<path:name>"), ("GET", "/docs/<path:phone>")),
        (("GET", "/<path:anything>"), ("GET", "/health")),
    ],
)
def test_a_request_with_two_routes_is_found(one: tuple[str, str], two: tuple[str, str]) -> None:
    """The collision is found in either order, and where one path has a placeholder."""
    assert " is also a route of " in collisions.find(app_with(("a", *one), ("b", *two)))
    assert " is also a route of " in collisions.find(app_with(("b", *two), ("a", *one)))


def test_routes_that_share_no_request_are_no_collision() -> None:
    """The routes have another method, another path, or the same blueprint."""
    app = app_with(
        ("a", "GET", "/values/<prime>"), ("a", "GET", "/values/7"), ("b", "POST", "/values/<prime>"), ("b", "GET", "/v")
    )
    assert collisions.find(app) == ""


@pytest.mark.parametrize("prefix", ["/values", "/values/7", "/jobs", "/classes", "/health", "/docs", "/api", "/users"])
def test_a_prefix_of_the_addresses_that_hides_other_routes_is_refused(
    prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The sentence names both routes and the setting."""
    monkeypatch.setenv("ENDPOINT_PREFIX", prefix)
    with pytest.raises(SetupError, match=r"collide.*addresses.*change ENDPOINT_PREFIX"):
        applications(services="values,addresses,messages,grades,movements")


@pytest.mark.parametrize("prefix", ["/values", "/adr/<int:x>", "/a b//c"])
def test_the_process_ends_with_78(prefix: str) -> None:
    """The process prints one sentence and no traceback."""
    env = {**os.environ, "ENDPOINT_PREFIX": prefix, "PORT": "0", "PRIVATE_PORT": "0"}
    command = [sys.executable, "-m", "quart_app"]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=60, check=False)
    told = done.stdout + done.stderr
    assert done.returncode == 78
    assert "prefix" in told.lower() and "Traceback" not in told
