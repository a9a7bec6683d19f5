"""docs/add-a-service.md: its files and its line are all that a new service needs."""

from __future__ import annotations

import ast
import importlib.util
import re
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

import pytest

import quart_app
from mesh import MeshSettings
from quart_app.registry import SERVICES
from tests.support.nodes import node
from tests.support.server import Server

PAGE = (Path(__file__).parents[2] / "docs" / "add-a-service.md").read_text("utf-8")


@pytest.fixture
def greetings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The page's service: its files in a folder of this test, its line in the registry."""
    files = dict(re.findall(r"`(quart_app/\S+\.py)`\n\n```python\n(.*?)```", PAGE, re.DOTALL))
    assert sorted(Path(name).name for name in files) == ["__init__.py", "service.py"]
    for name, text in files.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, "utf-8")
    (line,) = re.findall(r"`SERVICES` in `quart_app/registry.py`:\n\n```python\n(.*?)```", PAGE, re.DOTALL)
    monkeypatch.setattr(quart_app, "__path__", [*quart_app.__path__, str(tmp_path / "quart_app")])
    for name, module in ast.literal_eval(f"{{{line}}}").items():
        monkeypatch.setitem(SERVICES, name, module)
    yield "greetings"
    for module in [name for name in sys.modules if name.startswith("quart_app.greetings")]:
        del sys.modules[module]


@pytest.mark.parametrize("module", SERVICES.values())
def test_every_service_of_the_registry_can_be_imported(module: str) -> None:
    """The module of each service has the function that the application calls."""
    assert callable(import_module(module).create)


async def test_the_service_of_the_page_runs(greetings: str, server: Server) -> None:
    """The service answers as the page says, beside another one, and is in the OpenAPI document."""
    (shown,) = re.findall(r"curl -X POST localhost:8000(/\S+)\n    (\{.*\})", PAGE)
    async with node(MeshSettings(redis=server.settings), services=f"{greetings},values") as one:
        answer = await one.public.post(shown[0])
        assert (answer.status_code, await answer.get_json()) == (200, ast.literal_eval(shown[1]))
        assert (await (await one.public.post(shown[0])).get_json())["count"] == 2
        assert (await one.public.get("/classes")).status_code == 200
        assert "/greetings/{name}" in (await (await one.public.get("/openapi.json")).get_json())["paths"]


async def test_the_tests_of_the_page_pass(greetings: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both tests of the page pass over fakeredis."""
    (block,) = re.findall(r"## 3\. Test it.*?```python\n(.*?)```", PAGE, re.DOTALL)
    path = tmp_path / "greetings_test_service.py"
    path.write_text(block, "utf-8")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, path.stem, module)
    spec.loader.exec_module(module)
    tests = [function for name, function in vars(module).items() if name.startswith("test_")]
    assert len(tests) == 2
    for test in tests:
        await test()
