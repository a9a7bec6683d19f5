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
    """A page is in the menu, or in the table of questions."""
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


#: What strangers ask, and where the answer is: a page, and a heading where the page has several.
QUESTIONS = {
    "How do I start it without a Redis of my own?": "index#start-in-five-minutes",
    "How do I test my service without a server?": "testing",
    "How do I write a service of my own?": "add-a-service#write-the-package",
    "We use Celery. What becomes of our tasks?": "migrate#from-celery",
    "What does a client see when a replica is killed?": "operations#what-a-client-sees-when-a-replica-ends",
    "What is lost in a power failure?": "operations#what-may-be-lost-and-for-how-long",
    "How do I deploy it on Kubernetes?": "operations#kubernetes",
    "How do I change the Redis password while it runs?": "operations#change-a-secret",
    "May I send a request again after a 502, 503 or 504?": "errors#http-statuses",
    "What if one Redis is not enough?": "scaling#beyond-one-redis-several-meshes",
    "Does it run on a hosted Redis that lets nobody manage users?": "operations#credentials-with-few-rights",
    "Which Pythons and Redis versions were tried?": "dependencies#what-was-run",
}


@pytest.mark.parametrize("question", QUESTIONS)
def test_a_question_is_answered_within_two_clicks(site: Path, question: str) -> None:
    """One click from the start leads to the page, and another one, where it needs one, to the heading."""
    page, _, heading = QUESTIONS[question].partition("#")
    start = set(re.findall(r'href="([^"]+)"', (site / "index.html").read_text()))
    text = (site / f"{page}.html").read_text()
    assert page == "index" or any(link.partition("#")[0] == f"{page}.html" for link in start)
    if heading:
        assert f'id="{heading}"' in text
        assert page == "index" or f"{page}.html#{heading}" in start or f'href="#{heading}"' in text
