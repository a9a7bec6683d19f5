"""docs/security.md names tests that exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from mesh import keys

ROOT = Path(__file__).parents[3]
PAGE = (ROOT / "docs/security.md").read_text()
NAMED = sorted(set(re.findall(r"`tests/([\w/]+/test_\w+\.py(?:::test_\w+)?)`", PAGE)))


@pytest.mark.parametrize("name", NAMED)
def test_a_named_test_exists(name: str) -> None:
    """The file, and the function if one is named."""
    path, _, function = name.partition("::")
    text = (ROOT / "tests" / path).read_text()
    assert not function or f"def {function}(" in text


def test_the_page_names_many_tests_and_the_audit_log() -> None:
    """The pattern above finds them."""
    assert len(NAMED) > 50
    assert keys.AUDIT in PAGE


def test_the_page_names_every_event() -> None:
    """The page has each phrase that the code records."""
    folders = (ROOT / "quart_app/messages", ROOT / "quart_app/security")
    sources = [path.read_text() for folder in folders for path in folder.glob("*.py")]
    recorded = {phrase for text in sources for phrase in re.findall(r'(?:record|say|entry)\(\s*"([a-z ]+)"', text)} | {
        "administrator promoted",
        "administrator demoted",
    }
    assert len(recorded) > 8
    assert [phrase for phrase in sorted(recorded) if f"`{phrase}`" not in PAGE] == []
