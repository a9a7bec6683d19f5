"""The Postman collection that docs/postman.py makes of the OpenAPI document."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.support.nodes import applications

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def made() -> dict[str, Any]:
    command = [sys.executable, ROOT / "docs/postman.py"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=True)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


async def test_it_has_every_operation_of_the_document(made: dict[str, Any]) -> None:
    """Each once, at the port that serves it."""
    spec = importlib.util.spec_from_file_location("postman", ROOT / "docs/postman.py")
    assert spec is not None and spec.loader is not None
    postman = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(postman)
    openapi, private = await postman.document()
    assert {"/set", "/backup"} <= private and "/values" not in private
    wanted = {
        (method.upper(), path) for path, each in openapi["paths"].items() for method in each if method != "parameters"
    }
    requests = [item["request"] for folder in made["item"] for item in folder["item"]]
    found = [(each["method"], as_path(each["url"]["path"])) for each in requests]
    assert sorted(found) == sorted(wanted)
    bases = {as_path(each["url"]["path"]): each["url"]["host"] for each in requests}
    assert bases["/set"] == ["{{private}}"] and bases["/values"] == ["{{public}}"]


def as_path(segments: list[str]) -> str:
    return "/" + "/".join(f"{{{each[1:]}}}" if each.startswith(":") else each for each in segments)


async def test_its_body_for_values_is_one_that_is_accepted(made: dict[str, Any]) -> None:
    """The first thing that somebody sends is not refused for its form."""
    (body,) = [
        json.loads(item["request"]["body"]["raw"])
        for folder in made["item"]
        for item in folder["item"]
        if (item["request"]["method"], item["request"]["url"]["path"]) == ("POST", ["values"])
    ]
    answer = await applications().public.test_client().post("/values", json=body)
    assert answer.status_code == 503, "there is no mesh behind it; anything else would be 422"
