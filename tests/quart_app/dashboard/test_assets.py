"""Files of the pages, under names that change with their content."""

from __future__ import annotations

from pathlib import Path

import pytest

from quart_app.dashboard.assets import Assets


def test_another_content_has_another_name(tmp_path: Path) -> None:
    """A browser that keeps the old file for ever asks for the new one."""
    file = tmp_path / "page.js"
    file.write_text("one")
    first = Assets(tmp_path).url("page.js")
    file.write_text("two")
    assert first != Assets(tmp_path).url("page.js")
    assert first.startswith("/assets/page.") and first.endswith(".js")


def test_a_file_that_is_not_there_is_a_mistake_of_the_page(tmp_path: Path) -> None:
    """A missing file is found when the application is made, not when somebody asks."""
    with pytest.raises(KeyError):
        Assets(tmp_path).url("page.js")
