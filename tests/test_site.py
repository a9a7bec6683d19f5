"""The documentation as a site: it builds offline, and no link in it is dead."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `make site` builds: a dead link, or a page that no index names, is an error here."""
    folder = tmp_path_factory.mktemp("site")
    command = [
        sys.executable,
        "-m",
        "sphinx",
        "-q",
        "-W",
        "--keep-going",
        "-b",
        "html",
        str(ROOT / "docs"),
        str(folder),
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return folder


def test_every_page_is_one_click_away_from_the_start(site: Path) -> None:
    """In the menu, or in the table of questions."""
    pages = {page.stem for page in (ROOT / "docs").glob("*.md")} - {"README", "index"}
    start = (site / "index.html").read_text()
    assert pages <= set(re.findall(r'href="([\w-]+)\.html', start))


def test_the_site_loads_nothing_from_elsewhere(site: Path) -> None:
    """It works offline: scripts, styles and pictures are its own."""
    for page in site.glob("*.html"):
        loaded = re.findall(r'<(?:script|link|img)[^>]*(?:src|href)="(https?:[^"]+)"', page.read_text())
        assert loaded == [], page.name


def test_the_diagram_is_a_picture_and_the_api_has_its_classes(site: Path) -> None:
    """The diagram is an SVG made of text; the reference is made of docstrings."""
    assert "<svg" in (site / "index.html").read_text() or list((site / "_images").glob("*.svg"))
    assert 'id="mesh.join"' in (site / "api.html").read_text()
