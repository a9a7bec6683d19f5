"""docs/errors.md has every error of the code, and none that the code does not have."""

from __future__ import annotations

import importlib
import re

import pytest

import mesh
from docs import errors as errors_page
from mesh import errors
from quart_app.http.problems import TITLES

PAGE = errors_page.PAGE.read_text()


def test_the_page_is_current() -> None:
    """`make pages` writes it again."""
    assert errors_page.page() == PAGE


def test_every_code_that_travels_is_on_the_page() -> None:
    """The page has the table of the wire, every error that `mesh` exports, and nothing else under `mesh.errors`."""
    rows = dict(re.findall(r"^\| `(\w+)` \| `([\w-]+)` \| \d+ \|", PAGE, flags=re.MULTILINE))
    assert {cls.__name__: code for code, cls in errors._BY_CODE.items() if "." not in code}.items() <= rows.items()
    exported = {
        name for name in mesh.__all__ if isinstance(found := getattr(mesh, name), type) and issubclass(found, Exception)
    }
    assert rows.keys() == exported


def test_every_error_can_be_imported_by_its_name_on_the_page() -> None:
    """A name without a module is one of `mesh`, which the test above checks."""
    names = re.findall(r"^\| `([\w.]+)\.(\w+)` \| `[\w-]+` \| \d+ \|", PAGE, flags=re.MULTILINE)
    assert len(names) > 5
    for module, name in names:
        assert issubclass(getattr(importlib.import_module(module), name), mesh.MeshError)


def test_every_status_is_on_the_page_once() -> None:
    """The page has each status that has a title, and no other."""
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
    """A sentence may be an argument, a constant of the module, or one of two in a variable."""
    assert re.findall(rf"^\| (\d+) \| {re.escape(sentence)} \|", PAGE, flags=re.MULTILINE) == [str(status)]
