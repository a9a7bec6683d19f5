"""The README and the pages of `docs/` agree with the code, and their links lead somewhere."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from mesh import keys

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
PAGES = [README, ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]
README_WORDS = 900
#: The names in paths that a page tells its reader to make.
EXAMPLES = {"NAME", "greetings"}
KEY = r"(?:mesh:|shared:|events:|db\{)\S+"


def test_the_readme_is_short() -> None:
    """A stranger reads the README to its end only if it is short."""
    assert len(README.read_text().split()) <= README_WORDS


def test_the_page_of_keys_is_the_table_of_the_module() -> None:
    """`docs/keys.md` lists every key of `mesh/keys.py`, with the same type, and no other."""
    module = dict(re.findall(rf"^    ({KEY}) +(\w+(?:, PX)?)", keys.__doc__ or "", flags=re.MULTILINE))
    tables = (ROOT / "docs" / "keys.md").read_text().partition("## A request")[0]
    page = dict(re.findall(rf"^\| `({KEY})` \| ([^|]+?) \|", tables, flags=re.MULTILINE))
    assert len(module) > 10
    assert page == module


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_leads_somewhere(page: Path) -> None:
    """Each relative link names a file that exists, and a heading in it where it names one."""
    for file, heading in _links(page):
        target = page if not file else (page.parent / file).resolve()
        assert target.exists(), f"{page.name}: {file}"
        if heading:
            assert heading in _headings(target), f"{page.name}: {file}#{heading}"


def _links(page: Path) -> Iterator[tuple[str, str]]:
    for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if not link.startswith(("http://", "https://")):
            file, _, heading = link.partition("#")
            yield file, heading


def _headings(page: Path) -> set[str]:
    """Return the anchors of a page's headings, as GitHub names them."""
    titles = re.findall(r"^#+ (.+)$", page.read_text(), flags=re.MULTILINE)
    return {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}


def test_every_page_is_in_the_index() -> None:
    """A page that the index does not name is found by nobody."""
    named = {file for file, _ in _links(ROOT / "docs" / "README.md")}
    assert {page.name for page in PAGES if page.parent.name == "docs" and page.name != "README.md"} <= named


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_path_on_a_page_exists(page: Path) -> None:
    """A path of this repository in backticks names a file or folder that exists."""
    paths = re.findall(r"`((?:mesh|quart_app|tests|docs|deploy|bench)/[\w/.-]*)`", page.read_text())
    assert not [path for path in paths if not (ROOT / path).exists() and not EXAMPLES & set(path.split("/"))]


@pytest.mark.parametrize("package", ["mesh", "quart_app"])
def test_the_design_names_every_module(package: str) -> None:
    """The tree in `docs/design.md` has every folder and module directly in the package, and no folder that is gone."""
    tree = (ROOT / "docs" / "design.md").read_text().partition("## Modules")[2].partition("\n\nImports")[0]
    words = set(re.findall(r"\w+", tree))
    inside = [path for path in (ROOT / package).iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()]
    assert {path.stem for path in inside if not path.stem.startswith("__")} <= words
    for folder in re.findall(r"(\w+)/", tree):
        assert any((ROOT / parent / folder).is_dir() for parent in ("", "mesh", "quart_app")), folder
