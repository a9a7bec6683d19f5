"""docs/errors.md has every error of the code, and none that the code does not have."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from types import ModuleType

import pytest

import mesh
from mesh import errors
from quart_app.http.problems import TITLES

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "errors.md").read_text()


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("errors_page", ROOT / "docs/errors.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_page_is_current(script: ModuleType) -> None:
    """`python docs/errors.py` writes it again."""
    assert script.main(["--check"]) == 0


def test_every_code_that_travels_is_on_the_page() -> None:
    """The table of the wire, every error that `mesh` exports, and nothing else under `mesh.errors`."""
    rows = dict(re.findall(r"^\| `(\w+)` \| `([\w-]+)` \| \d+ \|", PAGE, flags=re.MULTILINE))
    assert {cls.__name__: code for code, cls in errors._BY_CODE.items() if "." not in code}.items() <= rows.items()
    exported = {
        name for name in mesh.__all__ if isinstance(found := getattr(mesh, name), type) and issubclass(found, Exception)
    }
    assert rows.keys() == exported


def test_every_status_is_on_the_page_once() -> None:
    """Those that have a title, and no other."""
    statuses = PAGE.partition("## HTTP statuses")[2].partition("## Errors")[0]
    assert [int(status) for status in re.findall(r"^\| (\d+) \|", statuses, flags=re.MULTILINE)] == sorted(TITLES)


@pytest.mark.parametrize(
    ("status", "sentence"),
    [
        (409, "this phone already has an address; use PUT to replace it"),
        (400, "the body is nested too deeply; at most … levels are accepted"),
        (403, "the free provider is closed, and this account has no paid access"),
    ],
)
def test_sentences_are_found_where_they_are_made(status: int, sentence: str) -> None:
    """As an argument, as a constant of the module, as one of two in a variable."""
    assert re.findall(rf"^\| (\d+) \| {re.escape(sentence)} \|", PAGE, flags=re.MULTILINE) == [str(status)]
